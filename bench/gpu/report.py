"""The result of `make gpu`: one JSON document, `nuwaxl-gpu/1`, and one table, both rewritten whenever there is news."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

SCHEMA = "nuwaxl-gpu/1"
JSON_FILE = "gpu.json"
TABLE_FILE = "gpu.md"

How = Literal["measured", "extrapolated"]


@dataclass(frozen=True)
class Gate:
    """A figure and what it must be; docs/gpu.md says where the limits come from.

    Attributes:
        found: None where nothing was measured.
        at_most: whether the limit is an upper one.
        how: extrapolated where it comes from a part of the work; `note` says from which.
    """

    name: str
    found: float | None
    limit: float
    unit: str
    at_most: bool
    how: How = "measured"
    note: str = ""

    @property
    def passed(self) -> bool | None:
        """None where nothing was measured."""
        if self.found is None:
            return None
        return self.found <= self.limit if self.at_most else self.found >= self.limit

    @property
    def missed_by(self) -> float | None:
        """Part of the limit that it is on the wrong side by; None unless it is, and of a limit of 0."""
        if self.found is None or self.passed or self.limit == 0:
            return None
        return abs(self.found - self.limit) / self.limit

    def to_json(self) -> dict[str, Any]:
        """The entry of the document."""
        return {**asdict(self), "passed": self.passed, "missed_by": self.missed_by}


def read(folder: Path) -> dict[str, Any]:
    """The document of an earlier run in the folder, to add to; an empty one where there is none."""
    try:
        document: dict[str, Any] = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        document = {}
    if document.get("schema") != SCHEMA:
        document = {"schema": SCHEMA, "pieces": {}}
    return document


def read_piece(path: Path) -> dict[str, Any]:
    """What a piece wrote; nothing where it did not get so far."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    return found


def write(folder: Path, document: dict[str, Any]) -> None:
    """Write JSON and table, each complete or not at all."""
    for name, text in ((JSON_FILE, json.dumps(document, indent=1) + "\n"), (TABLE_FILE, table(document))):
        part = folder / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        os.replace(part, folder / name)


def table(document: dict[str, Any]) -> str:
    """The gates, then the figures behind them, in Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in document.get("machine", {}).items())
    lines = [
        f"# {document['schema']}",
        "",
        machine,
        "",
        "| gate | found | limit | | how |",
        "| --- | ---: | ---: | --- | --- |",
    ]
    for gate in document.get("gates", []):
        sign = "at most" if gate["at_most"] else "at least"
        found = "not measured" if gate["found"] is None else f"{gate['found']:.4g} {gate['unit']}".strip()
        verdict = {True: "pass", False: "MISS", None: "-"}[gate["passed"]]
        if gate["missed_by"] is not None:
            verdict += f" by {gate['missed_by']:.0%}"
        how = "; ".join(filter(None, (gate["how"] if gate["found"] is not None else "", gate["note"])))
        lines.append(f"| {gate['name']} | {found} | {sign} {gate['limit']:g} {gate['unit']} | {verdict} | {how} |")
    for name, piece in document["pieces"].items():
        lines += ["", f"## {name}: {piece['state']}, {piece['seconds']:.0f} s", ""]
        rows = piece.get("rows", [])
        if rows:
            columns = list(dict.fromkeys(key for row in rows for key in row))
            lines += [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
            lines += [f"| {' | '.join(_cell(row.get(column)) for column in columns)} |" for row in rows]
        lines += [f"- {key}: {_cell(value)}" for key, value in piece.get("figures", {}).items()]
        if piece.get("error"):
            lines.append(f"- error: {piece['error']}")
    return "\n".join(lines) + "\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)

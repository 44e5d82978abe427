"""The reduction against the autoregressive baseline over the number of devices, as an SVG picture for the docs.

python -m nuwaxl.bench.curve OUT.svg LABEL=BENCH.json [LABEL=BENCH.json ...]
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from nuwaxl.bench.svg import line, tag, text
from nuwaxl.cli import Parser, run
from nuwaxl.errors import InputError
from nuwaxl.formats import parse_json

PROG = "python -m nuwaxl.bench.curve"
PAPER = 0.9426  # Table 1: 1024 frames in 26 s against 453 s

_WIDTH, _HEIGHT = 720.0, 420.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 64.0, 150.0, 16.0, 60.0
_COLOURS = ("#2563c9", "#c2334d", "#17a089", "#7b4fb5", "#b8860b")
_STYLE = """
text { font: 13px system-ui, "DejaVu Sans", sans-serif; fill: #1b222c; }
.back { fill: #ffffff; } .grid { stroke: #e6e9ed; } .paper { stroke: #5b6673; stroke-dasharray: 6 4; }
polyline { fill: none; stroke-width: 2; }
"""

Points = list[tuple[int, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = Parser(prog=PROG, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", metavar="OUT.svg")
    parser.add_argument("documents", nargs="+", metavar="LABEL=BENCH.json", help="of nuwaxl-bench --compare ar")
    arguments = parser.parse_args(argv)

    def draw() -> None:
        curves = [_load(document) for document in arguments.documents]
        Path(arguments.out).write_text(picture(curves), encoding="utf-8")

    return run(PROG, draw)


def picture(curves: Sequence[tuple[str, Points]]) -> str:
    """The whole file: a line a curve of (devices, reduction), on a logarithmic axis of devices from 0 to 100 %."""
    most = max(devices for _, points in curves for devices, _ in points)
    doublings = max(1, math.ceil(math.log2(most)))

    def place(devices: float, share: float) -> tuple[float, float]:
        x = _LEFT + math.log2(devices) / doublings * (_WIDTH - _LEFT - _RIGHT)
        return x, _TOP + (1 - max(share, 0.0)) * (_HEIGHT - _TOP - _BOTTOM)

    end = place(2**doublings, 0)[0]
    parts = [tag("style", _STYLE), tag("rect", width=_WIDTH, height=_HEIGHT, class_="back")]
    for percent in range(0, 101, 20):
        y = place(1, percent / 100)[1]
        parts += [line(_LEFT, y, end, y, "grid"), text(_LEFT - 8, y + 4, f"{percent} %", "end")]
    for power in range(doublings + 1):
        x, y = place(2**power, 0)
        parts.append(text(x, y + 20, str(2**power), "middle"))
    parts.append(text((_LEFT + end) / 2, _HEIGHT - 12, "devices", "middle"))
    y = place(1, PAPER)[1]
    parts += [line(_LEFT, y, end, y, "paper"), text(end + 8, y + 4, f"the paper: {PAPER:.2%}")]
    for number, (label, points) in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        placed = [place(devices, share) for devices, share in sorted(points)]
        parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in placed), stroke=colour))
        parts += [tag("circle", cx=x, cy=y, r=3.0, fill=colour) for x, y in placed]
        row = _TOP + 30 + 22 * number
        parts += [tag("rect", x=end + 8, y=row + 90, width=12, height=12, fill=colour)]
        parts.append(text(end + 26, row + 101, label))
    size = {"width": _WIDTH, "height": _HEIGHT, "viewBox": f"0 0 {_WIDTH:g} {_HEIGHT:g}"}
    return tag("svg", "".join(parts), xmlns="http://www.w3.org/2000/svg", **size) + "\n"


def _load(document: str) -> tuple[str, Points]:
    label, _, name = document.partition("=")
    try:
        points = parse_json(Path(name).read_text(encoding="utf-8"))["simulate"]
        return label, [(int(point["devices"]), float(point["reduction"])) for point in points]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            expected=f"LABEL=FILE with a document of nuwaxl-bench --simulate-devices --compare ar, not {document!r}",
            found=f"{type(error).__name__}: {error}",
            fix="write one with --json FILE",
        ) from error


if __name__ == "__main__":
    sys.exit(main())

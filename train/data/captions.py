"""Captions of a video: a JSON-lines file of {"frame": n, "text": "..."}, each holding until the next one."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from nuwaxl.errors import InputError, reason
from nuwaxl.formats import parse_json
from nuwaxl.train.data.kept import kept

# What another release learned may be something else.
_LEARNED_BY: list[Any] = ["captions", 1]


@dataclass(frozen=True)
class Captions:
    """Texts by the frame at which each begins; `frames` ascends from 0, neighbouring texts differ."""

    frames: tuple[int, ...]
    texts: tuple[str, ...]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """A caption file, kept from an earlier time or read now: entries in order of frame, the first for frame 0.

        Raises InputError, naming file and line, for anything else.
        """
        path = Path(path)
        table = kept(path, _LEARNED_BY, lambda: asdict(cls._read(path)))
        return cls(tuple(table["frames"]), tuple(table["texts"]))

    @classmethod
    def _read(cls, path: Path) -> Self:
        entries = read_entries(path)
        if entries[0][0] != 0:
            raise InputError(
                expected=f"an entry of frame 0 first in {path}",
                found=str(entries[0][0]),
                fix="caption the first frame too",
            )
        frames: list[int] = []
        texts: list[str] = []
        for frame, text in entries:
            if not texts or text != texts[-1]:
                frames.append(frame)
                texts.append(text)
        return cls(tuple(frames), tuple(texts))

    def text_at(self, frame: int) -> str:
        """The caption that holds at this frame (>= 0)."""
        if frame < 0:
            raise InputError(expected="a frame of at least 0", found=str(frame), fix="ask for a frame of the video")
        return self.texts[bisect_right(self.frames, frame) - 1]


def read_entries(path: Path) -> list[tuple[int, str]]:
    """All (frame, text) of a caption file, at least one, ascending by frame. Blank lines are skipped.

    Raises InputError, naming file and line, for anything else.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            expected=f"a UTF-8 caption file at {path}",
            found=reason(error),
            fix="write it, or have it written by nuwaxl-train data caption",
        ) from error
    entries: list[tuple[int, str]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        frame, text = _parse(line, f"{path}, line {number}")
        if entries and frame <= entries[-1][0]:
            raise InputError(
                expected=f"a frame above {entries[-1][0]} in {path}, line {number}",
                found=str(frame),
                fix="sort the lines by frame",
            )
        entries.append((frame, text))
    if not entries:
        raise InputError(expected=f"captions in {path}", found="an empty file", fix="caption at least frame 0")
    return entries


def _parse(line: str, where: str) -> tuple[int, str]:
    example = '{"frame": 0, "text": "..."}'
    try:
        entry = parse_json(line)
    except ValueError as error:
        raise InputError(expected=f"JSON in {where}", found=str(error), fix=f"write {example}") from error
    frame = entry.get("frame") if isinstance(entry, dict) else None
    text = entry.get("text") if isinstance(entry, dict) else None
    if isinstance(frame, bool) or not isinstance(frame, int) or frame < 0:
        raise InputError(
            expected=f"a whole frame number of at least 0 in {where}",
            found=repr(frame),
            fix=f"write {example}",
        )
    if not isinstance(text, str) or not text.strip() or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(expected=f"a text in {where}", found=repr(text), fix=f"write {example}")
    return frame, text.strip()

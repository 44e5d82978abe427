"""Captions for every n-th frame of the videos of a folder; an interrupted call is taken up where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np

from nuwaxl.errors import InputError
from nuwaxl.formats import parse_json
from nuwaxl.terminal import bar
from nuwaxl.train.data.videos import VideoFile, list_videos

Describe = Callable[[Sequence[np.ndarray]], list[str]]


@dataclass
class Outcome:
    """Names of the videos that have captions now, of those that had them before, and why others have none."""

    captioned: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


class PartialCaptions:
    """The captions written so far, in NAME.jsonl.partial: what made them on its first line, then one a line.

    The reader never takes it for a caption file, because of its name.
    """

    def __init__(self, path: Path, texts: list[str], every: int, size: int) -> None:
        self.path, self.texts, self._every, self._size = path, texts, every, size

    @classmethod
    def open(cls, path: Path, made_by: Mapping[str, Any], every: int, batch_size: int) -> Self:
        """Start the file, or go on with it. A last batch that is not whole is made again.

        Raises InputError if it was made by something else, or cannot be written.
        """
        try:
            return cls._open(path, made_by, every, batch_size)
        except OSError as error:
            raise InputError(
                expected=f"a folder {path.parent} where captions can be written",
                found=f"{error.strerror or error}: {path.name}",
                fix="change its permissions, or copy the videos",
            ) from error

    @classmethod
    def _open(cls, path: Path, made_by: Mapping[str, Any], every: int, batch_size: int) -> Self:
        first = json.dumps(made_by, sort_keys=True).encode() + b"\n"
        content = path.read_bytes() if path.exists() else b""
        lines = content.splitlines(keepends=True)
        if len(lines) < 2:  # nothing was captioned yet, perhaps not even the first line finished
            path.write_bytes(first)
            return cls(path, [], every, len(first))
        if lines[0] != first:
            raise _other_captions(path, "others")
        whole = [line for line in lines[1:] if line.endswith(b"\n")]
        whole = whole[: len(whole) // batch_size * batch_size]
        texts = []
        for number, line in enumerate(whole):
            try:
                entry = parse_json(line)
                frame, text = entry["frame"], str(entry["text"])
            except (ValueError, TypeError, KeyError) as error:
                raise _other_captions(path, f"line {number + 2} that is damaged") from error
            if frame != number * every:
                raise _other_captions(path, f"frame {frame} in line {number + 2}")
            texts.append(text)
        return cls(path, texts, every, len(first) + sum(map(len, whole)))

    def append(self, texts: Sequence[str]) -> None:
        """Write the texts of the frames that come next, at once."""
        start = len(self.texts)
        entries = [{"frame": (start + k) * self._every, "text": text} for k, text in enumerate(texts)]
        data = b"".join(json.dumps(entry, ensure_ascii=False).encode() + b"\n" for entry in entries)
        with self.path.open("r+b") as file:
            file.truncate(self._size)  # what a kill left of an unfinished batch
            file.seek(self._size)
            file.write(data)
        self._size += len(data)
        self.texts += texts

    def finish(self, out: Path) -> None:
        """Write the caption file, whole or not at all, and remove this one.

        A frame without a text is left out: the one before holds. Those at the beginning get the first text there is.
        Raises InputError if there is none.
        """
        entries = [(k * self._every, text) for k, text in enumerate(self.texts) if text]
        if not entries:
            raise InputError(
                expected=f"texts for {out.name}",
                found=f"none for all of {len(self.texts)} frames",
                fix="use another model",
            )
        entries[0] = (0, entries[0][1])
        written = out.with_suffix(".jsonl.written")
        lines = (json.dumps({"frame": frame, "text": text}, ensure_ascii=False) + "\n" for frame, text in entries)
        written.write_text("".join(lines), encoding="utf-8")
        os.replace(written, out)
        self.path.unlink()


def _other_captions(path: Path, found: str) -> InputError:
    return InputError(
        expected=f"captions of this video by this model and these options in {path}",
        found=found,
        fix="remove it to begin again, or use what made it",
    )


def _made_by(video: Path, model: str, every: int, max_tokens: int) -> dict[str, Any]:
    status = video.stat()
    return {
        "every": every,
        "max_tokens": max_tokens,
        "model": model,
        "video_bytes": status.st_size,
        "video_changed_ns": status.st_mtime_ns,
    }


def caption_folder(
    folder: Path,
    load: Callable[[], Describe],
    *,
    model: str,
    every: int,
    batch_size: int,
    max_tokens: int,
    show_progress: bool,
) -> Outcome:
    """Caption the videos that have no caption file yet; `model` identifies what `load` gives, in partial files.

    A video that cannot be read is named in the outcome, and the others are captioned. Raises InputError, before any
    work, if a partial file was made by something else.
    """
    outcome, todo = Outcome(), []
    for video in list_videos(folder):
        out = video.with_suffix(".jsonl")
        unfinished = out.with_suffix(".jsonl.partial")
        if out.exists():
            outcome.kept.append(video.name)
            unfinished.unlink(missing_ok=True)  # a kill came between the two files
            continue
        made_by = _made_by(video, model, every, max_tokens)
        todo.append((video, out, PartialCaptions.open(unfinished, made_by, every, batch_size)))
    if not todo:
        return outcome
    describe = load()
    for video, out, partial in todo:
        try:
            _caption(video, partial, describe, every, batch_size, show_progress)
            partial.finish(out)
            outcome.captioned.append(video.name)
        except InputError as error:
            outcome.failed[video.name] = error.found
    return outcome


def _caption(
    video: Path, partial: PartialCaptions, describe: Describe, every: int, batch_size: int, show_progress: bool
) -> None:
    with VideoFile(video) as file:
        numbers = range(0, len(file), every)
        done = len(partial.texts)
        frames = file.iterate(numbers[done:])
        with bar(show_progress, total=len(numbers), initial=done, desc=video.name, unit="frame") as progress:
            while batch := list(islice(frames, batch_size)):
                partial.append(describe(batch))
                progress.update(len(batch))

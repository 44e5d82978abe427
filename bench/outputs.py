"""The files that nuwaxl-bench leaves: checked before the render, and never half written."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nuwaxl.engine.checks import is_file_name, shown
from nuwaxl.engine.mp4 import check_output, link_target
from nuwaxl.errors import InputError, RenderError


@dataclass(frozen=True)
class Outputs:
    """Where the results go; None for those nobody asked for."""

    json: Path | None
    video: Path | None
    sheet: Path | None
    trace: Path | None
    report: Path | None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Those asked for."""
        paths = (self.json, self.video, self.sheet, self.trace, self.report)
        return tuple(path for path in paths if path is not None)


def check_outputs(
    *,
    json: str | None = None,
    video: str | None = None,
    sheet: str | None = None,
    trace: str | None = None,
    report: str | None = None,
    reads: Sequence[str | None] = (),
) -> Outputs:
    """Check that every file can be written, leaving nothing there. A video brings a sheet with it, beside it.

    Args:
        reads: files that are read, which no output may replace.

    Raises:
        InputError: a wrong suffix, a missing or unwritable folder, something there that is not a file, or two
            outputs of one name.
    """
    checked_video = None if video is None else check_output(video)
    if sheet is None and checked_video is not None:
        sheet = str(checked_video.with_suffix(".png"))
    outputs = Outputs(
        json=None if json is None else _check_file(json),
        video=checked_video,
        sheet=None if sheet is None else _check_file(sheet, ".png"),
        trace=None if trace is None else _check_file(trace),
        report=None if report is None else _check_file(report, ".html"),
    )
    taken = {os.path.realpath(name) for name in reads if name is not None and is_file_name(name)}
    for name in map(os.path.realpath, outputs.paths):
        if name in taken:
            raise InputError(
                expected="a name of its own for each file",
                found=f"{name} more than once",
                fix="give another name",
            )
        taken.add(name)
    return outputs


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete; one that exists is replaced.

    Raises:
        RenderError: the file system fails.
    """
    path = link_target(path)
    try:
        with _unfinished(path) as part:
            part.write_bytes(content)
            part.replace(path)
    except OSError as error:
        raise RenderError(f"writing {path} failed: {error}; check the free space of the disk") from error


def _check_file(name: str, suffix: str = "") -> Path:
    # os.path rather than Path's methods: those raise where a name is too long or a folder is closed to us.
    path = Path(name)
    if not is_file_name(name):
        raise InputError(expected="a name for the output file", found=shown(name), fix="give another name")
    if not path.name.lower().endswith(suffix):
        raise InputError(expected=f"an output file ending in {suffix}", found=name, fix="rename it")
    if os.path.exists(path) and not os.path.isfile(path):
        found = "a directory" if os.path.isdir(path) else "something that is not a regular file"
        raise InputError(expected=f"a file to write at {path}", found=found, fix="give another name")
    if not os.path.isdir(path.parent):
        raise InputError(
            expected=f"an existing folder {path.parent} to write {path.name} in",
            found="none",
            fix="create the folder",
        )
    try:
        with _unfinished(link_target(path)):
            pass
    except OSError as error:
        raise InputError(
            expected=f"a folder {path.parent} that can be written",
            found=error.strerror or str(error),
            fix="give another folder or change its permissions",
        ) from error
    return path


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """An empty file beside `path` under a name of its own, which is gone afterwards."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.touch()
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)

"""The files that nuwaxl-bench leaves, checked before the render."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nuwaxl.engine.mp4 import check_output
from nuwaxl.errors import InputError
from nuwaxl.files import check_file, is_file_name


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
        json=None if json is None else check_file(json),
        video=checked_video,
        sheet=None if sheet is None else check_file(sheet, ".png"),
        trace=None if trace is None else check_file(trace),
        report=None if report is None else check_file(report, ".html"),
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

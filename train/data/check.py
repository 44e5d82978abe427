"""What a folder of captioned videos is worth: which of its files training can use, and why not the others."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from nuwaxl.errors import InputError
from nuwaxl.terminal import bar
from nuwaxl.train.data.captions import read_entries
from nuwaxl.train.data.videos import VideoFile, list_videos


@dataclass(frozen=True)
class VideoReport:
    """One video. What is not known of an unreadable one is None; `problem` and `caption_problem` are the reasons.

    `captions` counts the entries of the caption file, `captioned_frames` the frames that have a text: an entry holds
    until the next one, so those from its first entry on. `first_uncaptioned` is the first frame without, or None.
    """

    video: str
    problem: str | None = None
    frames: int | None = None
    duration_s: float | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None
    captions: int = 0
    captioned_frames: int | None = None
    first_uncaptioned: int | None = None
    caption_problem: str | None = None

    @property
    def usable(self) -> bool:
        """Whether training takes this video."""
        return self.problem is None and self.caption_problem is None


def check_folder(folder: Path, decode: bool, show_progress: bool) -> list[VideoReport]:
    """Check every video of a folder; `decode` every frame too, not only their packets.

    Raises InputError if there are no videos at all.
    """
    videos = list_videos(folder)
    reports = []
    total = sum(video.stat().st_size for video in videos)
    with bar(show_progress, total=total, desc="check", unit="B", unit_scale=True) as progress:
        done = 0
        for video in videos:
            progress.set_postfix_str(video.name, refresh=False)
            reports.append(_check(video, decode, progress))
            done += video.stat().st_size
            progress.update(done - progress.n)
    return reports


def _check(video: Path, decode: bool, progress: tqdm) -> VideoReport:
    try:
        with VideoFile(video) as file:
            if decode:
                share = video.stat().st_size / len(file)
                file.verify(lambda: progress.update(share))
            frames = len(file)
            seen = {
                "frames": frames,
                "duration_s": round(file.duration, 3),
                "fps": round(file.fps, 3),
                "width": file.width,
                "height": file.height,
                "codec": file.codec,
            }
    except InputError as error:
        return VideoReport(video.name, problem=error.found)
    captions = video.with_suffix(".jsonl")
    try:
        entries = read_entries(captions)
    except InputError as error:
        found = f"{error.expected}; found {error.found}" if captions.exists() else f"no {captions.name}"
        return VideoReport(video.name, **seen, captioned_frames=0, first_uncaptioned=0, caption_problem=found)
    first, last = entries[0][0], entries[-1][0]
    problem = None
    if last >= frames:
        problem = f"a caption of frame {last}, past the end"
    elif first > 0:
        problem = f"no caption before frame {first}"
    return VideoReport(
        video.name,
        **seen,
        captions=len(entries),
        captioned_frames=max(0, frames - first),
        first_uncaptioned=0 if first > 0 else None,
        caption_problem=problem,
    )


def table(reports: Sequence[VideoReport]) -> str:
    """The reports for people: a line a video, then a summary."""
    rows = [("video", "frames", "duration", "size", "codec", "captions", "captioned", "problem")]
    for report in reports:
        if report.problem is not None:
            rows.append((report.video, *["-"] * 6, f"unreadable: {report.problem}"))
            continue
        seconds = round(report.duration_s or 0)
        duration = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        size = f"{report.width}x{report.height}"
        captioned = f"{report.captioned_frames}/{report.frames}"
        rows.append(
            (report.video, str(report.frames), duration, size, str(report.codec), str(report.captions), captioned,
             report.caption_problem or "")
        )  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells, row[-1]]).rstrip())
    usable = [report for report in reports if report.usable]
    frames = sum(report.frames or 0 for report in usable)
    lines.append(f"{len(usable)} of {len(reports)} videos can be trained on, {frames} frames")
    sizes = Counter(f"{report.width}x{report.height}" for report in usable)
    if len(sizes) > 1:
        counts = ", ".join(f"{count} of {size}" for size, count in sizes.most_common())
        lines.append(f"training takes videos of one size only: scale them ({counts})")
    return "\n".join(lines)


def to_json(folder: Path, decoded: bool, reports: Sequence[VideoReport]) -> str:
    """The reports for programs; `usable` as VideoReport says it."""
    videos = [{**asdict(report), "usable": report.usable} for report in reports]
    return json.dumps({"folder": str(folder), "decoded": decoded, "videos": videos}, indent=1) + "\n"

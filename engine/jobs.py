"""Batched offline rendering: a file of jobs in, a folder of videos and a summary out."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuwaxl.engine.checks import read_text, shown
from nuwaxl.engine.engine import Engine
from nuwaxl.engine.journal import complete_journal, discard_journal
from nuwaxl.engine.mp4 import check_output, comment_of
from nuwaxl.engine.request import Policy, Request, Task
from nuwaxl.engine.resumption import check_resumable, made_of
from nuwaxl.engine.stats import ProgressCallback, frames_made
from nuwaxl.engine.story import Story
from nuwaxl.engine.videos import VideoResult
from nuwaxl.errors import InputError, one_line
from nuwaxl.files import is_file_name, link_target, make_folder
from nuwaxl.formats import parse_json

SCHEMA = "nuwaxl-jobs/1"
_KEYS = {"story", "frames", "out", "seed", "steps", "guidance"}


@dataclass(frozen=True)
class JobLine:
    """One line of the jobs file: what it asks for, or why it cannot be rendered."""

    number: int  # of the line, from 1
    out: str | None  # as it was written
    path: Path | None
    task: Task | None
    error: InputError | None


@dataclass(frozen=True)
class Outcome:
    """How a job fared."""

    line: int
    out: str | None
    frames: int | None = None
    wall_s: float | None = None  # of a video that this run rendered
    error: str | None = None
    there: bool = False  # whether an earlier run had completed it
    segments: int | None = None
    restored: int | None = None  # of the segments those that an earlier run had finished


def read_jobs(file: Path, out_dir: Path) -> list[JobLine]:
    """The jobs of a .jsonl file, a JSON object a line: `story`, `frames`, `out`, optional `seed`, `steps`, `guidance`.

    `story` is relative to the file's folder, `out` lies below `out_dir`. A bad line is a job with an error.

    Raises:
        InputError: the file cannot be read, has no job, or no good one.
    """
    lines = read_text(file, "a readable jobs file").split("\n")  # splitlines would break a line at U+2028, too
    jobs: list[JobLine] = []
    outs, folders = set[Path](), set[Path]()
    for number, text in enumerate(lines, start=1):
        if text.strip():
            jobs.append(_job(number, text, file.parent, out_dir, outs, folders))
    if not jobs:
        raise InputError(
            expected=f"at least one job in {file}",
            found="none",
            fix='write lines such as {"story": "a.toml", "frames": 256, "out": "a.mp4"}',
        )
    _check_any({job.number: job.error for job in jobs if job.error is not None}, jobs)
    return jobs


def _check_any(bad: dict[int, InputError], jobs: list[JobLine]) -> None:
    """Refuse jobs that are all bad, by what is wrong with the first of them; `bad` is by line."""
    if len(bad) == len(jobs):
        number, error = next(iter(bad.items()))
        others = f" (other bad lines: {len(bad) - 1})" if len(bad) > 1 else ""
        raise InputError(
            expected=f"a job that can be rendered, with {error.expected} on line {number}",
            found=f"{error.found}{others}",
            fix=error.fix,
        )


def render_jobs(
    engine: Engine,
    jobs: list[JobLine],
    *,
    policy: Policy = "eager",
    max_batch: int | None = None,
    progress: ProgressCallback | None = None,
    on_begin: Callable[[int], None] | None = None,
    on_end: Callable[[Outcome], None] | None = None,
    fresh: bool = False,
) -> list[Outcome]:
    """Render the jobs together; each that cannot be rendered fails alone.

    What an earlier run had finished is not rendered again: neither videos that say they are of the same, nor what is in
    the journals beside them.

    Args:
        on_begin: called with the number of segments before they are rendered, if there are any.
        on_end: called with every outcome as soon as it is known.
        fresh: render everything anew.

    Raises:
        InputError: none can be rendered.
    """
    outcomes: dict[int, Outcome] = {}

    def note(outcome: Outcome) -> None:
        outcomes[outcome.line] = outcome
        if on_end is not None:
            on_end(outcome)

    good: list[tuple[JobLine, Path, Task]] = []
    segments = 0
    bad: dict[int, InputError] = {}
    for job in jobs:
        try:
            path, task, request = _checked(engine, job, fresh)
        except InputError as error:
            bad[job.number] = error
            continue
        if not fresh and comment_of(path) == made_of(engine.bundle.manifest, task.story, request):
            complete_journal(journal_of(path))  # a run that was killed between the two left it
            note(Outcome(job.number, job.out, request.frames, there=True))
        else:
            good.append((job, path, task))
            segments += len(request.plan)
    _check_any(bad, jobs)
    for job in jobs:
        if job.number in bad:
            note(Outcome(job.number, job.out, error=one_line(bad[job.number])))
    if good:
        if on_begin is not None:
            on_begin(segments)
        videos = engine.render_many(
            [task for _, _, task in good], policy=policy, max_batch=max_batch, progress=progress
        )
        videos.save(
            [path for _, path, _ in good], on_end=lambda number, result: note(_rendered(good[number][0], result))
        )
    return [outcomes[job.number] for job in jobs]


def summary(jobs_file: Path, outcomes: list[Outcome], wall_s: float, bundle_sha256: str) -> dict[str, Any]:
    """The document that says how all jobs fared; its frames are those of videos that this run completed, and
    frames_per_s leaves out the share of them whose segments were restored."""
    done = [outcome for outcome in outcomes if outcome.error is None]
    ours = [outcome for outcome in done if not outcome.there]
    frames = sum(outcome.frames or 0 for outcome in ours)
    made = sum(frames_made(outcome.frames or 0, outcome.segments or 1, outcome.restored or 0) for outcome in ours)
    return {
        "schema": SCHEMA,
        "jobs": str(jobs_file),
        "done": len(done),
        "there": sum(outcome.there for outcome in done),
        "failed": len(outcomes) - len(done),
        "frames": frames,
        "restored": sum(outcome.restored or 0 for outcome in ours),
        "wall_s": round(wall_s, 6),
        "frames_per_s": round(made / wall_s, 6),
        "bundle_sha256": bundle_sha256,
        "results": [vars(outcome) for outcome in outcomes],
    }


def _rendered(job: JobLine, result: VideoResult) -> Outcome:
    return Outcome(
        line=job.number,
        out=job.out,
        frames=result.frames,
        wall_s=round(result.end_s - result.start_s, 6),
        error=None if result.error is None else one_line(result.error),
        segments=result.segments,
        restored=result.restored,
    )


def _job(number: int, text: str, folder: Path, out_dir: Path, outs: set[Path], folders: set[Path]) -> JobLine:
    """`outs` and `folders` are those of the good jobs before it."""
    out, path = None, None
    try:
        table = _table(text)
        out = table["out"]
        path = _below(out_dir, out)
        if path in folders or any(place in outs for place in (path, *path.parents)):
            raise InputError(
                expected="an out of its own for each job, and none as the folder of another's",
                found=repr(out),
                fix="give another name",
            )
        story = Story.load(folder / table["story"])
        outs.add(path)
        folders.update(path.parents)
        options = {key: table[key] for key in _KEYS - {"story", "out"} if key in table}
        return JobLine(number, out, path, Task(story, **options, journal=journal_of(path)), None)
    except InputError as error:
        return JobLine(number, out if isinstance(out, str) else None, path, None, error)


def _table(text: str) -> dict[str, Any]:
    try:
        table = parse_json(text)
    except ValueError as error:
        raise InputError(expected="a JSON object", found=str(error), fix="correct the line") from error
    if not isinstance(table, dict):
        raise InputError(expected="a JSON object", found=type(table).__name__, fix="correct the line")
    if unknown := sorted(table.keys() - _KEYS):
        raise InputError(expected=f"only {', '.join(sorted(_KEYS))}", found=", ".join(unknown), fix="remove it")
    for key in ("story", "out"):
        if not is_file_name(table.get(key)):
            raise InputError(expected=f"a file name as {key}", found=shown(table.get(key)), fix="give one")
    return table


def _below(folder: Path, name: str) -> Path:
    """The file of that name below the folder, and nowhere else, not by a link either."""
    path = Path(os.path.normpath(folder / name))
    if Path(name).is_absolute() or Path(os.path.normpath(folder)) not in path.parents:
        raise InputError(expected=f"an out below {folder}", found=repr(name), fix="give a relative name without ..")
    real = Path(os.path.realpath(path))
    if not real.is_relative_to(os.path.realpath(folder)):
        raise InputError(
            expected=f"an out below {folder}",
            found=f"{name!r}, which a link leads out of it",
            fix="give another folder",
        )
    return real


def journal_of(video: Path) -> Path:
    """Where the journal of a video is that the command-line tool renders: beside the file that is written."""
    video = link_target(video)
    return video.with_name(f"{video.name}.journal")


def _checked(engine: Engine, job: JobLine, fresh: bool) -> tuple[Path, Task, Request]:
    """Where a job's video goes, and what it is; raises what is wrong with it."""
    if job.error is not None:
        raise job.error
    assert job.path is not None
    assert job.task is not None
    request = engine.resolve(job.task)
    make_folder(job.path.parent, fix="give another name")
    path = check_output(job.path)
    if fresh:
        discard_journal(journal_of(path))
    check_resumable(engine.bundle.manifest, job.task.story, request)
    return path, job.task, request

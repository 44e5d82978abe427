"""nuwaxl-render: a story in, an mp4 file out."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter

from nuwaxl.cli import Parser, non_negative_float, positive_int, run, say, seed
from nuwaxl.engine.bundle_schema import SAMPLERS
from nuwaxl.engine.devices import DEVICES_HELP
from nuwaxl.engine.engine import Engine
from nuwaxl.engine.jobs import Outcome, journal_of, read_jobs, render_jobs, summary
from nuwaxl.engine.journal import discard_journal
from nuwaxl.engine.mp4 import check_output
from nuwaxl.engine.progress_bars import ProgressBars
from nuwaxl.engine.request import DEFAULT_MAX_BATCH, POLICIES, Task
from nuwaxl.engine.story import Story
from nuwaxl.errors import InputError, RenderError
from nuwaxl.files import is_name, make_folder, write_file

PROG = "nuwaxl-render"

_DESCRIPTION = """\
Render a story into a video.

A story is a .toml file of scenes, each with the frame it starts at and its prompt:

  frames = 512        # optional, as are fps and seed
  [[scene]]
  at = 0
  prompt = "a man walks in the park"
  [[scene]]
  at = 200
  prompt = "he sits down on a bench"

or a .jsonl file of captions, one {"frame": 0, "text": "..."} a line.

With --jobs many stories are rendered together, which fills the devices better than one after another. A line of the
jobs file is one video:

  {"story": "a.toml", "frames": 512, "out": "a.mp4", "seed": 1, "steps": 10, "guidance": 2.0}

seed, steps and guidance are optional; story is relative to the jobs file, out lies below --out-dir. A job that fails
leaves the others alone; summary.json in --out-dir says how each fared.

What is finished of a video lies in a journal beside it, OUT.journal, until it is complete. When a render ends early,
whatever ends it, the same command goes on from there, on any devices; with --jobs, videos that are complete stay."""

_EPILOG = """\
exit status: 0 all was written, 1 the render or a job failed, 2 bad arguments or input, or no job that can be
rendered, 130 interrupted, 143 terminated"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.jobs is None:
        if arguments.story is None or arguments.out is None or arguments.out_dir is not None:
            missing = "no STORY" if arguments.story is None else "no --out"
            found = "--out-dir, no --jobs" if arguments.out_dir is not None else missing
            parser.error(f"expected a STORY and --out FILE, or --jobs FILE and --out-dir DIR; found {found}")
        return run(PROG, lambda: _render(arguments))
    of_one_story = ("story", "frames", "out", "seed", "steps", "guidance", "sampler", "depth", "negative_prompt")
    if wrong := [name for name in of_one_story if getattr(arguments, name) not in (None, "")]:
        name = "STORY" if wrong[0] == "story" else "--" + wrong[0].replace("_", "-")
        parser.error(f"expected {name} in the lines of the jobs file; found it beside --jobs; remove it")
    if arguments.out_dir is None:
        parser.error("expected --out-dir DIR with --jobs; found none")
    return run(PROG, lambda: _render_jobs(arguments))


def add_render_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that nuwaxl-render and nuwaxl-bench have in common."""
    parser.add_argument("--bundle", metavar="DIR", help="directory of the bundle (default: the demo bundle)")
    parser.add_argument(
        "--devices",
        default="cpu",
        metavar="LIST",
        help=DEVICES_HELP,
    )
    parser.add_argument("--tf32", action="store_true", help="let cuda:I round the factors of float32 products: faster")
    parser.add_argument("--seed", type=seed, metavar="N", help="seed of the noise (default: the story's, else 0)")
    parser.add_argument(
        "--steps", type=positive_int, metavar="N", help="denoising steps a segment (default: the bundle's)"
    )
    parser.add_argument(
        "--guidance", type=non_negative_float, metavar="X", help="guidance scale (default: the bundle's)"
    )
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default="eager",
        help="eager: a segment starts when its parent is done (default); level: when the depth above is; "
        "latency: eager, first frames first",
    )
    parser.add_argument(
        "--max-batch",
        type=positive_int,
        metavar="N",
        help=f"most segments a device denoises at once; the costs choose how many (default: {DEFAULT_MAX_BATCH})",
    )
    parser.add_argument("--sampler", choices=SAMPLERS, help="sampler (default: the bundle's)")
    parser.add_argument(
        "--depth",
        type=positive_int,
        metavar="M",
        help="depth of the tree (default: what the model was trained for, or the smallest that spans the frames where "
        "that is deeper)",
    )


def task_of(arguments: argparse.Namespace, story: Story) -> Task:
    """What the common arguments, and --frames, say of a story's render."""
    return Task(
        story,
        frames=arguments.frames,
        seed=arguments.seed,
        steps=arguments.steps,
        guidance=arguments.guidance,
        sampler=arguments.sampler,
        depth=arguments.depth,
    )


def _parser() -> Parser:
    parser = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("story", nargs="?", metavar="STORY", help="the story, .toml or .jsonl")
    parser.add_argument("--frames", type=positive_int, metavar="N", help="number of frames (default: the story's)")
    parser.add_argument("--out", metavar="FILE", help="the .mp4 file to write")
    parser.add_argument("--jobs", metavar="FILE", help="render many stories together: a .jsonl file, a job a line")
    parser.add_argument("--out-dir", metavar="DIR", help="with --jobs: the folder of the videos and of summary.json")
    add_render_arguments(parser)
    parser.add_argument(
        "--fresh", action="store_true", help="start over: remove the journal, and render complete videos again"
    )
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="prompt that guidance leads away from")
    return parser


def _render(arguments: argparse.Namespace) -> None:
    story = Story.load(arguments.story)
    out = check_output(arguments.out)
    journal = journal_of(out)
    task = replace(task_of(arguments, story), negative_prompt=arguments.negative_prompt, journal=journal)
    with (
        _kept(journal.exists, journal, arguments.fresh),
        Engine.open(arguments.bundle, devices=arguments.devices, tf32=arguments.tf32) as engine,
        ProgressBars() as bars,
    ):
        plan = engine.resolve(task).plan
        if arguments.fresh:  # what cannot be rendered costs no journal
            discard_journal(journal)
        going_on = journal.exists()
        video = engine.render(**vars(task), policy=arguments.policy, max_batch=arguments.max_batch, progress=bars)
        if going_on:
            print(f"going on with what is finished in {journal}", file=sys.stderr)
        bars.before(engine, len(plan), arguments.max_batch)
        video.save(out)
    stats = video.stats
    restored = f"; {stats.restored} of {stats.segments} segments were there before" if stats.restored else ""
    say(f"{out}: {stats.frames} frames in {stats.wall_s:.1f} s, {stats.frames_per_s:.1f} frames/s{restored}")


def _render_jobs(arguments: argparse.Namespace) -> None:
    if not is_name(arguments.out_dir):  # "" would be the folder one happens to be in
        raise InputError(expected="a name as --out-dir", found=repr(arguments.out_dir), fix="give another name")
    out_dir = Path(arguments.out_dir)
    jobs = read_jobs(Path(arguments.jobs), out_dir)
    make_folder(out_dir, fix="give another --out-dir")
    started = perf_counter()
    with (
        _kept(lambda: any(out_dir.rglob("*.mp4.journal")), out_dir, arguments.fresh),
        Engine.open(arguments.bundle, devices=arguments.devices, tf32=arguments.tf32) as engine,
        ProgressBars() as bars,
    ):
        outcomes = render_jobs(
            engine,
            jobs,
            policy=arguments.policy,
            max_batch=arguments.max_batch,
            progress=bars,
            on_begin=lambda segments: bars.before(engine, segments, arguments.max_batch),
            on_end=_print_outcome,
            fresh=arguments.fresh,
        )
    document = summary(Path(arguments.jobs), outcomes, perf_counter() - started, engine.bundle.sha256)
    write_file(out_dir / "summary.json", (json.dumps(document, indent=1) + "\n").encode())
    done, there, failed, restored = (document[key] for key in ("done", "there", "failed", "restored"))
    videos = f"{done} videos" + (f" ({there} of them there before)" if there else "")
    frames = f"{document['frames']} frames" + (f" ({restored} segments of them there before)" if restored else "")
    say(f"{out_dir}: {videos}, {frames} in {document['wall_s']:.1f} s; {failed} failed")
    if failed:
        raise RenderError(f"{failed} of {len(jobs)} jobs failed; {out_dir / 'summary.json'} says why")


@contextmanager
def _kept(anything: Callable[[], bool], place: Path, fresh: bool) -> Iterator[None]:
    """Say what a render that ends early leaves."""
    try:
        yield
    except InputError:
        raise
    except BaseException:
        if anything():
            command = "the same command without --fresh" if fresh else "the same command"
            print(f"what is finished is in {place}: {command} goes on from there", file=sys.stderr)
        raise


def _print_outcome(outcome: Outcome) -> None:
    if outcome.error is not None:
        print(f"job on line {outcome.line} failed: {outcome.error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())

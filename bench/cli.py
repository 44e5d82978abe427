"""nuwaxl-bench: render a long video, measure it, and report."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import resources

from nuwaxl.bench.measure import peak_rss_mib, run, versions
from nuwaxl.bench.outputs import Outputs, check_outputs, write_file
from nuwaxl.bench.report import Result
from nuwaxl.bench.sheet import ContactSheet
from nuwaxl.cli import Parser, positive_int
from nuwaxl.cli import run as run_command
from nuwaxl.engine import Engine, Story
from nuwaxl.engine.cli import add_render_arguments
from nuwaxl.engine.devices import available_cores
from nuwaxl.engine.progress_bars import ProgressBars

PROG = "nuwaxl-bench"
DEFAULT_FRAMES = 1024

_DESCRIPTION = """\
Render a long video and measure it: how long, how much memory, and how near to what the steps allow.

Without options it renders 1024 frames of the bundled story with the demo bundle, on two workers where there
are two cores (--devices cpu:2). It prints a report; files are written where options name them."""

_EPILOG = """\
exit status: 0 all was rendered and written, 1 the render failed, 2 bad arguments or input, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return run_command(PROG, lambda: _bench(arguments))


def bundled_story() -> Story:
    """The story that is rendered unless another is given."""
    with resources.as_file(resources.files("nuwaxl.bench") / "stories" / "demo.toml") as path:
        return Story.load(path)


def _parser() -> Parser:
    parser = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "--frames",
        type=positive_int,
        default=DEFAULT_FRAMES,
        metavar="N",
        help=f"number of frames (default: {DEFAULT_FRAMES})",
    )
    add_render_arguments(parser)
    parser.set_defaults(devices="cpu:2" if available_cores() > 1 else "cpu")
    parser.add_argument("--story", metavar="FILE", help="the story, .toml or .jsonl (default: a bundled one)")
    parser.add_argument("--json", metavar="FILE", help="write the measurements to this file")
    parser.add_argument("--out", metavar="FILE", help="write the video to this .mp4 file")
    parser.add_argument(
        "--sheet",
        metavar="FILE",
        help="write a contact sheet to this .png file (default with --out: beside the video)",
    )
    return parser


def _bench(arguments: argparse.Namespace) -> None:
    story = bundled_story() if arguments.story is None else Story.load(arguments.story)
    outputs = check_outputs(arguments.json, arguments.out, arguments.sheet, arguments.story)
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.open(arguments.bundle, devices=arguments.devices))
        video = engine.render(
            story,
            frames=arguments.frames,
            seed=arguments.seed,
            steps=arguments.steps,
            guidance=arguments.guidance,
            sampler=arguments.sampler,
            policy=arguments.policy,
            max_batch=arguments.max_batch,
            depth=arguments.depth,
            progress=stack.enter_context(ProgressBars()),
        )
        sheet = ContactSheet(story, frames=video.frames, height=video.height, width=video.width)
        stats = run(video, outputs.video, sheet.add)
    result = Result.of(
        stats,
        peak_rss_mib=peak_rss_mib(),
        versions=versions(),
        bundle_sha256=engine.bundle.sha256,
    )
    _write(outputs, result, sheet)
    print(result.summary())
    if outputs.paths:
        print(f"{'written':<12} {', '.join(map(str, outputs.paths))}")


def _write(outputs: Outputs, result: Result, sheet: ContactSheet) -> None:
    if outputs.sheet is not None:
        write_file(outputs.sheet, sheet.png())
    if outputs.json is not None:
        write_file(outputs.json, result.to_json().encode())


if __name__ == "__main__":
    sys.exit(main())

"""nuwaxl-render: a story in, an mp4 file out."""

import argparse
import sys
from collections.abc import Sequence

from nuwaxl.cli import Parser, non_negative_float, positive_int, run, seed
from nuwaxl.engine.bundle_schema import SAMPLERS
from nuwaxl.engine.engine import Engine
from nuwaxl.engine.mp4 import check_output
from nuwaxl.engine.progress_bars import ProgressBars
from nuwaxl.engine.request import DEFAULT_MAX_BATCH, POLICIES
from nuwaxl.engine.story import Story

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

or a .jsonl file of captions, one {"frame": 0, "text": "..."} a line."""

_EPILOG = """\
exit status: 0 the video was written, 1 the render failed, 2 bad arguments or input, 130 interrupted"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return run(PROG, lambda: _render(arguments))


def add_render_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that nuwaxl-render and nuwaxl-bench have in common."""
    parser.add_argument("--bundle", metavar="DIR", help="directory of the bundle (default: the demo bundle)")
    parser.add_argument(
        "--devices",
        default="cpu",
        metavar="LIST",
        help="cpu: one worker with all cores; cpu:2: two that share them",
    )
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
        help="eager: a segment starts when its parent is done (default); level: when the depth above is",
    )
    parser.add_argument(
        "--max-batch",
        type=positive_int,
        metavar="N",
        help=f"most segments denoised at once on a device (default: {DEFAULT_MAX_BATCH})",
    )
    parser.add_argument("--sampler", choices=SAMPLERS, help="sampler (default: the bundle's)")
    parser.add_argument(
        "--depth",
        type=positive_int,
        metavar="M",
        help="depth of the tree (default: the smallest that spans the frames)",
    )


def _parser() -> Parser:
    parser = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("story", metavar="STORY", help="the story, .toml or .jsonl")
    parser.add_argument("--frames", type=positive_int, metavar="N", help="number of frames (default: the story's)")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .mp4 file to write")
    add_render_arguments(parser)
    parser.add_argument("--negative-prompt", default="", metavar="TEXT", help="what to be guided away from")
    return parser


def _render(arguments: argparse.Namespace) -> None:
    story = Story.load(arguments.story)
    out = check_output(arguments.out)
    with Engine.open(arguments.bundle, devices=arguments.devices) as engine, ProgressBars() as bars:
        video = engine.render(
            story,
            frames=arguments.frames,
            seed=arguments.seed,
            steps=arguments.steps,
            guidance=arguments.guidance,
            sampler=arguments.sampler,
            policy=arguments.policy,
            max_batch=arguments.max_batch,
            negative_prompt=arguments.negative_prompt,
            depth=arguments.depth,
            progress=bars,
        )
        video.save(out)
    stats = video.stats
    print(f"{out}: {stats.frames} frames in {stats.wall_s:.1f} s, {stats.frames / stats.wall_s:.1f} frames/s")


if __name__ == "__main__":
    sys.exit(main())

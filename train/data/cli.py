"""nuwaxl-train data: draw cartoons, check a folder of videos, caption it, cache its latents."""

from __future__ import annotations

import argparse
from pathlib import Path

from nuwaxl.cli import positive_int, said_beside, say, seed
from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.files import check_file, write_file

_CHECK = """\
Check every video (.mp4, .mkv, .webm) of FOLDER and the captions beside it (same name, .jsonl).

All frames are decoded, so that damage shows here and not within a training. Exit status: 0 if training can use all of
them, 1 if not (unreadable, damaged, or frames without captions), 2 for bad arguments.
"""

_CAPTION = """\
Write a caption file beside every video of FOLDER that has none, using a captioning model such as GIT.

MODEL_DIR is a local directory in transformers' format (processor, tokenizer, safetensors); nothing is downloaded.
Until a file is whole it is named NAME.jsonl.partial; the same command continues where it stopped.
"""

_LATENTS = """\
Encode the videos of FOLDER with T-KLVAE once, so that training MTD with CONFIG.toml encodes nothing.

Latents are kept by video (name, size, time of change, sample of its bytes) and by network (weights, configuration, L).
"""


def add_data_commands(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    cartoon = commands.add_parser("cartoon", help="draw long cartoon episodes with a caption for every frame")
    cartoon.add_argument("out", type=Path, metavar="FOLDER")
    cartoon.add_argument("--episodes", type=positive_int, default=96, help="default %(default)s")
    cartoon.add_argument("--frames", type=positive_int, default=3600, help="frames an episode, default %(default)s")
    cartoon.add_argument("--seed", type=seed, default=7, help="default %(default)s")
    cartoon.add_argument("--force", action="store_true", help="replace episodes that are in FOLDER already")

    check = commands.add_parser("check", help="say which videos of a folder training can use", description=_CHECK)
    check.add_argument("folder", type=Path, metavar="FOLDER")
    check.add_argument("--json", type=Path, metavar="FILE", help="write the report to this file too")
    check.add_argument("--quick", action="store_true", help="read packets only, without decoding all frames")

    caption = commands.add_parser("caption", help="caption every n-th frame with a GIT model", description=_CAPTION)
    caption.add_argument("folder", type=Path, metavar="FOLDER")
    caption.add_argument("--model", type=Path, required=True, metavar="MODEL_DIR")
    caption.add_argument("--every", type=positive_int, default=1, metavar="N", help="default %(default)s: all frames")
    caption.add_argument("--batch-size", type=positive_int, default=16, metavar="N", help="default %(default)s")
    caption.add_argument("--max-tokens", type=positive_int, default=30, metavar="N", help="default %(default)s")
    caption.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", ..., default %(default)s')

    latents = commands.add_parser("latents", help="fill the latent cache of an MTD training", description=_LATENTS)
    latents.add_argument("folder", type=Path, metavar="FOLDER")
    latents.add_argument("--config", type=Path, required=True, metavar="CONFIG.toml", help="as nuwaxl-train mtd takes")
    latents.add_argument("--tklvae", metavar="FILE", help="weights, instead of the configuration's")
    latents.add_argument("--out", metavar="CACHE", help="folder of the cache, instead of the configuration's")
    latents.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", ..., default %(default)s')


def run_data_command(arguments: argparse.Namespace) -> None:
    {"cartoon": _cartoon, "check": _check, "caption": _caption, "latents": _latents}[arguments.what](arguments)


def require_torch() -> None:
    """Raises InputError if PyTorch is not installed."""
    try:
        import torch  # noqa: F401  (asked for here, so that its absence is one clear line)
    except ImportError as error:
        raise InputError(
            expected="PyTorch for training", found=str(error), fix="pip install 'nuwaxl[train]'"
        ) from error


def _cartoon(arguments: argparse.Namespace) -> None:
    from nuwaxl.train.data.cartoon import generate

    paths = generate(arguments.out, arguments.episodes, arguments.frames, arguments.seed, force=arguments.force)
    say(f"{len(paths)} episodes of {arguments.frames} frames in {arguments.out}")


def _check(arguments: argparse.Namespace) -> None:
    require_torch()
    from nuwaxl.train.data.check import check_folder, table, to_json

    out = None if arguments.json is None else check_file(arguments.json)  # before the videos are decoded
    reports = check_folder(arguments.folder, not arguments.quick, show_progress=True)
    if out is not None:
        write_file(out, to_json(arguments.folder, not arguments.quick, reports).encode())
    with said_beside([] if out is None else [out]):
        say(table(reports))
    unusable = [report.video for report in reports if not report.usable]
    if unusable:
        raise NuwaxlError(
            f"expected readable videos with captions for all frames; found {len(unusable)} of {len(reports)} that are "
            f"not ({', '.join(unusable)}); repair or caption them, or move them out of the folder"
        )


def _caption(arguments: argparse.Namespace) -> None:
    require_torch()
    from nuwaxl.train.data.captioner import Captioner, check_model, digest
    from nuwaxl.train.data.captioning import caption_folder
    from nuwaxl.train.devices import torch_device

    device = torch_device(arguments.device, "--device")
    check_model(arguments.model)
    outcome = caption_folder(
        arguments.folder,
        lambda: Captioner(arguments.model, device, arguments.max_tokens).describe,
        model=digest(arguments.model),
        every=arguments.every,
        batch_size=arguments.batch_size,
        max_tokens=arguments.max_tokens,
        show_progress=True,
    )
    say(f"{len(outcome.captioned)} videos captioned, {len(outcome.kept)} had captions")
    if outcome.failed:
        failures = "; ".join(f"{name}: {reason}" for name, reason in outcome.failed.items())
        raise NuwaxlError(f"expected captions for all videos; found {len(outcome.failed)} that failed ({failures})")


def _latents(arguments: argparse.Namespace) -> None:
    require_torch()
    from nuwaxl.train.cache_latents import cache_latents
    from nuwaxl.train.devices import torch_device

    paths = cache_latents(
        arguments.folder,
        arguments.config,
        arguments.tklvae,
        arguments.out,
        torch_device(arguments.device, "--device"),
        show_progress=True,
    )
    size = sum(path.stat().st_size for path in paths)
    say(f"{paths[0].parent}: latents of {len(paths)} videos, {size / 2**20:.1f} MiB")

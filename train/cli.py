"""nuwaxl-train: make training data, train T-KLVAE, train MTD."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nuwaxl.cli import Parser, positive_int, run, say, seed
from nuwaxl.errors import InputError
from nuwaxl.files import check_file
from nuwaxl.train.data.cli import add_data_commands, require_torch, run_data_command
from nuwaxl.train.presets import PRESETS

_DESCRIPTION = """\
Train the networks of NUWA-XL on a folder of long, captioned videos.

From nothing to weights that nuwaxl-export takes; train/demo/README.md has the demo's stages and their configurations:
  nuwaxl-train data cartoon out/cartoons --episodes 96
  nuwaxl-train tklvae CONFIG.toml  the image autoencoder, then from its weights the temporal layers
  nuwaxl-train mtd CONFIG.toml     the diffusion; writes OUT/model/

To train in several processes, on GPUs or CPUs, use "accelerate launch --module nuwaxl.train":
each process takes its share of each batch (docs/training.md).
"""


_EPILOG = """\
exit status: 0 all was done, 1 it failed, 2 bad arguments or input, 130 interrupted, 143 terminated; nuwaxl-train
COMMAND --help says more about a command, docs/training.md about the configuration"""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="nuwaxl-train", description=_DESCRIPTION, epilog=_EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (("tklvae", 'train T-KLVAE (or, with temporal = "none", the image KLVAE)'), ("mtd", "train MTD")):
        command = commands.add_parser(
            name, help=text, description=f"{text}; every key of CONFIG is documented in docs/training.md"
        )
        command.add_argument("config", type=Path, metavar="CONFIG.toml")
        command.add_argument(
            "--resume",
            action="store_true",
            help="go on from the newest checkpoint in the output folder, if there is one",
        )
        command.add_argument("--data", help="folder of videos, instead of the configuration's")
        command.add_argument("--out", help="output folder, instead of the configuration's")
        command.add_argument("--steps", type=positive_int, help="optimiser steps, instead of the configuration's")
        command.add_argument("--device", help='"auto", "cpu", "cuda", ..., instead of the configuration\'s')

    add_data_commands(commands.add_parser("data", help="make, check, caption and encode training data"))

    init = commands.add_parser("init", help="make a model directory from Stable Diffusion 1.x weights, or at random")
    weights = init.add_mutually_exclusive_group(required=True)
    weights.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="SD_DIR",
        help="folder in the diffusers format: unet, vae, text_encoder, tokenizer",
    )
    weights.add_argument(
        "--random", choices=sorted(PRESETS), help="random weights for a preset, to measure size and speed with"
    )
    init.add_argument("out", type=Path, metavar="OUT_DIR")
    init.add_argument("--length", type=positive_int, default=16, help="L, frames a diffusion, default %(default)s")
    init.add_argument("--height", type=positive_int, default=256, help="in pixels, default %(default)s")
    init.add_argument("--width", type=positive_int, default=256, help="in pixels, default %(default)s")
    init.add_argument("--seed", type=seed, default=0, help="of the random weights, default %(default)s")

    describe = commands.add_parser("describe", help="count a model's parameters by part")
    describe.add_argument("model", metavar="PRESET|MODEL_DIR", help='"sd15" or a model directory')

    curve = commands.add_parser("curve", help="draw a training's loss curve from its log.jsonl")
    curve.add_argument("log", type=Path, metavar="LOG.jsonl")
    curve.add_argument("out", type=Path, metavar="OUT.png")
    curve.add_argument("--figures", nargs="+", default=["loss"], metavar="NAME", help="names in the log, default loss")

    pack = commands.add_parser("pack", help="copy a model directory with its weights in float16")
    pack.add_argument("model", type=Path, metavar="MODEL_DIR")
    pack.add_argument("out", type=Path, metavar="OUT_DIR")
    return parser


def _require_accelerate() -> None:
    require_torch()
    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise InputError(
            expected="Hugging Face Accelerate for training", found=str(error), fix="pip install 'nuwaxl[train]'"
        ) from error


def _train(arguments: argparse.Namespace) -> None:
    _require_accelerate()
    from nuwaxl.train.config import from_table
    from nuwaxl.train.distributed import Processes
    from nuwaxl.train.loop import check_output, train
    from nuwaxl.train.mtd import MTDTask
    from nuwaxl.train.run import RunConfig, read_tables
    from nuwaxl.train.signals import end_at_signals, heed_one_signal
    from nuwaxl.train.task import Task
    from nuwaxl.train.tklvae import TKLVAETask

    tables = read_tables(arguments.config)
    options = {name: getattr(arguments, name) for name in ("data", "out", "steps", "device")}
    given = {name: value for name, value in options.items() if value is not None}
    run = from_table(RunConfig, {**tables.get("run", {}), **given}, f"[run] of {arguments.config}")
    check_output(run, arguments.resume)  # before the task indexes videos and encodes them
    with heed_one_signal():
        try:
            with end_at_signals():
                Processes.join(run)
            kind = TKLVAETask if arguments.command == "tklvae" else MTDTask
            task: Task = kind(tables, run, show_progress=True)
            model = train(task, run, arguments.resume, show_progress=True)
            if Processes.join(run).leads:
                say(model)
        finally:
            Processes.leave()


def _init(arguments: argparse.Namespace) -> None:
    require_torch()
    from nuwaxl.train.init import init_model
    from nuwaxl.train.random_init import random_model, sized

    size = (arguments.length, arguments.height, arguments.width)
    if arguments.random is None:
        init_model(arguments.source, arguments.out, *size, arguments.seed)
    else:
        random_model(sized(PRESETS[arguments.random], *size), arguments.out, arguments.seed)
    say(f"{arguments.out}: {sum(path.stat().st_size for path in arguments.out.iterdir()) / 2**20:.1f} MiB")


def _describe(arguments: argparse.Namespace) -> None:
    require_torch()
    from nuwaxl.train.describe import find_config, table

    say(table(find_config(arguments.model)))


def _curve(arguments: argparse.Namespace) -> None:
    from nuwaxl.train.curve import draw, read_log

    out = check_file(arguments.out, ".png")
    draw(read_log(arguments.log, arguments.figures), out)
    say(arguments.out)


def _pack(arguments: argparse.Namespace) -> None:
    require_torch()
    from nuwaxl.train.checkpoint import pack

    say(f"{arguments.out}: {pack(arguments.model, arguments.out) / 2**20:.1f} MiB")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    commands = {
        "data": run_data_command,
        "init": _init,
        "describe": _describe,
        "curve": _curve,
        "pack": _pack,
        "tklvae": _train,
        "mtd": _train,
    }
    return run("nuwaxl-train", lambda: commands[arguments.command](arguments))

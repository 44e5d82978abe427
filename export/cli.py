"""nuwaxl-export: a trained checkpoint in, a bundle out."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from nuwaxl.cli import Parser, non_negative_float, non_negative_int, positive_int, run, say
from nuwaxl.engine.bundle_schema import PRECISIONS, SAMPLERS, Sampler
from nuwaxl.engine.runners.onnxruntime import forbid_telemetry
from nuwaxl.errors import InputError
from nuwaxl.export.tensorrt import cli as plan_options

PROG = "nuwaxl-export"
_NEEDED = ("torch", "safetensors", "onnx", "onnxscript", "onnxruntime")
_NEEDED_FOR_PLANS = ("onnx", "onnxruntime")

_DESCRIPTION = """\
Export a trained checkpoint as a bundle: the directory that nuwaxl-render and nuwaxl-bench run, without torch.

MODEL_DIR holds config.json, tklvae.safetensors, mtd.safetensors, text.safetensors and tokenizer.json.
OUT_DIR gets five ONNX graphs (text, prepare, step, decode, encode), large weights in files beside them, the
tokenizer and manifest.json. Each graph is run on ONNX Runtime against torch in float32 first; if any differs by more
than 1e-4 relative (fp16 1e-2, bf16 6e-2), nothing is written.

With --target and without OUT_DIR, the first argument is a bundle, and TensorRT plans of its graphs are added to it:
  nuwaxl-export bundle --target tensorrt-rtx --sm 89,120     (no GPU needed)
  nuwaxl-export bundle --target tensorrt                     (on the GPU that will run it)"""

_EPILOG = """\
exit status: 0 the bundle was written, 1 a graph differs from torch, 2 bad arguments or input, 130 interrupted,
143 terminated"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    arguments = _parser().parse_args(argv)
    return run(PROG, lambda: _export(arguments))


def _parser() -> Parser:
    parser = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument("checkpoint", type=Path, metavar="MODEL_DIR", help="what nuwaxl-train wrote, or a bundle")
    parser.add_argument(
        "out", type=Path, nargs="?", metavar="OUT_DIR", help="the bundle to write; must be empty or absent"
    )
    parser.add_argument("--name", help="name in the manifest (default: the model directory's)")
    parser.add_argument(
        "--with-checkpoint",
        action="store_true",
        help="put the checkpoint into the bundle as well, for --devices torch:cuda:0 (docs/gpu.md)",
    )
    parser.add_argument("--force", action="store_true", help="replace the bundle at OUT_DIR, if there is one")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of weights and activations; delicate parts stay in float32 (default: fp32)",
    )
    parser.add_argument(
        "--decode-overlap",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="frames of context on each side of a decoded window (default: 0)",
    )
    parser.add_argument(
        "--sm",
        type=plan_options.numbers,
        default=(),
        metavar="LIST",
        help="write the graphs for NVIDIA GPUs, and into the bundle the kernels that they call, compiled for these "
        "compute capabilities without the dot, as in 80,86,89,90,100,120 (no GPU needed); with --target tensorrt, the "
        "GPU here among them; with --target tensorrt-rtx, the GPUs to build plans for",
    )
    defaults = parser.add_argument_group("what the bundle renders by unless asked (default: what config.json says)")
    defaults.add_argument("--sampler", choices=SAMPLERS)
    defaults.add_argument("--steps", type=positive_int, metavar="N", help="denoising steps a segment")
    defaults.add_argument("--guidance", type=non_negative_float, metavar="X", help="guidance scale")
    defaults.add_argument("--depth", type=positive_int, metavar="M", help="depth of the tree that it was trained for")
    plan_options.add_arguments(parser)
    return parser


def _export(arguments: argparse.Namespace) -> None:
    _check_target(arguments)
    if arguments.out is None:
        _require_packages(_NEEDED_FOR_PLANS)
        wanted = plan_options.checked(arguments)
        if arguments.dry_run:
            plan_options.estimate(arguments.checkpoint, wanted)
        else:
            plan_options.build(arguments.checkpoint, wanted, arguments.refit_from)
        return
    # What plans want is seen to before the export, which takes long.
    plans = plan_options.checked(arguments) if arguments.target else None
    _require_packages(_NEEDED)
    # Imported here, so that --help and the message above come without torch.
    from nuwaxl.export.model import CHECKPOINT_FILES, load_model
    from nuwaxl.export.stages import Stages
    from nuwaxl.export.write import Written, check_output, export_bundle

    check_output(arguments.out, arguments.force)
    with Stages() as stage:
        stage(f"reading {arguments.checkpoint}")
        model = load_model(arguments.checkpoint)
        trained = model.config.sampler
        sampler = Sampler(
            name=arguments.sampler or trained.name,
            steps=trained.steps if arguments.steps is None else arguments.steps,
            guidance=trained.guidance if arguments.guidance is None else arguments.guidance,
            depth=trained.depth if arguments.depth is None else arguments.depth,
        )

        def progress(graph: Written) -> None:
            stage()
            error = f"relative error {graph.parity.relative:.1e}"
            if graph.parity.relative == 0.0:
                error = f"mean difference {graph.parity.pixels:.1e} of 255"
            say(f"{graph.name:8} {graph.bytes / 1e6:7.2f} MB  {error}  {graph.seconds:.1f} s")

        def finish(folder: Path) -> None:
            stage()
            if plans:
                plan_options.build(folder, plans, arguments.refit_from)

        export_bundle(
            model,
            arguments.out,
            name=arguments.name or arguments.checkpoint.resolve().name,
            sampler=sampler,
            decode_overlap=arguments.decode_overlap,
            precision=arguments.precision,
            kernels_for=() if arguments.target == "tensorrt-rtx" else arguments.sm,
            force=arguments.force,
            files=[arguments.checkpoint / name for name in CHECKPOINT_FILES] if arguments.with_checkpoint else [],
            stage=stage,
            progress=progress,
            finish=finish,
        )
    say(f"{arguments.out}: written")


def _check_target(arguments: argparse.Namespace) -> None:
    """Refuse combinations of options that say nothing, before any work."""
    if arguments.out is None and arguments.target is None:
        raise InputError(
            expected="OUT_DIR, or --target for a bundle that is there",
            found="neither",
            fix="name the bundle to write, or give --target tensorrt-rtx",
        )
    if arguments.target is None and (arguments.refit or arguments.refit_from or arguments.dry_run):
        raise InputError(
            expected="--target with --refit, --refit-from and --dry-run", found="no --target", fix="give --target"
        )
    if arguments.dry_run and arguments.out is not None:
        raise InputError(
            expected="a bundle alone for --dry-run, whose graphs are read",
            found="OUT_DIR",
            fix="export first, then: nuwaxl-export BUNDLE --target ... --dry-run",
        )


def _require_packages(packages: Sequence[str]) -> None:
    forbid_telemetry()
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                expected=f"the package {package}", found=str(error), fix="pip install 'nuwaxl[export]'"
            ) from error


if __name__ == "__main__":
    sys.exit(main())

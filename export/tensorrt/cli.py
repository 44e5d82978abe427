"""The options of nuwaxl-export that build TensorRT plans, and what the terminal shows meanwhile."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import TracebackType
from typing import Any

from nuwaxl.cli import positive_int
from nuwaxl.engine.bundle import Bundle, read_manifest
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.engine.plans import RUNTIMES
from nuwaxl.export.tensorrt.gate import BundleGate
from nuwaxl.export.tensorrt.plans import BATCHES, Options, Step, add_plans, dry_run, options
from nuwaxl.terminal import bar, on_terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--target and what belongs to it."""
    group = parser.add_argument_group("TensorRT plans (docs/tensorrt.md)")
    group.add_argument("--target", choices=RUNTIMES, help="build plans for this runtime too, into plans/ of the bundle")
    group.add_argument(
        "--batches",
        type=numbers,
        default=BATCHES,
        metavar="N,N",
        help=f"batch sizes of the plans, one optimisation profile each (default: {','.join(map(str, BATCHES))})",
    )
    group.add_argument("--refit", action="store_true", help="plans that can take other weights; needs a GPU")
    group.add_argument(
        "--refit-from",
        type=Path,
        metavar="BUNDLE",
        help="instead of building, refit the plans of another bundle, built with --refit, with this one's weights",
    )
    group.add_argument("--dry-run", action="store_true", help="say what building would take, and build nothing")


def checked(arguments: argparse.Namespace) -> Options:
    """The plans that the arguments ask for, as far as this machine can build them.

    Raises:
        InputError: see options; or the bundle to refit from is none.
    """
    if arguments.refit_from is not None:
        read_manifest(arguments.refit_from)
    refit = arguments.refit or arguments.refit_from is not None
    kernels_too = arguments.out is not None
    return options(arguments.target, arguments.sm, arguments.batches, refit, kernels_too)


def build(folder: Path, wanted: Options, refit_from: Path | None) -> None:
    """Build the plans that are wanted into the bundle at `folder`.

    Raises:
        InputError, BuildError, PlanRefused: see add_plans.
    """
    with _Terminal() as terminal:
        if refit_from is None:
            add_plans(folder, wanted, progress=terminal, gate=BundleGate())
        else:
            # It wants onnx.
            from nuwaxl.export.tensorrt.refit import refit_plans

            refit_plans(folder, refit_from, wanted, progress=terminal, gate=BundleGate())


def estimate(folder: Path, wanted: Options) -> None:
    """Print what building into the bundle at `folder` would take."""
    bundle = Bundle.open(folder)
    print(f"{wanted.runtime} {wanted.version}, SM {', '.join(map(str, wanted.sm))}")
    for line in dry_run(bundle, wanted):
        print(line)


class _Terminal:
    """A bar a plan on stderr where that is a terminal, and a line a plan on stdout."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._drawn = on_terminal()

    def __enter__(self) -> _Terminal:
        return self

    def __call__(self, step: Step) -> None:
        if step.finished:
            self._close()
            if step.dropped:
                sizes = f"SM {', '.join(map(str, step.plan.sm))}, batches {','.join(map(str, step.plan.batches))}"
                print(f"{_name(step.plan)}  dropped: {step.plan.runtime} {step.plan.version}, {sizes}", flush=True)
                return
            names = ", ".join(step.plan.accepted_on)
            state = f"accepted on {names}" if names else "unverified: not run yet"
            made = "there already" if step.kept else f"{step.bytes / 1e6:.1f} MB  {step.seconds:.1f} s"
            print(f"{_name(step.plan)}  {made}  {state}", flush=True)
            return
        if not self._drawn:
            return
        if self._bar is None:
            self._bar = bar(total=100, desc=step.plan.graph, unit="%", bar_format="{desc}: {bar} {n:.0f} % {elapsed}")
        self._bar.set_description(f"{step.plan.graph}: {step.phase}", refresh=False)
        self._bar.update(100 * step.done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


def _name(plan: Plan) -> str:
    return f"{plan.graph:8} {plan.file.split('/')[-1][:12]}"


def numbers(text: str) -> tuple[int, ...]:
    """Argument type: whole numbers of at least 1, each once, in order."""
    return tuple(sorted({positive_int(each.strip()) for each in text.split(",")}))

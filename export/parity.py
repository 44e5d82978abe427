"""The gate of every export: a graph run on ONNX Runtime must give what torch gives, or it is not written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nuwaxl.engine.bundle_schema import Network, PrecisionName
from nuwaxl.errors import NuwaxlError
from nuwaxl.export.emulation import open_session
from nuwaxl.export.samples import GraphSource


@dataclass(frozen=True)
class Limits:
    """How far a graph may be from the trained networks, which compute in float32.

    Attributes:
        relative: largest ||found - expected|| / ||expected|| of an output.
        pixel: largest difference of an integer output,
        pixels: and the largest mean difference.
    """

    relative: float
    pixel: int
    pixels: float


# About three times what the demo model has in that precision; guidance multiplies a prediction's rounding by its scale.
LIMITS: dict[PrecisionName, Limits] = {
    "fp32": Limits(relative=1e-4, pixel=1, pixels=1e-3),
    "fp16": Limits(relative=1e-2, pixel=6, pixels=0.2),
    "bf16": Limits(relative=6e-2, pixel=32, pixels=1.5),
}
_BATCHES, _BATCHES_OF_LARGE = (1, 5), (1,)


class ParityError(NuwaxlError):
    """A graph whose answers are not torch's. Command-line tools exit with status 1."""


@dataclass(frozen=True)
class Parity:
    """The largest errors found over all outputs and batches; 0 where a graph has no such output.

    `pixels` is the mean difference of an integer output.
    """

    relative: float = 0.0
    pixels: float = 0.0

    def largest(self, other: Parity) -> Parity:
        return Parity(max(self.relative, other.relative), max(self.pixels, other.pixels))


def batches(network: Network) -> Sequence[int]:
    """Numbers of segments the gate runs a graph on: 1 and 5, or 1 where a segment alone takes minutes and gigabytes."""
    return _BATCHES_OF_LARGE if network.large else _BATCHES


def check_parity(
    source: GraphSource,
    path: Path,
    seed: int,
    precision: PrecisionName = "fp32",
    batches: Sequence[int] = _BATCHES,
    stage: Callable[[str], None] = lambda _: None,
) -> Parity:
    """Run a graph's file on ONNX Runtime against torch on fresh random inputs.

    ONNX Runtime multiplies no matrices in bfloat16 on the CPU: such a graph is run as emulation.py says. `stage` is
    called with what begins.

    Raises:
        ParityError: an output of another shape or type, not finite, or further from torch's than the limits.
    """
    stage("running torch")
    samples = []
    for batch in batches:
        with torch.no_grad():
            sample = source.sample(batch, torch.Generator().manual_seed(seed + batch))
            answer = {name: tensor.numpy() for name, tensor in sample.answer().items()}
        samples.append((batch, sample.inputs, answer))
    worst = Parity()
    stage("opening it in ONNX Runtime")
    session = open_session(path, precision)
    stage("running ONNX Runtime")
    for batch, tensors, expected in samples:
        # numpy has no bfloat16, and the emulation takes it as float32.
        inputs = {n: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for n, t in tensors.items()}
        try:
            found = session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise ParityError(f"graph {source.name}, batch {batch}: ONNX Runtime fails: {error}") from error
        for name, array in zip(source.outputs, found, strict=True):
            where = f"graph {source.name}, output {name}, batch {batch}"
            if precision == "fp16" and array.dtype == np.float16:
                array = array.astype(np.float32)
            worst = worst.largest(compare(where, array, expected[name], LIMITS[precision]))
    return worst


def compare(
    where: str, found: NDArray[np.generic], expected: NDArray[np.generic], limits: Limits = LIMITS["fp32"]
) -> Parity:
    """The error of one output.

    Raises:
        ParityError: beginning with `where`, with the error and its limit.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        raise ParityError(
            f"{where}: ONNX Runtime gives {found.dtype} {found.shape}, torch {expected.dtype} {expected.shape}"
        )
    if np.issubdtype(expected.dtype, np.integer):
        distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
        largest, mean = int(distance.max()), float(distance.mean())
        if largest > limits.pixel or mean > limits.pixels:
            raise ParityError(
                f"{where}: values up to {largest} from torch's, {mean:.2g} on average; "
                f"the limits are {limits.pixel} and {limits.pixels:.2g}"
            )
        return Parity(pixels=mean)
    for runtime, values in (("ONNX Runtime", found), ("torch", expected)):
        if not np.isfinite(values).all():
            raise ParityError(f"{where}: values of {runtime} are not finite")
    error = _relative_error(found, expected)
    if error > limits.relative:
        raise ParityError(f"{where}: relative error {error:.2e} against torch; the limit is {limits.relative:.0e}")
    return Parity(relative=error)


def _relative_error(found: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    wide = expected.astype(np.float64)
    distance, size = float(np.linalg.norm(found - wide)), float(np.linalg.norm(wide))
    if size == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return distance / size

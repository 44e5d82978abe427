"""The gate of every export: a graph run on ONNX Runtime must give what torch gives, or it is not written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nuwaxl.engine.runners.onnxruntime import load_onnxruntime
from nuwaxl.errors import NuwaxlError
from nuwaxl.export.samples import GraphSource

BATCHES = (1, 5)
FLOAT_LIMIT = 1e-4  # largest ||found - expected|| / ||expected||
INTEGER_LIMIT = 1  # largest difference of an integer output,
INTEGER_SHARE = 1e-3  # and the largest share of its values that may differ at all


class ParityError(NuwaxlError):
    """A graph whose answers are not torch's. Command-line tools exit with status 1."""


@dataclass(frozen=True)
class Parity:
    """The largest errors found over all outputs and batches; 0 where a graph has no such output."""

    relative: float = 0.0
    differing: float = 0.0

    def largest(self, other: Parity) -> Parity:
        return Parity(max(self.relative, other.relative), max(self.differing, other.differing))


def check_parity(source: GraphSource, content: bytes, seed: int) -> Parity:
    """Run a serialized graph on ONNX Runtime against torch on fresh random inputs of 1 and of 5 segments.

    Raises:
        ParityError: an output of another shape or type, not finite, or further from torch's than the limits.
    """
    session = load_onnxruntime().InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = Parity()
    for batch in BATCHES:
        with torch.no_grad():
            sample = source.sample(batch, torch.Generator().manual_seed(seed + batch))
        inputs = {name: tensor.numpy() for name, tensor in sample.inputs.items()}
        try:
            found = session.run(list(sample.outputs), inputs)
        except Exception as error:  # ONNX Runtime's errors have no common base class
            raise ParityError(f"graph {source.name}, batch {batch}: ONNX Runtime fails: {error}") from error
        for (name, expected), array in zip(sample.outputs.items(), found, strict=True):
            where = f"graph {source.name}, output {name}, batch {batch}"
            worst = worst.largest(compare(where, array, expected.numpy()))
    return worst


def compare(where: str, found: NDArray[np.generic], expected: NDArray[np.generic]) -> Parity:
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
        share = float((distance > 0).mean())
        if distance.max() > INTEGER_LIMIT or share > INTEGER_SHARE:
            raise ParityError(
                f"{where}: up to {distance.max()} apart and {share:.2%} of values differ from torch; "
                f"the limits are {INTEGER_LIMIT} and {INTEGER_SHARE:.2%}"
            )
        return Parity(differing=share)
    for runtime, values in (("ONNX Runtime", found), ("torch", expected)):
        if not np.isfinite(values).all():
            raise ParityError(f"{where}: values of {runtime} are not finite")
    error = _relative_error(found.astype(np.float64), expected.astype(np.float64))
    if error > FLOAT_LIMIT:
        raise ParityError(f"{where}: relative error {error:.2e} against torch; the limit is {FLOAT_LIMIT:.0e}")
    return Parity(relative=error)


def _relative_error(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    distance, size = float(np.linalg.norm(found - expected)), float(np.linalg.norm(expected))
    if size == 0.0:
        return 0.0 if distance == 0.0 else float("inf")
    return distance / size

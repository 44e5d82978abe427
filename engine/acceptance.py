"""The gate of every plan: what a runtime answers, bucket by bucket, against ONNX Runtime and against itself.

A plan that builds and answers at batch 1 may still give wrong rows at larger batches (NVIDIA/TensorRT issues 4796, 4813
and 4853). So of every bucket it is asked: does each row agree with the reference, does each row agree with the same row
alone, and do identical rows agree with each other. Errors are taken row by row, so that one wrong row is not averaged
away among right ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuwaxl.errors import NuwaxlError

Arrays = dict[str, NDArray[np.generic]]
# Runs a graph on inputs whose first axis is one of the buckets: inputs and outputs by name.
Execute = Callable[[Mapping[str, NDArray[np.generic]]], Arrays]


class PlanRefused(NuwaxlError):
    """A plan whose answers are wrong. Command-line tools exit with status 1."""


@dataclass(frozen=True)
class Tolerance:
    """Limits of ||found - expected|| / ||expected|| of a row; for integers, of the distance and of the share that
    differs by any."""

    reference: float  # against the reference, which sums in another order
    rows: float  # against the same row elsewhere in a batch: the same kernels, at most other tiles
    integer: int
    share: float


# By the precision of the network. A float32 network runs without TF32; half types keep 11 and 8 bits of each product.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(reference=1e-3, rows=1e-4, integer=1, share=1e-2),
    "fp16": Tolerance(reference=2e-2, rows=4e-3, integer=6, share=0.3),
    "bf16": Tolerance(reference=1e-1, rows=3e-2, integer=24, share=0.8),
}


@dataclass(frozen=True)
class Accepted:
    """The largest errors of an accepted plan, over all buckets, rows and outputs."""

    reference: float
    rows: float


def accept(
    graph: str,
    buckets: Sequence[int],
    sample: Callable[[int], Arrays],
    reference: Execute,
    candidate: Execute,
    tolerance: Tolerance,
    check: Callable[[], None] = lambda: None,
) -> Accepted:
    """Compare a candidate with the reference in every bucket.

    Args:
        buckets: batch sizes the candidate has a profile for.
        sample: random inputs of so many different rows.
        check: called before every run; what it raises ends the comparison.

    Raises:
        PlanRefused: a missing output, one of another shape or type, values that are not finite, or a row that is
            further off than the tolerance.
    """
    largest = max(buckets)
    inputs = sample(largest)
    check()
    expected = reference(inputs)
    worst = Accepted(0.0, 0.0)
    smallest = min(buckets)
    alone: list[Arrays] = []
    for row in range(largest):
        # The row `smallest` times: a bucket of 1 is the row alone.
        check()
        alone.append(_checked(graph, smallest, expected, candidate(_rows(inputs, [row] * smallest))))
    for bucket in sorted(set(buckets)):
        check()
        found = _checked(graph, bucket, expected, candidate(_rows(inputs, range(bucket))))
        check()
        same = _checked(graph, bucket, expected, candidate(_rows(inputs, [0] * bucket)))
        for name, wanted in expected.items():
            for row in range(bucket):
                where = f"graph {graph}, output {name}, batch {bucket}, row {row}"
                by_reference = _compare(f"{where}, against ONNX Runtime", found[name][row], wanted[row], tolerance)
                by_row = max(
                    _compare(
                        f"{where}, against batch {smallest}", found[name][row], alone[row][name][0], tolerance, row=True
                    ),
                    _compare(
                        f"{where}, against row 0 of identical rows",
                        same[name][row],
                        same[name][0],
                        tolerance,
                        row=True,
                    ),
                    _compare(
                        f"{where}, identical rows against batch {smallest}",
                        same[name][row],
                        alone[0][name][0],
                        tolerance,
                        row=True,
                    ),
                )
                worst = Accepted(max(worst.reference, by_reference), max(worst.rows, by_row))
    return worst


def _rows(inputs: Arrays, rows: Sequence[int]) -> Arrays:
    return {name: np.ascontiguousarray(array[list(rows)]) for name, array in inputs.items()}


def _checked(graph: str, batch: int, expected: Arrays, found: Arrays) -> Arrays:
    for name, wanted in expected.items():
        where = f"graph {graph}, output {name}, batch {batch}"
        array = found.get(name)
        if array is None:
            raise PlanRefused(f"{where}: the plan gives only {sorted(found)}")
        shape = (batch, *wanted.shape[1:])
        if array.shape != shape or array.dtype != wanted.dtype:
            raise PlanRefused(f"{where}: {array.dtype} {array.shape} instead of {wanted.dtype} {shape}")
        if not np.isfinite(array.astype(np.float64)).all():
            raise PlanRefused(f"{where}: values that are not finite")
    return found


def _compare(
    where: str, found: NDArray[np.generic], expected: NDArray[np.generic], tolerance: Tolerance, row: bool = False
) -> float:
    """The error of one row; 0 for integers, whose distances are checked here."""
    if np.issubdtype(expected.dtype, np.integer):
        distance = np.abs(found.astype(np.int64) - expected.astype(np.int64))
        share = float((distance > 0).mean())
        if distance.max() > tolerance.integer or share > tolerance.share:
            raise PlanRefused(
                f"{where}: up to {distance.max()} apart and {share:.2%} of values differ; "
                f"the limits are {tolerance.integer} and {tolerance.share:.2%}"
            )
        return 0.0
    size = float(np.linalg.norm(expected.astype(np.float64)))
    distance_ = float(np.linalg.norm(found.astype(np.float64) - expected.astype(np.float64)))
    error = distance_ / size if size else (0.0 if distance_ == 0.0 else float("inf"))
    limit = tolerance.rows if row else tolerance.reference
    if error > limit:
        raise PlanRefused(f"{where}: relative error {error:.2e}; the limit is {limit:.0e}")
    return error

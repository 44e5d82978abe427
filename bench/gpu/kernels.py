"""The kernels against what the device can do, from nuwaxl.kernels.bench, with the gates of each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from nuwaxl.errors import NuwaxlError
from nuwaxl.kernels import bench

COPY_GATE = 0.8
SDPA_GATE = 2.0
GATED = {"attention": (COPY_GATE, SDPA_GATE), "conv + injection": (COPY_GATE, None)}


def measure(
    device: str,
    *,
    tiny: bool,
    news: Callable[[dict[str, Any]], None] = lambda found: None,
    done: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Rows of every kernel and size, after those that are `done`. `of_roof` is the rate over the least of copy
    bandwidth and tensor cores.

    Every row is given to `news` as soon as it is there. Where figures say `lost`, another process has to go on.

    Raises:
        NuwaxlError: a kernel failed; its row says how.
    """
    levels = {8: 4, 16: 2} if tiny else bench.LEVELS
    dtype = torch.float32 if tiny else torch.bfloat16
    batches = [1, 2] if tiny else [1, 8, 64]
    found = _found(bench.measure(batches, dtype, device, levels, lambda report: news(_found(report)), done))
    if found["figures"]["lost"]:
        return found
    failed = sorted({row["kernel"] for row in found["rows"] if "error" in row})
    if failed:
        raise NuwaxlError(f"expected every kernel to run; found errors of {', '.join(failed)}; see the rows")
    return found


def _found(report: dict[str, Any]) -> dict[str, Any]:
    rows = [
        row
        if {"error", "of_roof"} & row.keys()
        else {**row, "of_roof": max(row["of_copy"], row["tflop_s"] / report["matmul_tflop_s"])}
        for row in report["rows"]
    ]
    return {"rows": rows, "figures": {key: value for key, value in report.items() if key != "rows"}}

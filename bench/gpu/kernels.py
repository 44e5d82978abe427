"""The kernels against what the device can do, from nuwaxl.kernels.bench, with the gates of each."""

from typing import Any

import torch

from nuwaxl.kernels import bench

COPY_GATE = 0.8
SDPA_GATE = 2.0
GATED = {"attention": (COPY_GATE, SDPA_GATE), "conv + injection": (COPY_GATE, None)}


def measure(device: str, *, tiny: bool) -> dict[str, Any]:
    """Rows of every kernel and size. `of_roof` is the rate over the least of copy bandwidth and tensor cores."""
    levels = {8: 4, 16: 2} if tiny else bench.LEVELS
    dtype = torch.float32 if tiny else torch.bfloat16
    report = bench.measure([1, 2] if tiny else [1, 8, 64], dtype, device=device, levels=levels)
    for row in report["rows"]:
        row["of_roof"] = max(row["of_copy"], row["tflop_s"] / report["matmul_tflop_s"])
    return {"rows": report["rows"], "figures": {key: value for key, value in report.items() if key != "rows"}}

"""Rendering on PyTorch, "torch:cuda:0" or "torch:cpu": what the entry point `nuwaxl.runners` names (docs/gpu.md).

The engine does not import torch; it finds this by name, and asks the functions here.
"""

from __future__ import annotations

import torch

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.runners.base import Runner
from nuwaxl.export.torch_runner.device import parse
from nuwaxl.export.torch_runner.runner import TorchRunner

_PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def processor(device: str) -> str:
    """See RunnerPlugin.processor."""
    return parse(device).description


def precision(device: str) -> str:
    """See RunnerPlugin.precision."""
    return _PRECISIONS[parse(device).dtype]


def open_runner(bundle: Bundle, device: str, threads: int) -> Runner:
    """See RunnerPlugin.open_runner. On the CPU the number of threads is the whole process's."""
    where = parse(device)
    if not where.on_cuda:
        torch.set_num_threads(threads)
    return TorchRunner.open(bundle, where)

"""What runs again and again over the same memory on a GPU: captured once into a CUDA graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

from nuwaxl.export.torch_runner.device import TorchDevice

_WARM_UP = 2  # calls before a capture: Triton compiles, cuDNN and cuBLAS choose
_T = TypeVar("_T")


def captured(warm_up: Callable[[], object], run: Callable[[], _T], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, _T]:
    """A graph of what `run` queues on the current stream, not run yet, and what `run` returned; after `warm_up` ran.

    Args:
        pool: memory that graphs share which are replayed one at a time and leave nothing in it; None for its own.
    """
    for _ in range(_WARM_UP):
        warm_up()
    graph = torch.cuda.CUDAGraph()
    # Other GPUs have threads of their own, which may allocate meanwhile.
    stream = torch.cuda.current_stream()
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        result = run()
    return graph, result


class Replayed(Generic[_T]):
    """A function of tensors of one size: on a GPU a CUDA graph, which is launched at once, and which cuDNN tries its
    algorithms for once."""

    def __init__(self, run: Callable[..., _T], device: TorchDevice) -> None:
        self._run = run
        self._device = device
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: _T | None = None

    def __call__(self, *inputs: Tensor) -> _T:
        """What the function returns: on a GPU the same tensors each time, there until the next call."""
        if not self._device.on_cuda:
            return self._run(*inputs)
        if self._graph is None:
            own = [tensor.clone() for tensor in inputs]
            self._graph, self._result = captured(lambda: self._run(*own), lambda: self._run(*own))
            self._inputs = own
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return cast(_T, self._result)

"""What runs again and again over the same memory on a GPU: captured once into a CUDA graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

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


class Preparation:
    """What does not depend on the timestep, of one segment: on a GPU a CUDA graph, which is launched at once, and of
    one size, for which cuDNN tries its algorithms once."""

    def __init__(self, prepare: Callable[..., Sequence[Tensor]], device: TorchDevice) -> None:
        self._prepare = prepare
        self._device = device
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._state: Sequence[Tensor] = ()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Tensors (1, ..) each to state tensors (1, ..): on a GPU the same each time, there until the next call."""
        if not self._device.on_cuda:
            return self._prepare(*inputs)
        if self._graph is None:
            own = [tensor.clone() for tensor in inputs]
            self._graph, self._state = captured(lambda: self._prepare(*own), lambda: self._prepare(*own))
            self._inputs = own
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._state

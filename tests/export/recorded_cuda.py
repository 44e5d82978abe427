"""CUDA as far as the torch runner asks for it, over the host's memory: what a graph captured is run again over the same
tensors, and what another stream was given is done when somebody waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nuwaxl.export import torch_runner
from nuwaxl.export.torch_runner.device import TorchDevice


class HostAsCuda(TorchDevice):
    """The CPU, of which the runner believes that it is a GPU."""

    on_cuda = True  # type: ignore[assignment]
    description = "the host as a GPU"  # type: ignore[assignment]


class Recorder(TorchDispatchMode):
    """Keeps the operators instead of running them: what they return is memory without an answer."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host would wait for the device"
        written = [n for n, one in enumerate(func._schema.arguments) if one.alias_info and one.alias_info.is_write]
        if written:
            assert written == [0], f"{func} writes elsewhere than in its first argument"
            self._calls.append((func, args, kwargs, []))
            return args[0] if func._schema.returns else None
        result = func(*args, **kwargs)
        before = {_memory(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and _memory(leaf) not in before]
        _poison(made)
        self._calls.append((func, args, kwargs, made))
        return result

    def run(self, *, scratch: bool) -> None:
        """Run all over the tensors that were there. scratch: what it made belongs to others afterwards."""
        for func, args, kwargs, made in self._calls:
            result = func(*args, **kwargs)
            found = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            for mine, new in zip(made, found[: len(made)], strict=True):
                mine.copy_(new)
        if scratch:
            _poison([tensor for *_, made in self._calls for tensor in made])


class Graph:
    """torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.shares_memory = False

    def replay(self) -> None:
        self.recorder.run(scratch=self.shares_memory)


class Stream:
    """torch.cuda.Stream. Work of the runner's own runs at once; that of the other waits for its event."""

    def __init__(self, device: object) -> None:
        self.put_off: list[Recorder] = []
        self.follows: list[Stream] = []

    def synchronize(self) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        self.follows.append(other)

    def record_event(self) -> Event:
        return Event(self.put_off)


class Event:
    """torch.cuda.Event."""

    def __init__(self, put_off: list[Recorder]) -> None:
        self._put_off = list(put_off)

    def synchronize(self) -> None:
        for recorder in self._put_off:
            recorder.run(scratch=False)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have "torch:cuda:0/..." mean the host, in float32 and eager."""
    current: list[Stream] = []

    @contextmanager
    def capture(graph: Graph, pool: object, stream: object, capture_error_mode: str) -> Iterator[None]:
        assert stream is current[-1], "captured on the runner's stream"
        assert capture_error_mode == "thread_local", "other GPUs' threads may allocate meanwhile"
        graph.shares_memory = pool is not None
        with graph.recorder:
            yield

    @contextmanager
    def on_stream(stream: Stream) -> Iterator[None]:
        current.append(stream)
        recorder: Any = nullcontext()
        if stream is not current[0]:
            assert stream.follows[-1] is current[0], "the other stream waits for what it copies"
            stream.put_off.append(recorder := Recorder())
        try:
            with recorder:
                yield
        finally:
            current.pop()

    def empty(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = _empty(*size, **options)
        _poison([made])
        return made

    _empty = torch.empty
    host = HostAsCuda(torch.device("cpu"), torch.float32, compiled=False)
    for name, value in {
        "CUDAGraph": Graph,
        "Stream": Stream,
        "current_stream": lambda: current[-1],
        "device": lambda device: nullcontext(),
        "graph": capture,
        "graph_pool_handle": object,
        "mem_get_info": lambda device: (0, 0),  # so that batches grow as they must
        "stream": on_stream,
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(torch_runner, "parse", lambda text: host)
    for name in ("benchmark", "allow_tf32"):  # which the runner sets
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _poison(tensors: list[Tensor]) -> None:
    """Whoever takes them for an answer sees."""
    for tensor in tensors:
        tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

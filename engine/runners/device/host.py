"""The host as a device: plain memory, and streams that have done everything by the time they are asked."""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nuwaxl.engine.devices import processor
from nuwaxl.engine.runners.device.base import Event, Graph, HostMemory, Stream, size_of

_ALIGNMENT = 256


class HostBuffer:
    """See HostMemory."""

    def __init__(self, count: int) -> None:
        self._storage: NDArray[np.uint8] | None = np.empty(count + _ALIGNMENT, dtype=np.uint8)
        start = self._storage.ctypes.data
        self._offset = -start % _ALIGNMENT
        self._address = start + self._offset
        self._bytes = count

    @property
    def address(self) -> int:
        """See Memory.address."""
        return self._address

    @property
    def bytes(self) -> int:
        """See Memory.bytes."""
        return self._bytes

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See HostMemory.array."""
        assert self._storage is not None, "freed"
        return self._storage[self._offset : self._offset + size_of(shape, dtype)].view(dtype).reshape(shape)

    def free(self) -> None:
        """See Memory.free."""
        self._storage = None


class HostEvent:
    """See Event: passed as soon as it is recorded."""

    def synchronize(self) -> None:
        """See Event.synchronize."""

    def done(self) -> bool:
        """See Event.done."""
        return True

    def free(self) -> None:
        """See Event.free."""


class HostGraph:
    """See Graph: the work, called again."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def launch(self, stream: Stream) -> None:
        """See Graph.launch."""
        self._work()

    def free(self) -> None:
        """See Graph.free."""


class HostStream:
    """See Stream."""

    handle = 0

    def copy(self, target: int, source: int, count: int) -> None:
        """See Stream.copy."""
        ctypes.memmove(target, source, count)

    def zero(self, target: int, count: int) -> None:
        """See Stream.zero."""
        ctypes.memset(target, 0, count)

    def record(self, event: Event) -> None:
        """See Stream.record."""

    def wait(self, event: Event) -> None:
        """See Stream.wait."""

    def synchronize(self) -> None:
        """See Stream.synchronize."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """See Stream.capture."""
        return HostGraph(work)

    def free(self) -> None:
        """See Stream.free."""


class HostDevice:
    """See Device."""

    kind = "cpu"
    index = 0

    def __init__(self) -> None:
        self.name = processor()

    def enter(self) -> None:
        """See Device.enter."""

    def allocate(self, count: int) -> HostMemory:
        """See Device.allocate."""
        return HostBuffer(count)

    def allocate_host(self, count: int) -> HostMemory:
        """See Device.allocate_host."""
        return HostBuffer(count)

    def stream(self) -> Stream:
        """See Device.stream."""
        return HostStream()

    def event(self) -> Event:
        """See Device.event."""
        return HostEvent()

    def close(self) -> None:
        """See Device.close."""

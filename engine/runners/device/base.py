"""What a runner asks of a device: memory with addresses, and streams that copy, wait and synchronise.

Everything on a stream runs in the order it was asked for, some time later: what it touches must stay as it is until
then. Addresses are plain integers, of the device or of the host.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray


class Memory(Protocol):
    """A piece of memory, at least 256-byte aligned."""

    @property
    def address(self) -> int:
        """Where it begins."""

    @property
    def bytes(self) -> int:
        """How long it is."""

    def free(self) -> None:
        """Give it back; of no effect a second time."""


class HostMemory(Memory, Protocol):
    """Memory of the host that a device reads and writes without the processor (page-locked on CUDA)."""

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Its beginning as an array, in place; not to be used once the memory is freed."""


class Event(Protocol):
    """A mark in a stream."""

    def synchronize(self) -> None:
        """Wait until the stream has passed it."""

    def done(self) -> bool:
        """Whether the stream has passed it."""

    def free(self) -> None:
        """Give it back; of no effect a second time."""


class Graph(Protocol):
    """Work of a stream that was recorded once and is launched as a whole."""

    def launch(self, stream: "Stream") -> None:
        """Queue it."""

    def free(self) -> None:
        """Give it back; of no effect a second time."""


class Stream(Protocol):
    """A queue of work on one device."""

    @property
    def handle(self) -> int:
        """What the runtimes call it: a cudaStream_t as a number, 0 on the host."""

    def copy(self, target: int, source: int, count: int) -> None:
        """Copy bytes between two addresses, each of the host or of the device."""

    def zero(self, target: int, count: int) -> None:
        """Set bytes of the device to zero."""

    def record(self, event: Event) -> None:
        """Put the mark after what is queued now, whatever it marked before."""

    def wait(self, event: Event) -> None:
        """Hold what is queued from now on until another stream has passed the mark."""

    def synchronize(self) -> None:
        """Wait until all that is queued is done."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """Call `work`, and record what it queues here instead of running it. Nothing may be allocated meanwhile."""

    def free(self) -> None:
        """Give it back; of no effect a second time."""


class Device(Protocol):
    """One device. `close` frees all that was made of it and is not yet freed."""

    @property
    def kind(self) -> str:
        """ "cuda" or "cpu", as ONNX Runtime names them."""

    @property
    def index(self) -> int:
        """Which of its kind."""

    @property
    def name(self) -> str:
        """The model's name."""

    def enter(self) -> None:
        """Make it the calling thread's device. What is made of it does so by itself; other libraries' work does not."""

    def allocate(self, count: int) -> Memory:
        """Memory of the device, `count` bytes."""

    def allocate_host(self, count: int) -> HostMemory:
        """Memory of the host for copies, `count` bytes."""

    def stream(self) -> Stream:
        """A stream that waits for no other."""

    def event(self) -> Event:
        """A mark that no stream has passed yet."""

    def close(self) -> None:
        """Wait for the work, and free what is left; of no effect a second time."""


def size_of(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    """Bytes of a tensor."""
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize

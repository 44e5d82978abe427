"""Results on their way from a device to the host, beside the work that goes on there."""

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nuwaxl.engine.runners.device.base import Device, HostMemory, Memory, Stream, size_of
from nuwaxl.engine.runners.slots import Tensor, copy_rows

_LEAST_BYTES = 256


class Arrivals:
    """Copies results to page-locked memory, on a stream of its own.

    A result is first put aside on the device, which takes microseconds: what made it may run again while it travels.

    Args:
        work: the stream on which the results are made.
    """

    def __init__(self, device: Device, work: Stream) -> None:
        self._device = device
        self._work = work
        self._copies = device.stream()
        self._free: list[_Place] = []

    def begin(self, shape: Sequence[int], dtype: DTypeLike) -> "Arrival":
        """A result of this shape, not made yet: `put` its pieces, then `depart`."""
        place = self._free.pop() if self._free else _Place(self._device)
        try:
            place.reserve(size_of(tuple(shape), dtype))
        except BaseException:
            self._free.append(place)
            raise
        # Whatever took this place before and was dropped unread has left it.
        self._work.wait(place.landed)
        arrival = Arrival(place, self._work, self._copies, tuple(shape), dtype)
        weakref.finalize(arrival, self._free.append, place)
        return arrival

    def rows(self, tensor: Tensor, rows: Sequence[int], dtype: DTypeLike) -> "Arrival":
        """Some rows of a tensor as they are after what is queued now, on their way."""
        shape = (len(rows), *(int(size) for size in tensor.spec.shape[1:]))
        arrival = self.begin(shape, dtype)
        moves = list(zip(rows, range(len(rows)), strict=True))
        copy_rows(self._work, lambda row: arrival.at(row * tensor.row_bytes), tensor.at, moves, tensor.row_bytes)
        arrival.depart()
        return arrival


class _Place:
    """Memory on both sides, and the marks of its last use: a result is made there, and it has landed on the host."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.made, self.landed = device.event(), device.event()
        self.aside: Memory = device.allocate(_LEAST_BYTES)
        self.host: HostMemory = device.allocate_host(_LEAST_BYTES)

    def reserve(self, count: int) -> None:
        """Room for so many bytes."""
        if self.host.bytes < count:
            self.landed.synchronize()
            aside, host = self.aside, self.host
            self.aside = self._device.allocate(count)
            aside.free()
            self.host = self._device.allocate_host(count)
            host.free()


class Arrival:
    """One result on its way. It keeps its memory until it is dropped."""

    def __init__(self, place: _Place, work: Stream, copies: Stream, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._place, self._work, self._copies = place, work, copies
        self._shape, self._dtype = shape, dtype

    def at(self, offset: int) -> int:
        """Where its bytes from `offset` on are put aside."""
        return self._place.aside.address + offset

    def put(self, offset: int, source: int, count: int) -> None:
        """Queue that a piece of it is put aside, after the work that makes it."""
        self._work.copy(self.at(offset), source, count)

    def depart(self) -> None:
        """All its pieces were put: it leaves once they are there. What is queued from now on does not wait for it."""
        place = self._place
        self._work.record(place.made)
        self._copies.wait(place.made)
        self._copies.copy(place.host.address, place.aside.address, size_of(self._shape, self._dtype))
        self._copies.record(place.landed)

    def wait(self) -> NDArray[Any]:
        """Wait until it is there; an array of its own."""
        self._place.landed.synchronize()
        array: NDArray[Any] = np.array(self._place.host.array(self._shape, self._dtype))
        return array

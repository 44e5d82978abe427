"""Tensors of a plan in a device's memory, and copies to and from it through page-locked memory of the host."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.engine.runners.device.base import Device, Event, HostMemory, Memory, Stream

_ALIGNMENT = 256
_BFLOAT16 = "bfloat16"


def stored(dtype: str) -> np.dtype[Any]:
    """The numpy type with a tensor's bytes; bfloat16, which numpy has not, is its bits."""
    return np.dtype(np.uint16) if dtype == _BFLOAT16 else np.dtype(dtype)


def to_stored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as they are stored; to bfloat16 they are rounded to the nearest, of two as near to the even one."""
    if dtype != _BFLOAT16:
        return np.ascontiguousarray(array, dtype=stored(dtype))
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # The rounding of a NaN could carry into an infinity.
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    result: NDArray[Any] = np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)
    return result


def from_stored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values of what is stored; bfloat16 as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == _BFLOAT16 else array


class Tensors:
    """Memory for the tensors of some specs at one batch, zero at first."""

    def __init__(self, device: Device, stream: Stream, specs: Iterable[TensorSpec], batch: int) -> None:
        self.specs = {spec.name: spec for spec in specs}
        self.batch = batch
        self._memory: dict[str, Memory] = {}
        for name in self.specs:
            self._memory[name] = device.allocate(batch * self.row_bytes(name))
            stream.zero(self.address(name), batch * self.row_bytes(name))

    def row_bytes(self, name: str) -> int:
        """Bytes of one row of a tensor."""
        spec = self.specs[name]
        return int(np.prod([int(size) for size in spec.shape[1:]], dtype=np.int64)) * stored(spec.dtype).itemsize

    def address(self, name: str, row: int = 0) -> int:
        """Where a row of a tensor is."""
        return self._memory[name].address + row * self.row_bytes(name)

    def addresses(self) -> dict[str, int]:
        """Where every tensor is."""
        return {name: self.address(name) for name in self.specs}

    def free(self) -> None:
        """Give all of it back."""
        for memory in self._memory.values():
            memory.free()


class Transfers:
    """Copies between arrays and device memory on one stream. Uploads go through areas of page-locked memory in turn, so
    that the host may prepare the next while the device still reads the last."""

    def __init__(self, device: Device, stream: Stream, areas: int = 2) -> None:
        self._device = device
        self.stream = stream
        self._areas: list[HostMemory | None] = [None] * areas
        self._events: list[Event] = [device.event() for _ in range(areas)]
        self._next = 0
        self._back: HostMemory | None = None

    def upload(self, tensors: Tensors, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Queue copies of arrays into the first rows of tensors."""
        values = {name: to_stored(array, tensors.specs[name].dtype) for name, array in arrays.items()}
        offsets, total = _places([array.nbytes for array in values.values()])
        area = self._area(total)
        for (name, array), offset in zip(values.items(), offsets, strict=True):
            space = area.array((area.bytes,), np.uint8)[offset : offset + array.nbytes]
            space[:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
            self.stream.copy(tensors.address(name), area.address + offset, array.nbytes)
        self.stream.record(self._events[self._next])
        self._next = (self._next + 1) % len(self._areas)

    def download(self, tensors: Tensors, name: str, rows: Sequence[int]) -> NDArray[Any]:
        """Some rows of a tensor, as an array of its own; waits for all that is queued."""
        spec, size = tensors.specs[name], tensors.row_bytes(name)
        shape = (len(rows), *(int(each) for each in spec.shape[1:]))
        if self._back is None or self._back.bytes < len(rows) * size:
            if self._back is not None:
                self._back.free()
            self._back = self._device.allocate_host(len(rows) * size)
        for index, row in enumerate(rows):
            self.stream.copy(self._back.address + index * size, tensors.address(name, row), size)
        self.stream.synchronize()
        return from_stored(self._back.array(shape, stored(spec.dtype)).copy(), spec.dtype)

    def _area(self, count: int) -> HostMemory:
        """The next area, which no copy reads any more."""
        area = self._areas[self._next]
        self._events[self._next].synchronize()
        if area is None or area.bytes < count:
            if area is not None:
                area.free()
            area = self._areas[self._next] = self._device.allocate_host(count)
        return area


def _places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets of pieces one after another, each aligned, and their end."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end

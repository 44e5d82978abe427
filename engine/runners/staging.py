"""Host memory that copies to a device go through, and the waiting that keeps one under way from being overwritten."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.runners.device.base import Device, Event, HostMemory, Stream

_ALIGNMENT = 256


class Staging:
    """Page-locked memory for arrays on their way to a device; it grows to the largest it was asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._memory: HostMemory | None = None
        self._event: Event = device.event()

    def send(self, stream: Stream, arrays: Mapping[int, NDArray[Any]]) -> None:
        """Queue copies of arrays to the addresses that are their keys. They may change as soon as this returns."""
        offsets, total = [], 0
        for array in arrays.values():
            offsets.append(total)
            total += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        memory = self._room(total)
        for offset, (address, array) in zip(offsets, arrays.items(), strict=True):
            place = memory.array((offset + array.nbytes,), np.uint8)[offset:]
            place[:] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            stream.copy(address, memory.address + offset, array.nbytes)
        stream.record(self._event)

    def passed(self, stream: Stream) -> None:
        """The next `send` waits until the device has come here as well."""
        stream.record(self._event)

    def _room(self, count: int) -> HostMemory:
        self._event.synchronize()
        if self._memory is None or self._memory.bytes < count:
            if self._memory is not None:
                self._memory.free()
            self._memory = None
            self._memory = self._device.allocate_host(max(count, _ALIGNMENT))
        return self._memory


class Stages:
    """Stagings that take turns, so that the host prepares the next while the device still reads the last."""

    def __init__(self, device: Device, count: int) -> None:
        self._stages = [Staging(device) for _ in range(count)]
        self._sent = 0

    def send(self, stream: Stream, arrays: Mapping[int, NDArray[Any]]) -> Staging:
        """See Staging.send; the one that was taken."""
        stage = self._stages[self._sent % len(self._stages)]
        self._sent += 1
        stage.send(stream, arrays)
        return stage

"""A CUDA device over the runtime API of `cuda.bindings` (the package cuda-bindings, 12.x or 13.x).

CUDA's current device belongs to the thread, and a runner's worker thread is not the one that opened it: every call
sets it first. A thread's first call also lets captures of other threads be: ONNX Runtime captures its CUDA graphs in
the mode in which, without this, an allocation by any thread fails and ends the capture. The runtime uses the device's
primary context, the one that ONNX Runtime, TensorRT and torch use too.
"""

import ctypes
import importlib
import threading
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from nuwaxl.engine.runners.device.base import Event, Graph, Stream, size_of
from nuwaxl.errors import DeviceLost, InputError, RenderError

_NO_DRIVER = ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
# After these the process's context on the device is of no more use.
_LOST = (
    "cudaErrorAssert",
    "cudaErrorContextIsDestroyed",
    "cudaErrorECCUncorrectable",
    "cudaErrorHardwareStackError",
    "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction",
    "cudaErrorInvalidAddressSpace",
    "cudaErrorInvalidPc",
    "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout",
    "cudaErrorMisalignedAddress",
    "cudaErrorUnknown",
)


def load_cuda() -> Any:
    """The module cuda.bindings.runtime, imported only when a CUDA device is asked for.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise InputError(
            expected="the package cuda-bindings",
            found=str(error),
            fix="pip install 'nuwaxl[cuda]', or use --devices cpu",
        ) from error


class _Resource(Protocol):
    def free(self) -> None: ...


class CudaDevice:
    """One GPU (see Device).

    Args:
        index: which GPU, as CUDA numbers those it shows (CUDA_VISIBLE_DEVICES).
        cuda: stands in for cuda.bindings.runtime in tests.

    Raises:
        InputError: cuda-bindings is not installed, there is no driver, or no GPU of this number.
    """

    kind = "cuda"

    def __init__(self, index: int = 0, cuda: Any = None) -> None:
        self._cuda = load_cuda() if cuda is None else cuda
        self.index = index
        self._live: dict[int, _Resource] = {}  # in the order they were made
        self._thread = threading.local()
        count = self._count()
        if not 0 <= index < count:
            raise InputError(
                expected=f"devices: a GPU cuda:{index}",
                found=f"{count} GPU{'s' * (count != 1)}",
                fix=f'use "cuda:0"{f" to cuda:{count - 1}" if count > 1 else ""}',
            )
        name = self.call("cudaGetDeviceProperties", index).name
        self.name = name.decode() if isinstance(name, bytes) else str(name)
        attribute = self._cuda.cudaDeviceAttr
        self.compute_capability: tuple[int, int] = (
            int(self.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMajor, index)),
            int(self.call("cudaDeviceGetAttribute", attribute.cudaDevAttrComputeCapabilityMinor, index)),
        )

    @property
    def sm(self) -> int:
        """The compute capability as one number, 90 for 9.0."""
        major, minor = self.compute_capability
        return 10 * major + minor

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of its memory now."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)

    def allocate(self, count: int) -> "CudaMemory":
        """See Device.allocate.

        Raises:
            RenderError: there is not so much memory.
        """
        return CudaMemory(self, count)

    def allocate_host(self, count: int) -> "CudaHostMemory":
        """See Device.allocate_host."""
        return CudaHostMemory(self, count)

    def stream(self) -> "CudaStream":
        """See Device.stream."""
        return CudaStream(self)

    def event(self) -> "CudaEvent":
        """See Device.event."""
        return CudaEvent(self)

    def close(self) -> None:
        """See Device.close: the last that was made goes first. An error does not keep the rest from being freed."""
        first: RenderError | None = None
        for resource in reversed(list(self._live.values())):
            try:
                resource.free()
            except RenderError as error:
                first = first or error
        self._live.clear()
        if first is not None:
            raise first

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the runtime API with this device as the current one; what it answers beside the status.

        Raises:
            DeviceLost: the device can no longer be used.
            RenderError: any other error.
        """
        if function != "cudaGetDeviceCount":
            self.enter()
        status, *answer = getattr(self._cuda, function)(*arguments)
        self._check(function, status, arguments)
        return answer[0] if len(answer) == 1 else answer

    def enter(self) -> None:
        """See Device.enter: the thread's current one, which lets captures of other threads be from now on."""
        self._check("cudaSetDevice", self._cuda.cudaSetDevice(self.index)[0])
        if not hasattr(self._thread, "entered"):
            mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
            status = self._cuda.cudaThreadExchangeStreamCaptureMode(mode)[0]
            self._check("cudaThreadExchangeStreamCaptureMode", status)
            self._thread.entered = True

    def own(self, resource: _Resource) -> None:
        """Remember what `close` has to free."""
        self._live[id(resource)] = resource

    def disown(self, resource: _Resource) -> bool:
        """Forget it; False if it was freed before."""
        return self._live.pop(id(resource), None) is not None

    def succeeded(self, status: Any) -> bool:
        """Whether a status is success."""
        return bool(status == self._cuda.cudaError_t.cudaSuccess)

    def _count(self) -> int:
        status, count = self._cuda.cudaGetDeviceCount()
        if self.succeeded(status) and count > 0:
            return int(count)
        if self.succeeded(status):
            status = self._cuda.cudaError_t.cudaErrorNoDevice
        name, text = self._describe(status)
        found = "no NVIDIA driver, or one too old" if name in _NO_DRIVER[:1] else text
        raise InputError(
            expected="an NVIDIA GPU and its driver", found=f"{found} ({name})", fix="use --devices cpu on this machine"
        )

    def _check(self, function: str, status: Any, arguments: tuple[Any, ...] = ()) -> None:
        if self.succeeded(status):
            return
        name, text = self._describe(status)
        if name == "cudaErrorMemoryAllocation":
            asked = f"{arguments[0] / 1e6:.1f} MB" if arguments and isinstance(arguments[0], int) else "memory"
            where = "page-locked on the host" if "Host" in function else f"on cuda:{self.index}"
            raise RenderError(f"expected {asked} {where}; found {text} ({name}); use a smaller --max-batch")
        message = f"expected {function} to succeed on cuda:{self.index}; found {text} ({name})"
        if name in _LOST:
            raise DeviceLost(f"{message}; see the driver's log (dmesg), and start again")
        raise RenderError(f"{message}; check that driver and packages fit each other")

    def _describe(self, status: Any) -> tuple[str, str]:
        name, text = (self._cuda.cudaGetErrorName(status)[1], self._cuda.cudaGetErrorString(status)[1])
        return (
            name.decode() if isinstance(name, bytes) else str(name),
            text.decode() if isinstance(text, bytes) else str(text),
        )


class CudaMemory:
    """Memory of the device (see Memory)."""

    def __init__(self, device: CudaDevice, count: int) -> None:
        self._device = device
        self.bytes = count
        self.address = int(device.call("cudaMalloc", max(count, 1)))
        device.own(self)

    def free(self) -> None:
        """See Memory.free. CUDA waits for the work that uses it."""
        if self._device.disown(self):
            self._device.call("cudaFree", self.address)


class CudaHostMemory:
    """Page-locked memory of the host (see HostMemory)."""

    def __init__(self, device: CudaDevice, count: int) -> None:
        self._device = device
        self.bytes = count
        self.address = int(device.call("cudaMallocHost", max(count, 1)))
        device.own(self)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See HostMemory.array."""
        count = size_of(shape, dtype)
        assert count <= self.bytes, f"{count} bytes of {self.bytes}"
        content = (ctypes.c_uint8 * count).from_address(self.address)
        array: NDArray[Any] = np.frombuffer(memoryview(content), dtype=np.dtype(dtype)).reshape(shape)
        return array

    def free(self) -> None:
        """See Memory.free."""
        if self._device.disown(self):
            self._device.call("cudaFreeHost", self.address)


class CudaEvent:
    """See Event; without timing, which makes it cheaper."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.raw = device.call("cudaEventCreateWithFlags", device._cuda.cudaEventDisableTiming)
        device.own(self)

    def synchronize(self) -> None:
        """See Event.synchronize."""
        self._device.call("cudaEventSynchronize", self.raw)

    def done(self) -> bool:
        """See Event.done."""
        (status,) = self._device._cuda.cudaEventQuery(self.raw)
        if status == self._device._cuda.cudaError_t.cudaErrorNotReady:
            return False
        self._device._check("cudaEventQuery", status)
        return True

    def free(self) -> None:
        """See Event.free."""
        if self._device.disown(self):
            self._device.call("cudaEventDestroy", self.raw)


class CudaGraph:
    """See Graph."""

    def __init__(self, device: CudaDevice, captured: Any) -> None:
        """Takes the captured graph, and destroys it in any case: what is launched is made of it."""
        self._device = device
        try:
            self._raw = device.call("cudaGraphInstantiate", captured, 0)
            device.own(self)
        finally:
            device.call("cudaGraphDestroy", captured)

    def launch(self, stream: Stream) -> None:
        """See Graph.launch."""
        assert isinstance(stream, CudaStream)
        self._device.call("cudaGraphLaunch", self._raw, stream.raw)

    def free(self) -> None:
        """See Graph.free."""
        if self._device.disown(self):
            self._device.call("cudaGraphExecDestroy", self._raw)


class CudaStream:
    """See Stream; does not wait for the default stream."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self.raw = device.call("cudaStreamCreateWithFlags", device._cuda.cudaStreamNonBlocking)
        device.own(self)

    @property
    def handle(self) -> int:
        """See Stream.handle."""
        return int(self.raw)

    def copy(self, target: int, source: int, count: int) -> None:
        """See Stream.copy. Overlaps with the host's work only where the host's memory is page-locked."""
        kind = self._device._cuda.cudaMemcpyKind.cudaMemcpyDefault
        self._device.call("cudaMemcpyAsync", target, source, count, kind, self.raw)

    def zero(self, target: int, count: int) -> None:
        """See Stream.zero."""
        self._device.call("cudaMemsetAsync", target, 0, count, self.raw)

    def record(self, event: Event) -> None:
        """See Stream.record."""
        assert isinstance(event, CudaEvent)
        self._device.call("cudaEventRecord", event.raw, self.raw)

    def wait(self, event: Event) -> None:
        """See Stream.wait."""
        assert isinstance(event, CudaEvent)
        self._device.call("cudaStreamWaitEvent", self.raw, event.raw, 0)

    def synchronize(self) -> None:
        """See Stream.synchronize."""
        self._device.call("cudaStreamSynchronize", self.raw)

    def capture(self, work: Callable[[], None]) -> Graph:
        """See Stream.capture. Other threads may go on with their own work meanwhile.

        Raises:
            RenderError: something in it cannot be captured.
        """
        device = self._device
        mode = device._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        device.call("cudaStreamBeginCapture", self.raw, mode)
        try:
            work()
        except BaseException:
            # The stream must leave capture, or nothing runs on it any more; what was captured so far is dropped.
            status, captured = device._cuda.cudaStreamEndCapture(self.raw)
            if device.succeeded(status):
                device._cuda.cudaGraphDestroy(captured)
            raise
        return CudaGraph(device, device.call("cudaStreamEndCapture", self.raw))

    def free(self) -> None:
        """See Stream.free."""
        if self._device.disown(self):
            self._device.call("cudaStreamDestroy", self.raw)

"""Stands in for cuda.bindings.runtime on a machine without a GPU: records calls, and runs streams as late as it may.

Device memory is memory of the host. What a stream is given runs when something waits for it, not before, so that code
which forgets to wait, or changes memory too early, fails here too.
"""

import ctypes
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

Work = Callable[[], None]


class Status(enum.IntEnum):
    """Of cudaError_t, what the tests need."""

    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorNotReady = 600
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureUnsupported = 900


@dataclass
class _Stream:
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None

    def add(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def drain(self, until: Work | None = None) -> None:
        while self.queue:
            work = self.queue.pop(0)
            work()
            if work is until:
                return


@dataclass
class _Event:
    stream: _Stream | None = None
    mark: Work | None = None
    passed: bool = True


class FakeCuda:
    """The functions that engine/runners/device/cuda.py calls, with their answers as cuda-bindings gives them.

    Attributes:
        calls: (function, arguments) in order, without cudaSetDevice and cudaThreadExchangeStreamCaptureMode.
        live: what was made and not freed, by handle: "device", "host", "stream", "event", "graph", "exec".
        fail: status to answer with, by function, from the nth call on: {"cudaMalloc": (status, n)}.
    """

    cudaError_t = Status
    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyDefault=4)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(cudaDevAttrComputeCapabilityMajor=75, cudaDevAttrComputeCapabilityMinor=76)

    def __init__(self, gpus: int = 1, capability: tuple[int, int] = (9, 0)) -> None:
        self.gpus = gpus
        self.capability = capability
        self.name = "NVIDIA Fake"
        self.current = -1
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.live: dict[int, str] = {}
        self.fail: dict[str, tuple[Status, int]] = {}
        self.objects: dict[int, Any] = {}
        self.unminding: set[int] = set()  # threads whose calls may not end the captures of others
        self._storage: dict[int, Any] = {}
        self._next = 1000

    def names(self) -> list[str]:
        """Functions called, in order."""
        return [name for name, _ in self.calls]

    def size(self, address: int) -> int:
        """Bytes of a piece of memory."""
        return ctypes.sizeof(self._storage[address])

    def drain(self) -> None:
        """Let the GPU finish."""
        for stream in [each for each in self.objects.values() if isinstance(each, _Stream)]:
            stream.drain()

    def check_thread(self) -> None:
        """The calling thread's work may not end the captures of others."""
        assert threading.get_ident() in self.unminding

    def _called(self, name: str, *arguments: Any) -> Status:
        if name != "cudaGetDeviceCount":
            self.check_thread()
        self.calls.append((name, arguments))
        status, after = self.fail.get(name, (Status.cudaSuccess, 0))
        return status if self.names().count(name) > after else Status.cudaSuccess

    def _make(self, kind: str, value: Any) -> int:
        self._next += 1
        self.live[self._next] = kind
        self.objects[self._next] = value
        return self._next

    def _drop(self, handle: int, kind: str) -> None:
        assert self.live.pop(handle, None) == kind, f"{kind} {handle} is freed twice, or is none"
        self.objects.pop(handle, None)

    def _allocate(self, name: str, kind: str, size: int) -> tuple[Status, int]:
        if status := self._called(name, size):
            return status, 0
        storage = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(storage)
        ctypes.memset(address, 0xFF, size)  # NaN to who reads what nobody wrote
        self._storage[address] = storage
        self.live[address] = kind
        return status, address

    def _release(self, name: str, kind: str, address: int) -> tuple[Status]:
        status = self._called(name, address)
        self.drain()  # CUDA waits for the work that uses it
        self._drop(address, kind)
        # The bytes stay: a test that reads them after all gets poison, not a crash.
        ctypes.memset(address, 0xDD, ctypes.sizeof(self._storage[address]))
        return (status,)

    def cudaGetErrorName(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, status.name.encode()

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, f"text of {int(status)}".encode()

    def cudaGetDeviceCount(self) -> tuple[Status, int]:
        return self._called("cudaGetDeviceCount"), self.gpus

    def cudaSetDevice(self, device: int) -> tuple[Status]:
        self.current = device
        return (Status.cudaSuccess,)

    def cudaThreadExchangeStreamCaptureMode(self, mode: int) -> tuple[Status, int]:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.unminding.add(threading.get_ident())
        return Status.cudaSuccess, 0

    def cudaGetDeviceProperties(self, device: int) -> tuple[Status, Any]:
        return self._called("cudaGetDeviceProperties", device), SimpleNamespace(name=self.name.encode())

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Status, int]:
        return self._called("cudaDeviceGetAttribute", attribute, device), self.capability[attribute - 75]

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:
        return self._called("cudaMemGetInfo"), 3_000_000, 8_000_000

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        return self._allocate("cudaMalloc", "device", size)

    def cudaFree(self, devPtr: int) -> tuple[Status]:
        return self._release("cudaFree", "device", devPtr)

    def cudaMallocHost(self, size: int) -> tuple[Status, int]:
        return self._allocate("cudaMallocHost", "host", size)

    def cudaFreeHost(self, ptr: int) -> tuple[Status]:
        return self._release("cudaFreeHost", "host", ptr)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        assert flags == self.cudaStreamNonBlocking  # others wait for the default stream, and it for them
        return self._called("cudaStreamCreateWithFlags", flags), self._make("stream", _Stream())

    def cudaStreamDestroy(self, stream: int) -> tuple[Status]:
        status = self._called("cudaStreamDestroy", stream)
        self.objects[stream].drain()
        self._drop(stream, "stream")
        return (status,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        status = self._called("cudaStreamSynchronize", stream)
        self.objects[stream].drain()
        return (status,)

    def cudaStreamWaitEvent(self, stream: int, event: int, flags: int) -> tuple[Status]:
        status = self._called("cudaStreamWaitEvent", stream, event, flags)
        marked: _Event = self.objects[event]
        source, mark = marked.stream, marked.mark
        if source is not None:
            self.objects[stream].add(lambda: source.drain(mark) if mark in source.queue else None)
        return (status,)

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Status, int]:
        assert flags == self.cudaEventDisableTiming
        return self._called("cudaEventCreateWithFlags", flags), self._make("event", _Event())

    def cudaEventDestroy(self, event: int) -> tuple[Status]:
        status = self._called("cudaEventDestroy", event)
        self._drop(event, "event")
        return (status,)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Status]:
        status = self._called("cudaEventRecord", event, stream)
        recorded: _Event = self.objects[event]

        def mark() -> None:
            if recorded.mark is mark:
                recorded.passed = True

        recorded.stream, recorded.mark, recorded.passed = self.objects[stream], mark, False
        self.objects[stream].add(mark)
        return (status,)

    def cudaEventSynchronize(self, event: int) -> tuple[Status]:
        status = self._called("cudaEventSynchronize", event)
        recorded: _Event = self.objects[event]
        if not recorded.passed and recorded.stream is not None:
            recorded.stream.drain(recorded.mark)
        return (status,)

    def cudaEventQuery(self, event: int) -> tuple[Status]:
        status = self._called("cudaEventQuery", event)
        return (status if status or self.objects[event].passed else Status.cudaErrorNotReady,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: int, stream: int) -> tuple[Status]:
        assert kind == self.cudaMemcpyKind.cudaMemcpyDefault
        status = self._called("cudaMemcpyAsync", dst, src, count, kind, stream)
        self.objects[stream].add(lambda: ctypes.memmove(dst, src, count) and None)
        return (status,)

    def cudaMemsetAsync(self, devPtr: int, value: int, count: int, stream: int) -> tuple[Status]:
        status = self._called("cudaMemsetAsync", devPtr, value, count, stream)
        self.objects[stream].add(lambda: ctypes.memset(devPtr, value, count) and None)
        return (status,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[Status]:
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        status = self._called("cudaStreamBeginCapture", stream, mode)
        self.objects[stream].captured = []
        return (status,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Status, int]:
        status = self._called("cudaStreamEndCapture", stream)
        work, self.objects[stream].captured = self.objects[stream].captured, None
        return status, 0 if status else self._make("graph", work)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Status, int]:
        status = self._called("cudaGraphInstantiate", graph, flags)
        return status, 0 if status else self._make("exec", self.objects[graph])

    def cudaGraphDestroy(self, graph: int) -> tuple[Status]:
        status = self._called("cudaGraphDestroy", graph)
        self._drop(graph, "graph")
        return (status,)

    def cudaGraphLaunch(self, graphExec: int, stream: int) -> tuple[Status]:
        status = self._called("cudaGraphLaunch", graphExec, stream)
        for work in self.objects[graphExec]:
            self.objects[stream].add(work)
        return (status,)

    def cudaGraphExecDestroy(self, graphExec: int) -> tuple[Status]:
        status = self._called("cudaGraphExecDestroy", graphExec)
        self._drop(graphExec, "exec")
        return (status,)

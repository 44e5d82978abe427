"""The CUDA device layer, driven against a recording fake of cuda.bindings.runtime: the real functions need a GPU.

Where the real package is installed, the fake is checked against its signatures, and the message for a machine without
a driver is the real one's.
"""

import importlib.util
import inspect

import numpy as np
import pytest

from nuwaxl.engine.runners.device.base import Device, Stream
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.device.host import HostDevice
from nuwaxl.errors import DeviceLost, InputError, RenderError

from .fake_cuda import FakeCuda, Status

needs_bindings = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
    reason="needs the package cuda-bindings",
)


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda()


@pytest.fixture
def device(cuda: FakeCuda) -> CudaDevice:
    opened = CudaDevice(0, cuda)
    cuda.calls.clear()
    return opened


def filled(device: Device, *values: float) -> "tuple[int, np.ndarray]":
    memory = device.allocate_host(4 * len(values))
    array = memory.array((len(values),), np.float32)
    array[:] = values
    return memory.address, array


def test_a_device_says_what_it_is(cuda: FakeCuda) -> None:
    cuda.gpus, cuda.capability = 2, (12, 0)
    device = CudaDevice(1, cuda)
    assert (device.kind, device.index, device.name, device.sm) == ("cuda", 1, "NVIDIA Fake", 120)
    assert device.memory() == (3_000_000, 8_000_000)


def test_every_call_is_made_with_the_device_as_the_current_one(cuda: FakeCuda) -> None:
    cuda.gpus = 2
    first, second = CudaDevice(0, cuda), CudaDevice(1, cuda)
    for device in (first, second, first):
        device.allocate(8)
        assert cuda.current == device.index


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_what_a_stream_is_given_is_done_in_order_when_it_is_waited_for(kind: str, cuda: FakeCuda) -> None:
    device: Device = CudaDevice(0, cuda) if kind == "cuda" else HostDevice()
    stream = device.stream()
    source, _ = filled(device, 1.0, 2.0, 3.0)
    target, out = filled(device, 7.0, 7.0, 7.0)
    memory = device.allocate(12)
    assert memory.bytes == 12
    stream.zero(memory.address, 12)
    stream.copy(memory.address, source, 8)
    stream.copy(target, memory.address, 12)
    event = device.event()
    stream.record(event)
    if kind == "cuda":
        assert not event.done()
        assert out.tolist() == [7.0, 7.0, 7.0]  # the fake runs nothing before it must
    event.synchronize()
    assert event.done()
    assert out.tolist() == [1.0, 2.0, 0.0]


def test_a_stream_waits_for_the_mark_of_another(device: CudaDevice) -> None:
    first, second, event = device.stream(), device.stream(), device.event()
    source, _ = filled(device, 4.0)
    middle, _ = filled(device, 0.0)
    target, out = filled(device, 0.0)
    first.copy(middle, source, 4)
    first.record(event)
    second.wait(event)
    second.copy(target, middle, 4)
    second.synchronize()
    assert out[0] == 4.0


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_a_captured_graph_does_its_work_at_every_launch(kind: str, cuda: FakeCuda) -> None:
    device: Device = CudaDevice(0, cuda) if kind == "cuda" else HostDevice()
    stream = device.stream()
    source, given = filled(device, 1.0)
    target, out = filled(device, 0.0)
    graph = stream.capture(lambda: stream.copy(target, source, 4))
    stream.synchronize()
    assert out[0] == 0.0  # capturing ran nothing
    for value in (1.0, 5.0):
        given[0] = value
        graph.launch(stream)
        stream.synchronize()
        assert out[0] == value
    graph.free()
    graph.free()


def test_capture_instantiates_and_frees_what_it_was_made_of(cuda: FakeCuda, device: CudaDevice) -> None:
    stream = device.stream()
    cuda.calls.clear()
    stream.capture(lambda: stream.zero(0, 0))
    assert cuda.names() == [
        "cudaStreamBeginCapture",
        "cudaMemsetAsync",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]


def test_a_failure_while_capturing_ends_the_capture_and_drops_the_graph(cuda: FakeCuda, device: CudaDevice) -> None:
    stream = device.stream()

    def work() -> None:
        raise ValueError("from within")

    with pytest.raises(ValueError, match="from within"):
        stream.capture(work)
    assert cuda.names()[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]
    assert "graph" not in cuda.live.values()

    cuda.fail["cudaGraphInstantiate"] = Status.cudaErrorInvalidValue, 0
    with pytest.raises(RenderError, match="cudaGraphInstantiate"):
        stream.capture(lambda: None)
    assert not {"graph", "exec"} & set(cuda.live.values())


def test_close_frees_everything_that_is_left_last_made_first(cuda: FakeCuda, device: CudaDevice) -> None:
    stream = device.stream()
    device.event()
    device.allocate(8).free()
    device.allocate(16)
    device.allocate_host(8)
    stream.capture(lambda: None)
    cuda.calls.clear()
    device.close()
    device.close()
    assert cuda.names() == ["cudaGraphExecDestroy", "cudaFreeHost", "cudaFree", "cudaEventDestroy", "cudaStreamDestroy"]
    assert not cuda.live


def test_close_frees_the_rest_when_one_fails_and_says_so(cuda: FakeCuda, device: CudaDevice) -> None:
    device.allocate(8)
    device.event()
    cuda.fail["cudaEventDestroy"] = Status.cudaErrorIllegalAddress, 0
    with pytest.raises(DeviceLost, match="cudaEventDestroy"):
        device.close()
    assert "cudaFree" in cuda.names()


def test_what_is_freed_once_is_not_freed_again(cuda: FakeCuda, device: CudaDevice) -> None:
    for resource in (device.allocate(8), device.allocate_host(8), device.event(), device.stream()):
        resource.free()
        resource.free()
    device.close()
    assert not cuda.live


def test_a_full_device_is_a_render_error_that_names_the_way_out(cuda: FakeCuda, device: CudaDevice) -> None:
    cuda.fail["cudaMalloc"] = Status.cudaErrorMemoryAllocation, 1
    device.allocate(8)
    with pytest.raises(RenderError, match=r"expected 50\.0 MB on cuda:0; found text of 2 .*--max-batch"):
        device.allocate(50_000_000)
    device.close()
    assert not cuda.live


def test_an_error_that_ends_the_context_loses_the_device_and_others_do_not(cuda: FakeCuda, device: CudaDevice) -> None:
    stream = device.stream()
    cuda.fail["cudaStreamSynchronize"] = Status.cudaErrorIllegalAddress, 0
    with pytest.raises(DeviceLost, match=r"cudaStreamSynchronize to succeed on cuda:0; found text of 700"):
        stream.synchronize()
    cuda.fail["cudaMemsetAsync"] = Status.cudaErrorInvalidValue, 0
    with pytest.raises(RenderError, match="cudaErrorInvalidValue") as raised:
        stream.zero(0, 0)
    assert not isinstance(raised.value, DeviceLost)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (Status.cudaErrorInsufficientDriver, "no NVIDIA driver, or one too old"),
        (Status.cudaErrorNoDevice, "text of 100"),
    ],
)
def test_a_machine_without_a_gpu_is_one_line(cuda: FakeCuda, status: Status, message: str) -> None:
    cuda.fail["cudaGetDeviceCount"] = status, 0
    with pytest.raises(InputError, match=f"an NVIDIA GPU and its driver; found {message}.*--devices cpu") as raised:
        CudaDevice(0, cuda)
    assert "\n" not in str(raised.value)


def test_a_gpu_that_is_not_there_is_refused(cuda: FakeCuda) -> None:
    with pytest.raises(InputError, match=r"a GPU cuda:3; found 1 GPU; use \"cuda:0\""):
        CudaDevice(3, cuda)


def test_a_missing_package_is_refused_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(InputError, match=r"nuwaxl\[cuda\]"):
        CudaDevice(0)


@needs_bindings
def test_the_fake_has_the_signatures_of_the_real_package() -> None:
    from cuda.bindings import runtime

    functions = [
        name for name in vars(FakeCuda) if name.startswith("cuda") and inspect.isfunction(vars(FakeCuda)[name])
    ]
    assert len(functions) > 20
    for name in functions:
        # The documentation begins with the signature: cudaMemsetAsync(devPtr, int value, size_t count, stream)
        first = (getattr(runtime, name).__doc__ or "").strip().splitlines()[0]
        parameters = [p for p in first.partition("(")[2].rpartition(")")[0].split(", ") if p]
        own = list(inspect.signature(vars(FakeCuda)[name]).parameters)[1:]
        assert len(parameters) == len(own), first
    for status in Status:
        assert int(getattr(runtime.cudaError_t, status.name)) == status
    attribute = runtime.cudaDeviceAttr
    assert int(attribute.cudaDevAttrComputeCapabilityMajor) == FakeCuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor
    assert int(attribute.cudaDevAttrComputeCapabilityMinor) == FakeCuda.cudaDeviceAttr.cudaDevAttrComputeCapabilityMinor
    assert runtime.cudaStreamNonBlocking == FakeCuda.cudaStreamNonBlocking
    assert runtime.cudaEventDisableTiming == FakeCuda.cudaEventDisableTiming
    assert int(runtime.cudaMemcpyKind.cudaMemcpyDefault) == FakeCuda.cudaMemcpyKind.cudaMemcpyDefault
    assert int(runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal) == 1


@needs_bindings
def test_the_real_package_without_a_driver_is_one_line() -> None:
    from cuda.bindings import runtime

    if runtime.cudaGetDeviceCount()[0] == runtime.cudaError_t.cudaSuccess:
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="an NVIDIA GPU and its driver; found no NVIDIA driver"):
        CudaDevice(0)


def test_a_stream_of_the_host_has_no_handle() -> None:
    stream: Stream = HostDevice().stream()
    assert stream.handle == 0

"""BoundRunners that run here: on the host's memory, and on the CUDA layer over a fake that runs everything late."""

import threading
from collections.abc import Callable
from typing import Any

import onnxruntime

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.runners.bound import BoundRunner
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.device.host import HostDevice

from .fake_cuda import FakeCuda

KINDS = ("host", "fake cuda")


def cpu_session(bundle: Bundle, graph: str) -> Any:
    """A session of the CPU provider."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(bundle.file(graph)), options, providers=["CPUExecutionProvider"])


def on_host(bundle: Bundle) -> BoundRunner:
    """With ONNX Runtime's IO binding on plain memory."""
    device = HostDevice()
    return BoundRunner(bundle, device, device.stream(), lambda graph: cpu_session(bundle, graph))


def on_fake(bundle: Bundle, cuda: FakeCuda, options: Callable[[int | None], Any] = lambda number: None) -> BoundRunner:
    """On CudaDevice; runs are queued on the stream like any other work, and done when something waits for it."""
    device = CudaDevice(0, cuda)
    stream = device.stream()
    return BoundRunner(
        bundle, device, stream, lambda graph: LateSession(cuda, stream.handle, cpu_session(bundle, graph)), options
    )


class LateSession:
    """A session of the CPU provider that a stream runs; only threads whose work on the GPU does not end the captures of
    others may open and run it. `ran` has (rows, options) of its bound runs, `threads` who made them."""

    def __init__(self, cuda: FakeCuda, stream: int, session: Any) -> None:
        self._cuda, self._stream, self._session = cuda, stream, session
        self.ran: list[tuple[int, Any]] = []
        self.threads: set[int] = set()
        cuda.check_thread()

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        self._cuda.check_thread()
        self._cuda.drain()
        return self._session.run(outputs, inputs)

    def io_binding(self) -> "LateBinding":
        return LateBinding(self._session.io_binding())

    def run_with_iobinding(self, binding: "LateBinding", options: Any) -> None:
        self._cuda.check_thread()
        self.ran.append((binding.rows, options))
        self.threads.add(threading.get_ident())
        self._cuda.objects[self._stream].add(lambda: self._session.run_with_iobinding(binding.real))


class ReleasingSession(LateSession):
    """As sessions are from onnxruntime 1.30 on. `released` has the numbers of captured graphs given up."""

    def __init__(self, cuda: FakeCuda, stream: int, session: Any) -> None:
        super().__init__(cuda, stream, session)
        self.released: list[int] = []

    def release_captured_graph(self, number: int) -> None:
        assert self.threads == {threading.get_ident()}
        self.released.append(number)


class LateBinding:
    """Binds memory of the "cuda" device as what it is, memory of the host."""

    def __init__(self, real: Any) -> None:
        self.real = real
        self.rows = 0

    def bind_input(self, name: str, device_type: str, device_id: int, **tensor: Any) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self.rows = tensor["shape"][0]
        self.real.bind_input(name=name, device_type="cpu", device_id=0, **tensor)

    def bind_output(self, name: str, device_type: str, device_id: int, **tensor: Any) -> None:
        assert (device_type, device_id) == ("cuda", 0)
        self.real.bind_output(name=name, device_type="cpu", device_id=0, **tensor)

"""Results on their way to the host while the device goes on: on a fake GPU that does everything as late as it may."""

import gc

import numpy as np
import pytest

from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.engine.runners.arrivals import Arrival, Arrivals
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.slots import Tensors
from nuwaxl.engine.runners.staging import Staging
from nuwaxl.errors import RenderError

from .fake_cuda import FakeCuda, Status


class Gpu:
    """A device with a tensor of 4 rows of 3 floats, and arrivals."""

    def __init__(self) -> None:
        self.cuda = FakeCuda()
        self.device = CudaDevice(0, self.cuda)
        self.work = self.device.stream()
        self.tensor = Tensors(self.device, [TensorSpec("x", ("batch", 3), "float32")], 4)["x"]
        self.arrivals = Arrivals(self.device, self.work)
        self._staging = Staging(self.device)

    def set(self, value: float) -> None:
        """Queue that all of the tensor becomes value, value + 1, ... by row."""
        rows = (value + np.arange(4, dtype=np.float32))[:, None].repeat(3, axis=1)
        self._staging.send(self.work, {self.tensor.at(0): rows})

    def leave(self, *rows: int) -> Arrival:
        return self.arrivals.rows(self.tensor, rows, np.float32)


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


def test_a_result_is_what_the_rows_were_however_late_it_is_read(gpu: Gpu) -> None:
    gpu.set(10)
    first = gpu.leave(3, 1)
    gpu.set(20)  # what is queued later
    second = gpu.leave(0)
    gpu.set(30)
    assert second.wait().tolist() == [[20.0] * 3]
    assert first.wait().tolist() == [[13.0] * 3, [11.0] * 3]


def test_what_is_queued_behind_a_result_does_not_wait_for_its_copy(gpu: Gpu) -> None:
    gpu.set(10)
    arrival = gpu.leave(0)
    gpu.set(20)
    gpu.work.synchronize()
    streams = {arguments[4] for name, arguments in gpu.cuda.calls if name == "cudaMemcpyAsync"}
    assert len(streams) == 2
    # All work is done, and the copy to the host is still under way.
    assert not arrival._place.landed.done()
    assert arrival.wait().tolist() == [[10.0] * 3]


def test_memory_of_a_result_that_nobody_read_is_taken_again_only_after_its_copy(gpu: Gpu) -> None:
    gpu.set(10)
    dropped = gpu.leave(0, 1)
    del dropped
    gc.collect()
    places = list(gpu.cuda.live.values()).count("host")
    gpu.set(20)
    assert gpu.leave(2, 3).wait().tolist() == [[22.0] * 3, [23.0] * 3]
    assert list(gpu.cuda.live.values()).count("host") == places
    # The copy of the dropped one was not overtaken by what is put aside in its place.
    waits = [name for name, _ in gpu.cuda.calls].count("cudaStreamWaitEvent")
    assert waits >= 3


def test_results_under_way_at_the_same_time_have_memory_of_their_own(gpu: Gpu) -> None:
    arrivals = []
    for value in (10, 20, 30):
        gpu.set(value)
        arrivals.append(gpu.leave(0, 1, 2, 3))
    for value, arrival in zip((10, 20, 30), arrivals, strict=True):
        assert arrival.wait()[:, 0].tolist() == [value, value + 1, value + 2, value + 3]


def test_what_was_read_stays_when_its_memory_is_used_again(gpu: Gpu) -> None:
    gpu.set(10)
    first = gpu.leave(0).wait()
    gpu.set(20)
    gpu.leave(0).wait()
    assert first.tolist() == [[10.0] * 3]


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaMallocHost"])
def test_a_result_without_memory_leaves_those_before_it_alone(gpu: Gpu, function: str) -> None:
    gpu.set(10)
    arrival = gpu.leave(0)
    gpu.cuda.fail[function] = Status.cudaErrorMemoryAllocation, 0
    with pytest.raises(RenderError):
        gpu.arrivals.begin((1000,), np.float32)
    gpu.cuda.fail.clear()
    assert arrival.wait().tolist() == [[10.0] * 3]
    gpu.device.close()
    assert not gpu.cuda.live

"""The TensorRT runner over fakes of CUDA and of TensorRT, against the ONNX Runtime runner. None of it ran on a GPU."""

import gc
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine import Engine
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners import tensorrt
from nuwaxl.engine.runners.base import Denoising, Runner, Segments
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.runners.tensorrt import split
from nuwaxl.errors import DeviceLost, RenderError

from .fake_cuda import Status
from .tensorrt_machine import GPU, Machine

ROW = np.array([[0.9, -0.3, 0.2, 0.7, 0.4, 0]], dtype=np.float32)  # with a part of the history


@pytest.fixture(autouse=True)
def own_acceptances(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was accepted is kept in a folder of the test's."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def machine(own_bundle: Path) -> Machine:
    """A machine whose plans were accepted on its GPU before."""
    return Machine(own_bundle)


@pytest.fixture
def reference(tiny_bundle: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(Bundle.open(tiny_bundle), Worker("cpu#0", threads=1, alone=True))


def segments(count: int, seed: int = 0) -> Segments:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal((count, *shape)).astype(np.float32)

    mask = np.ones((count, 4, 1, 8, 8), dtype=np.float32)
    return Segments(normal(4, 3, 8, 8), normal(4, 3, 2), normal(3, 2), normal(4, 3, 8, 8), mask)


def step(denoising: Denoising, timesteps: list[int], noise: float = 0.0) -> None:
    n = len(timesteps)
    row = np.repeat(ROW, n, 0)
    array = None
    if noise:
        row[:, 5] = 1.0
        array = np.full((n, 4, 3, 8, 8), noise, dtype=np.float32)
    denoising.step(np.array(timesteps), row, np.linspace(0, 3, n).astype(np.float32), array)


def denoise(runner: Runner) -> list[np.ndarray]:
    """Segments that come and go, with and without noise; what each leaves with."""
    left = []
    batch = runner.start(segments(3, seed=1))
    step(batch, [90, 50, 30])
    batch.join(segments(2, seed=2))
    step(batch, [80, 40, 20, 90, 70], noise=0.5)
    step(batch, [70, 30, 10, 80, 60])
    left.append(batch.latents([1, 4]))
    batch.keep([3, 0, 2])
    step(batch, [70, 60, 5])
    batch.join(segments(1, seed=3))
    step(batch, [60, 50, 3, 90])
    left.append(batch.latents([0, 1, 2, 3]))
    batch.keep([2])
    step(batch, [1], noise=0.25)
    step(batch, [0])
    left.append(batch.latents([0]))
    return left


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("batches", [(1,), (1, 2), (2, 4), (8,)])
def test_segments_are_denoised_as_by_onnx_runtime_whatever_the_buckets(
    own_bundle: Path, reference: OnnxRuntimeRunner, runtime: str, batches: tuple[int, ...]
) -> None:
    machine = Machine(own_bundle, runtime)
    machine.add_plans(batches, (GPU,))
    runner = machine.runner()
    for found, expected in zip(denoise(runner), denoise(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert {batch for graph, batch in machine.trt.executed if graph == "step"} <= set(batches)


def test_graphs_that_take_and_give_arrays_answer_as_onnx_runtime(
    machine: Machine, reference: OnnxRuntimeRunner
) -> None:
    runner = machine.runner()
    tokens = np.arange(15).reshape(5, 3) % 8
    np.testing.assert_array_equal(runner.encode_text(tokens), reference.encode_text(tokens))
    latents = segments(3).x
    video = reference.decode(latents)
    np.testing.assert_array_equal(runner.decode(latents), video)
    np.testing.assert_array_equal(runner.encode(video), reference.encode(video))
    np.testing.assert_array_equal(runner.decode(latents[1:2]), video[1:2])
    assert [batch for graph, batch in machine.trt.executed if graph == "text"] == [2, 2, 1]


def test_after_its_first_run_a_bucket_is_one_launch_and_nothing_waits_between_steps(machine: Machine) -> None:
    runner = machine.runner()
    batch = runner.start(segments(2))
    step(batch, [90, 80])
    machine.cuda.calls.clear()
    queued = len(machine.trt.queued)
    for timestep in (70, 60, 50):
        step(batch, [timestep, timestep])
    names = machine.cuda.names()
    assert names.count("cudaGraphLaunch") == 3
    assert len(machine.trt.queued) == queued, "nothing but the recording is launched"
    assert "cudaStreamSynchronize" not in names
    assert names.count("cudaMemcpyAsync") == 9, "timestep, coefficients and guidance alone go to the device"
    assert "cudaMalloc" not in names
    batch.latents([0])
    assert machine.trt.executed.count(("step", 2)) == 4


def test_what_cannot_be_captured_runs_without_a_recording(own_bundle: Path, reference: OnnxRuntimeRunner) -> None:
    machine = Machine(own_bundle, "tensorrt-rtx")
    machine.trt.capturable = False
    for found, expected in zip(denoise(machine.runner()), denoise(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert "cudaStreamBeginCapture" not in machine.cuda.names()


@pytest.mark.filterwarnings("ignore:a plan cannot be captured")
def test_what_tensorrt_finds_not_capturable_while_it_is_captured_runs_without_a_recording(
    machine: Machine, reference: OnnxRuntimeRunner
) -> None:
    machine.trt.fails_in_capture = True
    runner = machine.runner()
    with pytest.warns(UserWarning, match=r"captured into a CUDA graph \(expected execute_async.*kernel by kernel"):
        played = denoise(runner)
    for found, expected in zip(played, denoise(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    names = machine.cuda.names()
    assert "cudaGraphLaunch" not in names
    # Tried once for each context, and ended each time: else nothing would run on the stream any more.
    assert 0 < names.count("cudaStreamBeginCapture") == names.count("cudaStreamEndCapture")
    batch = runner.start(segments(1))
    step(batch, [90])
    before = machine.cuda.names().count("cudaStreamBeginCapture")
    step(batch, [80])
    assert machine.cuda.names().count("cudaStreamBeginCapture") == before


def test_a_device_lost_while_it_captures_is_lost(machine: Machine) -> None:
    runner = machine.runner()
    machine.cuda.fail["cudaStreamEndCapture"] = Status.cudaErrorIllegalAddress, 0
    with pytest.raises(DeviceLost):
        runner.start(segments(1))


def test_a_batch_that_is_dropped_gives_its_memory_to_the_next(machine: Machine) -> None:
    runner = machine.runner()
    batch = runner.start(segments(2))
    step(batch, [90, 80])
    first = batch.latents([0, 1])
    del batch
    gc.collect()
    machine.cuda.calls.clear()
    again = runner.start(segments(2))
    step(again, [90, 80])
    assert "cudaMalloc" not in machine.cuda.names()
    np.testing.assert_array_equal(again.latents([0, 1]), first), "nothing of the last batch is left in it"


def test_segments_that_come_and_go_need_no_more_memory_each_time(machine: Machine) -> None:
    runner = machine.runner()
    batch = runner.start(segments(2))
    for turn in range(4):
        if turn == 2:
            machine.cuda.calls.clear()
        batch.join(segments(1))
        step(batch, [3, 2, 1])
        batch.keep([2, 0])
        step(batch, [0, 2])
    assert "cudaMalloc" not in machine.cuda.names()


def test_the_first_run_is_over_before_it_is_recorded(machine: Machine) -> None:
    runner = machine.runner()
    machine.cuda.calls.clear()
    batch = runner.start(segments(2))
    step(batch, [90, 80])
    names = machine.cuda.names()
    recorded = [index for index, name in enumerate(names) if name == "cudaStreamBeginCapture"]
    assert len(recorded) == 2
    assert all(names[index - 1] == "cudaStreamSynchronize" for index in recorded)


def test_batches_that_live_at_the_same_time_do_not_share_memory(machine: Machine) -> None:
    runner = machine.runner()
    one, two = runner.start(segments(2, seed=1)), runner.start(segments(2, seed=2))
    np.testing.assert_array_equal(one.latents([0, 1]), segments(2, seed=1).x)
    np.testing.assert_array_equal(two.latents([0, 1]), segments(2, seed=2).x)


def test_closing_frees_everything(machine: Machine) -> None:
    runner = machine.runner()
    batch = runner.start(segments(3))
    step(batch, [1, 2, 3])
    runner.decode(segments(1).x)
    runner.close()
    del batch
    gc.collect()
    assert not machine.cuda.live


def test_a_call_that_tensorrt_refuses_is_an_error(machine: Machine) -> None:
    runner = machine.runner()
    batch = runner.start(segments(2))
    with pytest.MonkeyPatch.context() as patch:
        from . import fake_tensorrt

        patch.setattr(fake_tensorrt._Context, "execute_async_v3", lambda self, stream: False)
        with pytest.raises(RenderError, match="execute_async_v3"):
            step(batch, [1, 2])


def test_segments_for_which_there_is_no_memory_leave_no_memory_taken(machine: Machine) -> None:
    runner = machine.runner()
    batch = runner.start(segments(2))
    step(batch, [2, 2])
    runner.lanes(2)
    taken = len(machine.cuda.live)
    allocated = machine.cuda.names().count("cudaMalloc")
    for after in range(12):  # however much of it there still is
        machine.cuda.fail["cudaMalloc"] = Status.cudaErrorMemoryAllocation, allocated + after
        with pytest.raises(RenderError, match="smaller --max-batch"):
            runner.start(segments(4))
        with pytest.raises(RenderError, match="smaller --max-batch"):
            batch.join(segments(4))
        allocated = machine.cuda.names().count("cudaMalloc")
    assert len(machine.cuda.live) == taken
    machine.cuda.fail.clear()
    step(batch, [1, 1])
    assert batch.latents([0, 1]).shape[0] == 2


def test_a_video_is_rendered_as_on_the_cpu(
    machine: Machine, tiny_bundle: Path, story_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nuwaxl.engine import Story

    monkeypatch.setattr(tensorrt, "load_tensorrt", lambda runtime: machine.trt)
    monkeypatch.setattr(tensorrt, "CudaDevice", lambda index: CudaDevice(index, machine.cuda))

    def render(bundle: Path, devices: str) -> np.ndarray:
        with Engine.open(bundle, devices=devices) as engine:
            return np.concatenate([clip.frames for clip in engine.render(Story.load(story_file), frames=25, seed=1)])

    on_cpu = render(tiny_bundle, "cpu").astype(int)
    assert np.abs(render(machine.folder, "tensorrt:0") - on_cpu).max() <= 1
    assert ("step", 2) in machine.trt.executed
    assert not machine.cuda.live


def test_rows_go_into_full_buckets_of_the_largest_and_the_smallest_that_holds_the_rest() -> None:
    assert split(1, (1, 4, 8)) == [(1, 1)]
    assert split(3, (1, 4, 8)) == [(4, 3)]
    assert split(21, (8, 1, 4)) == [(8, 8), (8, 8), (8, 5)]
    assert split(16, (4, 8)) == [(8, 8), (8, 8)]

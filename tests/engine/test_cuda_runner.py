"""The CUDA runner as far as it goes without a GPU.

Its options, its errors, and a render on a fake device whose sessions are the CPU provider's. What only a GPU shows is
marked gpu: CUDA graphs, the provider itself, the kernels.
"""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from nuwaxl.engine import Engine, Story
from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners import cuda as runner_cuda
from nuwaxl.engine.runners import custom_ops
from nuwaxl.engine.runners.base import Runner, Segments
from nuwaxl.engine.runners.device import cuda as device_cuda
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.errors import InputError, RenderError

from .bound import LateSession, ReleasingSession
from .custom_ops import Launcher, with_kernels
from .fake_cuda import FakeCuda

WORKER = Worker("cuda:0", threads=1, alone=True, kind="cuda")


class FakeRuntime:
    """onnxruntime with a CUDA provider whose sessions are the CPU's, run by the fake's stream."""

    __version__ = "1.99"
    SessionOptions = onnxruntime.SessionOptions
    RunOptions = onnxruntime.RunOptions

    def __init__(self, cuda: FakeCuda) -> None:
        self._cuda = cuda
        self.providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        self.started = list(self.providers)
        self.opened: dict[str, dict[str, str]] = {}
        self.sessions: dict[str, LateSession] = {}
        self.session: type[LateSession] = ReleasingSession
        self.captures = True

    def get_available_providers(self) -> list[str]:
        return self.providers

    def InferenceSession(self, path: str, sess_options: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
        ((name, options),) = providers
        assert name == "CUDAExecutionProvider"
        graph = Path(path).stem
        if options["enable_cuda_graph"] == "1" and not self.captures:
            raise RuntimeError("This session cannot use\nthe graph capture feature")
        self.opened[graph] = options
        real = onnxruntime.InferenceSession(path, sess_options, providers=["CPUExecutionProvider"])
        session = self.session(self._cuda, int(options["user_compute_stream"]), real)
        session.get_providers = lambda: self.started  # type: ignore[attr-defined]
        self.sessions[graph] = session
        return session


def segments(count: int) -> Segments:
    x = np.ones((count, 4, 3, 8, 8), np.float32)
    prompt = np.ones((count, 4, 3, 2), np.float32)
    return Segments(x, prompt, prompt[:, 0], x, x[:, :, :1])


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(device_cuda, "load_cuda", lambda: fake)
    return fake


@pytest.fixture
def runtime(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    fake = FakeRuntime(cuda)
    monkeypatch.setattr(runner_cuda, "load_onnxruntime", lambda: fake)
    return fake


def test_a_render_on_the_device_list_has_the_cpus_frames(
    tiny_bundle: Path, story_file: Path, runtime: FakeRuntime, cuda: FakeCuda
) -> None:
    def frames(devices: str) -> np.ndarray:
        with Engine.open(tiny_bundle, devices=devices) as engine:
            return np.concatenate([clip.frames for clip in engine.render(Story.load(story_file), frames=20, seed=2)])

    found, expected = frames("cuda:0"), frames("cpu")
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
    assert not cuda.live  # closed with the engine


def test_the_worker_is_called_after_the_gpu(tiny_bundle: Path, runtime: FakeRuntime) -> None:
    with Engine.open(tiny_bundle, devices="cuda") as engine:
        assert [worker.name for worker in engine.workers] == ["cuda:0"]
        assert engine.workers[0].description.startswith("NVIDIA Fake, ")
    with Engine.open(tiny_bundle, devices="cuda", tf32=True) as engine:
        assert engine.workers[0].description.startswith("NVIDIA Fake with TF32, ")
        assert engine.workers[0].precision == "tf32"


def test_sessions_share_one_stream_and_only_the_step_graph_is_captured(
    tiny_bundle: Path, runtime: FakeRuntime, cuda: FakeCuda
) -> None:
    runner = runner_cuda.CudaRunner(Bundle.open(tiny_bundle), WORKER)
    runner.encode_text(np.array([[1, 2, 3]]))
    assert list(cuda.live.values()).count("stream") == 2  # the other one copies results to the host
    for graph, options in runtime.opened.items():
        assert options["user_compute_stream"] == str(runner.stream.handle)
        assert options["device_id"] == "0"
        assert options["use_tf32"] == options["prefer_nhwc"] == "0"
        assert options["do_copy_in_default_stream"] == "1"  # else copies wait for nothing on the stream
        assert options["arena_extend_strategy"] == "kSameAsRequested"
        assert options["enable_cuda_graph"] == ("1" if graph == "step" else "0")
        assert all(isinstance(value, str) for value in options.values())
    assert set(runtime.opened) == {"prepare", "step", "decode", "text"}
    runner.close()
    assert not cuda.live
    runner_cuda.CudaRunner(Bundle.open(tiny_bundle), WORKER, tf32=True).close()
    assert runtime.opened["step"]["use_tf32"] == "1"


def test_a_step_graph_that_cannot_be_captured_runs_without_and_it_is_said(
    tiny_bundle: Path, story_file: Path, runtime: FakeRuntime, cuda: FakeCuda, caplog: pytest.LogCaptureFixture
) -> None:
    def frames(devices: str) -> np.ndarray:
        with Engine.open(tiny_bundle, devices=devices) as engine:
            return np.concatenate([clip.frames for clip in engine.render(Story.load(story_file), frames=20, seed=2)])

    runtime.captures = False
    with caplog.at_level(logging.WARNING, logger="nuwaxl"):
        found = frames("cuda:0")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "found This session cannot use the graph capture feature; steps are launched kernel by kernel" in message
    assert runtime.opened["step"]["enable_cuda_graph"] == "0"
    assert np.abs(found.astype(int) - frames("cpu")).max() <= 1
    step = runtime.sessions["step"]
    assert isinstance(step, ReleasingSession)
    assert step.released == []
    assert not cuda.live


def test_all_steps_are_run_by_one_thread_whoever_asks(tiny_bundle: Path, runtime: FakeRuntime, cuda: FakeCuda) -> None:
    """The provider keeps what it captured by the thread; a render's workers are threads of its own."""
    with Engine.open(tiny_bundle, devices="cuda:0") as engine:
        for seed in range(2):
            list(engine.render(Story([(0, "sea")]), frames=20, seed=seed))
        step, decode = runtime.sessions["step"], runtime.sessions["decode"]
        assert len(step.threads) == 1
        assert not step.threads & decode.threads
        assert len(step.ran) > 20
        assert step.threads <= cuda.unminding


def test_a_failure_of_a_step_reaches_who_asked(tiny_bundle: Path, runtime: FakeRuntime) -> None:
    with Engine.open(tiny_bundle, devices="cuda:0") as engine:
        engine.costs()

        def fail(*_: Any) -> None:
            raise ValueError("no such kernel")

        runtime.sessions["step"].run_with_iobinding = fail  # type: ignore[method-assign]
        with pytest.raises(RenderError, match="ValueError: no such kernel"):
            list(engine.render(Story([(0, "sea")]), frames=20))


def play_larger_and_larger(runner: Runner) -> list[np.ndarray]:
    """Latents of batches of 1, 4 and 5, each of which outgrows the memory of the one before."""
    denoising, seen, count = runner.start(segments(1)), [], 1
    for more in (3, 1, 0):
        for _ in range(2):
            denoising.step(np.full(count, 9), np.ones((count, 6), np.float32), np.ones(count, np.float32), None)
        seen.append(denoising.latents(range(count)))
        if more:
            denoising.join(segments(more))
            count += more
    return seen


@pytest.mark.parametrize("session", [LateSession, ReleasingSession], ids=["onnxruntime 1.29", "1.30"])
def test_graphs_of_a_batch_that_outgrew_its_memory_are_given_up(
    session: type[LateSession], tiny_bundle: Path, runtime: FakeRuntime
) -> None:
    runtime.session = session
    runner = runner_cuda.CudaRunner(Bundle.open(tiny_bundle), WORKER)
    expected = play_larger_and_larger(OnnxRuntimeRunner(Bundle.open(tiny_bundle), Worker("cpu#0", 1, alone=True)))
    for found, wanted in zip(play_larger_and_larger(runner), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    step = runtime.sessions["step"]
    assert [rows for rows, _ in step.ran] == [1, 1, 4, 4, 5, 5]
    if isinstance(step, ReleasingSession):
        assert step.released == [1, 2]
    runner.close()


def test_run_options_say_which_graph_is_replayed() -> None:
    told: list[tuple[str, str]] = []
    fake = SimpleNamespace(RunOptions=lambda: SimpleNamespace(add_run_config_entry=lambda *entry: told.append(entry)))
    for number in (None, 7):
        runner_cuda.run_options(fake, number)
    assert [value for key, value in told if key == "gpu_graph_id"] == ["-1", "7"]
    assert [value for key, value in told if key.startswith("disable_synchronize")] == ["1", "1"]
    runner_cuda.run_options(onnxruntime, 7)  # the published class has the method


def test_an_onnxruntime_without_the_provider_is_one_line(
    tiny_bundle: Path, runtime: FakeRuntime, cuda: FakeCuda
) -> None:
    runtime.providers = ["CPUExecutionProvider"]
    with pytest.raises(
        InputError, match=r"with CUDAExecutionProvider; found onnxruntime 1\.99 with CPU.*nuwaxl\[cuda\]"
    ):
        Engine.open(tiny_bundle, devices="cuda")
    assert not cuda.live


def test_a_provider_that_does_not_start_is_no_silent_cpu(
    tiny_bundle: Path, runtime: FakeRuntime, cuda: FakeCuda
) -> None:
    runtime.started = ["CPUExecutionProvider"]
    with pytest.raises(InputError, match="CUDAExecutionProvider to start; found CPUExecutionProvider instead"):
        Engine.open(tiny_bundle, devices="cuda")
    assert not cuda.live


def test_a_graph_that_cannot_be_loaded_is_one_line(own_bundle: Path, runtime: FakeRuntime, cuda: FakeCuda) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / "step.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"step\.onnx") as raised:
        runner_cuda.CudaRunner(bundle, WORKER)
    assert "\n" not in str(raised.value)
    assert not cuda.live


def test_convolutions_are_channels_last_with_kernels_but_in_bfloat16(
    own_bundle: Path, runtime: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(custom_ops.KernelLibrary, "register", lambda *_: None)
    monkeypatch.setattr(custom_ops, "_library", Launcher)
    preferred = {}
    for precision in ("fp32", "bf16"):
        bundle = with_kernels(own_bundle, 90)
        object.__setattr__(bundle.manifest, "precision", precision)
        runner = runner_cuda.CudaRunner(bundle, WORKER)
        runner.start(segments(1))
        preferred[precision] = {options["prefer_nhwc"] for options in runtime.opened.values()}
        runner.close()
    assert preferred == {"fp32": {"1"}, "bf16": {"0"}}


def test_half_precision_keeps_the_tensor_cores_for_its_convolutions(own_bundle: Path, runtime: FakeRuntime) -> None:
    bundle = Bundle.open(own_bundle)
    chosen = {}
    for precision in ("fp32", "bf16", "fp16"):
        object.__setattr__(bundle.manifest, "precision", precision)
        runner_cuda.CudaRunner(bundle, WORKER).close()
        chosen[precision] = {options["use_tf32"] for options in runtime.opened.values()}
    assert chosen == {"fp32": {"0"}, "bf16": {"1"}, "fp16": {"1"}}


def test_closing_is_on_the_runners_device_in_any_thread(
    tiny_bundle: Path, runtime: FakeRuntime, cuda: FakeCuda
) -> None:
    runner = runner_cuda.CudaRunner(Bundle.open(tiny_bundle), WORKER)
    runner.start(segments(1))
    entered: list[int] = []

    class Session:
        def __del__(self) -> None:
            entered.append(threading.get_ident() in cuda.unminding)

    runner._sessions["step"] = Session()
    closing = threading.Thread(target=runner.close)
    closing.start()
    closing.join()
    assert entered == [True]


@pytest.mark.gpu
def test_the_demo_on_the_gpu_has_the_cpus_frames(story_file: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    if runner_cuda.PROVIDER not in onnxruntime.get_available_providers():
        pytest.skip("needs onnxruntime-gpu")
    bundle = Bundle.open(demo_bundle())
    story = Story.load(story_file)
    cpu = (Worker("cpu#0", threads=4, alone=True),)

    def frames(engine: Engine) -> np.ndarray:
        with engine:
            return np.concatenate([clip.frames for clip in engine.render(story, frames=46, seed=1, steps=8)])

    expected = frames(Engine(bundle, cpu, (OnnxRuntimeRunner(bundle, cpu[0]),)))
    difference = np.abs(frames(Engine.open(bundle, devices="cuda:0")).astype(int) - expected.astype(int))
    assert difference.mean() < 0.05
    assert difference.max() <= 8

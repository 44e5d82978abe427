"""The ONNX Runtime runner, and what happens where ONNX Runtime is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import Network
from nuwaxl.engine.devices import Worker
from nuwaxl.engine.runners.base import Denoising, Segments
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner, load_onnxruntime
from nuwaxl.errors import InputError

WORKER = Worker("cpu#0", threads=1, alone=True)


@pytest.fixture
def runner(tiny_bundle: Path) -> OnnxRuntimeRunner:
    """A runner of the tiny bundle."""
    return OnnxRuntimeRunner(Bundle.open(tiny_bundle), WORKER)


def normal(*shape: int) -> np.ndarray:
    """Random float32."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_steps_carry_the_latents_and_the_history_from_one_to_the_next(runner: OnnxRuntimeRunner) -> None:
    x = normal(2, 4, 3, 8, 8)
    noise = normal(2, 4, 3, 8, 8) * 3
    known = np.zeros_like(x)
    mask = np.zeros((2, 4, 1, 8, 8), dtype=np.float32)
    denoising = runner.start(Segments(x, normal(2, 4, 3, 2), normal(2, 3, 2), known, mask))
    np.testing.assert_array_equal(denoising.latents([0, 1]), x)

    def step(*row: float, noise: np.ndarray | None = None) -> np.ndarray:
        coefficients = np.tile(np.array(row, dtype=np.float32), (2, 1))
        denoising.step(np.array([9, 9]), coefficients, np.ones(2, dtype=np.float32), noise)
        return denoising.latents([0, 1])

    first = step(0.5, 0, 0, 1, 1, 0)  # x0 = x / 2; history is 0 in the first step
    np.testing.assert_allclose(first, 0.5 * x, rtol=1e-6)
    second = step(0, 0, 1, 0, 3, 0)  # history is the x0 of the first step
    np.testing.assert_allclose(second, 0.5 * x + 3 * 0.5 * x, rtol=1e-6)
    third = step(0, 0, 1, 0, 0, 2, noise=noise)
    np.testing.assert_allclose(third, 2 * x + 2 * noise, rtol=1e-5, atol=1e-6)


def test_guidance_and_timestep_belong_to_each_segment(runner: OnnxRuntimeRunner) -> None:
    x, prompt, negative = normal(1, 4, 3, 8, 8), normal(1, 4, 3, 2), normal(1, 3, 2)
    mask = np.zeros((1, 4, 1, 8, 8), dtype=np.float32)

    def run(timesteps: list[int], guidance: list[float]) -> np.ndarray:
        n = len(timesteps)
        segments = Segments(*(np.repeat(tensor, n, 0) for tensor in (x, prompt, negative, x, mask)))
        denoising = runner.start(segments)
        row = np.array([[1, -1, 0.2, 0.7, 0, 0]], dtype=np.float32)
        denoising.step(np.array(timesteps), np.repeat(row, n, 0), np.array(guidance, dtype=np.float32), None)
        return denoising.latents(range(n))

    together = run([90, 10, 10], [3, 3, 0])
    for slot, (timestep, guidance) in enumerate([(90, 3.0), (10, 3.0), (10, 0.0)]):
        np.testing.assert_allclose(together[slot], run([timestep], [guidance])[0], rtol=1e-6, atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.01
    assert np.abs(together[1] - together[2]).max() > 0.01


def test_segments_that_join_and_leave_between_steps_are_denoised_as_they_would_be_alone(
    runner: OnnxRuntimeRunner,
) -> None:
    rng = np.random.default_rng(1)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    ones = np.ones((1, 4, 1, 8, 8), dtype=np.float32)
    segments = [
        Segments(random(1, 4, 3, 8, 8), random(1, 4, 3, 2), random(1, 3, 2), random(1, 4, 3, 8, 8), ones)
        for _ in range(3)
    ]
    row = np.array([[0.9, -0.3, 0.2, 0.7, 0.4, 0]], dtype=np.float32)  # with a part of the history

    def step(denoising: Denoising, timesteps: list[int]) -> None:
        n = len(timesteps)
        denoising.step(np.array(timesteps), np.repeat(row, n, 0), np.full(n, 2.0, dtype=np.float32), None)

    def alone(segment: Segments) -> np.ndarray:
        denoising = runner.start(segment)
        for timestep in (90, 50, 10):
            step(denoising, [timestep])
        return denoising.latents([0])[0]

    mixed = runner.start(segments[0])
    step(mixed, [90])
    mixed.join(segments[1])
    step(mixed, [50, 90])
    mixed.join(segments[2])
    step(mixed, [10, 50, 90])
    done = [mixed.latents([0])[0]]
    mixed.keep([2, 1])
    step(mixed, [50, 10])
    done.append(mixed.latents([1])[0])
    mixed.keep([0])
    step(mixed, [10])
    done.append(mixed.latents([0])[0])
    for made, segment in zip(done, segments, strict=True):
        np.testing.assert_allclose(made, alone(segment), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_has_its_threads_which_spin_only_where_it_is_alone(tiny_bundle: Path, threads: int) -> None:
    runner = OnnxRuntimeRunner(Bundle.open(tiny_bundle), Worker("cpu#0", threads, alone=threads == 1))
    options = runner._session_options("step")
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads, 1)
    spinning = options.get_session_config_entry("session.intra_op.allow_spinning")
    assert spinning == ("1" if threads == 1 else "0")


def test_encode_and_decode_are_inverse_in_this_bundle(runner: OnnxRuntimeRunner) -> None:
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 8, 3), dtype=np.uint8)
    video = video.repeat(2, axis=2).repeat(2, axis=3)
    latents = runner.encode(video)
    assert latents.shape == (2, 4, 3, 8, 8)
    np.testing.assert_array_equal(runner.decode(latents), video)


def test_a_graph_that_cannot_be_loaded_is_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / "step.onnx").write_bytes(b"not a graph")
    with pytest.raises(InputError, match=r"step\.onnx"):
        OnnxRuntimeRunner(bundle, WORKER)


def test_a_graph_with_other_tensors_than_the_manifest_says_is_refused(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    (own_bundle / "step.onnx").write_bytes((own_bundle / "prepare.onnx").read_bytes())
    with pytest.raises(InputError, match=r"inputs of .*step\.onnx as its manifest names them"):
        OnnxRuntimeRunner(bundle, WORKER)


def test_onnxruntime_does_not_report_to_its_makers(tiny_bundle: Path, tmp_path: Path) -> None:
    # Its builds make a device id and a database in the cache when they do.
    code = f"from nuwaxl.engine import Engine\nEngine.open({str(tiny_bundle)!r}).close()"
    kept = {name: os.environ[name] for name in os.environ if name not in ("ORT_DISABLE_TELEMETRY", "CI")}
    environment = {**kept, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=True)
    assert list(tmp_path.rglob("*")) == []


def python(code: str) -> "subprocess.CompletedProcess[str]":
    """Run code in a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_importing_the_engine_loads_no_runtime_and_no_torch() -> None:
    done = python(
        "import sys, nuwaxl.engine, nuwaxl.engine.cli\n"
        "print(sorted({'onnxruntime', 'torch', 'triton'} & set(sys.modules)))"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_missing_onnxruntime_is_one_line_that_names_the_extra(tiny_bundle: Path) -> None:
    done = python(
        "import sys\nsys.modules['onnxruntime'] = None\n"
        "from nuwaxl.cli import run\nfrom nuwaxl.engine import Engine\n"
        f"sys.exit(run('nuwaxl-render', lambda: Engine.open({str(tiny_bundle)!r})))"
    )
    assert done.returncode == 2
    assert "nuwaxl[cpu]" in done.stderr
    assert "nuwaxl[cuda]" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ctrl_c_while_onnxruntime_is_imported_is_no_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:  # as its native module has it
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr("importlib.import_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_onnxruntime()


@pytest.mark.parametrize("large", [False, True])
def test_large_pictures_are_decoded_without_an_arena(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    import onnxruntime

    arenas: dict[str, bool] = {}
    session = onnxruntime.InferenceSession

    def noted(path: str, sess_options: onnxruntime.SessionOptions, **rest: object) -> object:
        arenas[Path(path).stem] = sess_options.enable_cpu_mem_arena
        return session(path, sess_options=sess_options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    monkeypatch.setattr(Network, "large", large)
    OnnxRuntimeRunner(Bundle.open(tiny_bundle), WORKER)
    assert arenas == {"prepare": True, "step": True, "decode": not large}

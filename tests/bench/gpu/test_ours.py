"""The engine's part of `make gpu`: its render, its profiles and its parity, at a tiny size on the CPU."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from nuwaxl.bench.gpu import kernels, model, ours, parity, profile
from nuwaxl.bench.gpu.gates import gates
from nuwaxl.bench.gpu.model import Workload, workload
from nuwaxl.engine.bundle import demo_bundle
from nuwaxl.engine.devices import Worker
from nuwaxl.errors import InputError
from nuwaxl.export.torch_runner.device import TorchDevice, parse
from nuwaxl.kernels import bench, ops
from nuwaxl.train.presets import SD15


def test_the_engine_renders_the_workload_and_the_baseline(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    work = workload(8, tiny=True)
    ours.measure(work, "torch:cpu", tmp_path, time.monotonic() + 1000, lambda f: found.append(dict(f)), [], 16)
    last = found[-1]
    # What is known is told before what takes long.
    for figure, number in (("devices", 0), ("open_s", 1), ("step_ms", 2), ("warm_s", 3), ("wall_s", 4), ("ar_how", 5)):
        assert [figure in figures for figures in found] == [*[False] * number, *[True] * (len(found) - number)]
    assert ["profile" in figures for figures in found] == [*[False] * 6, True]  # it would slow what comes after it
    assert (last["frames"], last["segments"], last["steps"]) == (20, 11, 3)  # 1 + 3 + 7 of L = 4
    assert last["wall_s"] > 0
    assert last["batch_sizes"][0] == 1
    assert last["batch_sizes"][-1] <= 16
    assert len(last["step_ms"]) == len(last["batch_sizes"])
    assert last["ar_how"] == "measured"
    assert last["ar_windows"] == 7  # 4 frames, then 3 more each
    assert last["ar_reduction"] == pytest.approx(1 - last["wall_s"] / last["ar_wall_s"])
    expected = last["batch"] * last["flop"]["executed"] / (last["batch_step_ms"] / 1e3) / 1e12
    assert last["tflop_s"] == pytest.approx(expected)
    profile = (tmp_path / last["profile"]).read_text()
    assert "nuwaxl::temporal_attention" in profile


def test_without_time_the_baseline_is_added_up(tmp_path: Path) -> None:
    found: list[dict[str, Any]] = []
    news = lambda figures: found.append(dict(figures))  # noqa: E731
    ours.measure(workload(8, tiny=True), "torch:cpu", tmp_path, time.monotonic(), news, [], 16)
    last = found[-1]
    first = next(figures for figures in found if "profile" in figures)
    assert "step_ms" in first
    assert "warm_s" not in first, "the profile says why the render is slow that is stopped"
    assert last["ar_how"] == "extrapolated"
    steps_s = last["ar_windows"] * last["steps"] * last["step_ms"][0] / 1e3
    assert last["ar_wall_s"] == pytest.approx(steps_s + last["decode_s"])


@pytest.mark.parametrize(
    ("worker", "gpu"),
    [
        (Worker("cuda:1", 1, True, kind="cuda", index=1), 1),
        (Worker("tensorrt:0", 1, True, kind="tensorrt"), 0),
        (Worker("torch:cuda:2/eager#0", 1, True, plugin="torch:cuda:2/eager"), 2),
        (Worker("torch:cpu#0", 1, True, plugin="torch:cpu"), None),
    ],
)
def test_a_step_is_profiled_on_every_device_that_the_profiler_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, worker: Worker, gpu: int | None
) -> None:
    began: list[tuple[int, ...]] = []

    class Runner:
        def start(self, segments: Any) -> Any:
            began.append(segments.x.shape)
            return SimpleNamespace(
                step=lambda timestep, *rest: began.append(timestep.shape), latents=lambda slots: None
            )

    asked: list[int | None] = []

    def written(call: Any, path: Path, title: str, gpu: int | None) -> None:
        call()
        asked.append(gpu)

    work = workload(8, tiny=True)
    bundle = model._in_memory(work, tmp_path)
    engine: Any = SimpleNamespace(workers=(worker,), _runners=(Runner(),), bundle=bundle)
    monkeypatch.setattr(ours, "write_profile", written)
    assert ours._profile(engine, work, 3, tmp_path, "cuda:1/x") == {"profile": "profile-cuda-1-x-8.md"}
    assert (began, asked) == ([(3, 4, 4, 4, 4), (3,)], [gpu])

    def refused(*_: object) -> None:
        raise ValueError("no counters")

    monkeypatch.setattr(ours, "write_profile", refused)
    assert ours._profile(engine, work, 3, tmp_path, "cuda:1") == {"profile": "none: no counters"}
    engine.workers = (Worker("cpu#0", 1, True),)
    assert ours._profile(engine, work, 3, tmp_path, "cpu") == {}


def test_a_profile_of_nothing_is_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="expected torch's profiler to see what ran"):
        profile.write_profile(lambda: None, tmp_path / "profile.md", "", None)
    assert not list(tmp_path.iterdir())


def test_our_answers_are_as_near_to_float32_as_the_plain_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    work = workload(8, tiny=True)
    found = parity.measure(work, "cpu")
    assert 1e-4 < found["step_error"] < 1.25 * found["plain_step_error"]
    assert 0 < found["frames_error"] < 1.25 * found["plain_frames_error"]
    assert [gate.passed for gate in gates({"parity": {"figures": found}}, []) if "parity" in gate.name] == [True, True]

    # A step that leaves out a term of the update is seen.
    update = ops.guided_update
    monkeypatch.setattr(ops, "guided_update", lambda x, history, *rest: update(0 * x, history, *rest))
    assert parity.measure(work, "cpu")["step_error"] > 0.1


def test_a_bundle_of_another_network_is_not_rendered_as_sd15(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected Network\(.*found Network\("):
        model.open_engine(Workload(SD15, 64, 1024), "cpu", tmp_path, [demo_bundle()])


@pytest.mark.parametrize("pixels", [128, 256])
def test_the_job_is_the_issues(pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work = workload(pixels, tiny=False)
    mtd, sampler = work.config.mtd, work.config.sampler
    assert (work.frames, work.steps, mtd.length, work.pixels) == (1024, 25, 16, pixels)
    assert (mtd.latent_height, mtd.latent_width) == (pixels // 8, pixels // 8)
    assert mtd.block_channels == (320, 640, 1280, 1280)
    assert (sampler.name, sampler.guidance) == ("dpmpp_2m", 7.5)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert parse("cuda:0") == TorchDevice(torch.device("cuda:0"), torch.bfloat16, compiled=True)


def test_the_kernels_are_measured_at_the_issues_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(*given: Any) -> dict[str, Any]:
        asked.append(given)
        return {"rows": [], "lost": False}

    monkeypatch.setattr(bench, "measure", measured)
    kernels.measure("cuda", tiny=False)
    ((batches, dtype, device, levels, *_),) = asked
    assert (batches, dtype, device) == ([1, 8, 64], torch.bfloat16, "cuda")
    assert levels == {320: 32 * 32, 640: 16 * 16, 1280: 8 * 8}
    assert bench.LENGTH == 16

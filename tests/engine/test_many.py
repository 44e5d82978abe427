"""Several videos rendered together: each is what it would be alone, and one that fails fails alone."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Clip, Engine, Progress, Story, Task
from nuwaxl.engine._core import CostModel
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners.base import Segments
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeDenoising, OnnxRuntimeRunner
from nuwaxl.errors import InputError, RenderError
from tests.engine.conftest import WORDS

SKY = Story([(0, "red sky"), (9, "blue sea")], seed=3)
SEA = Story([(0, "sea")], frames=17)
TASKS = [
    Task(SKY, frames=40),
    Task(SEA),
    Task(SKY, frames=1, steps=2),
    Task(SKY, frames=33, seed=4, steps=9, guidance=0.5, sampler="ddim"),
    Task(SEA, frames=21, negative_prompt="blurry", depth=4),
    Task(SKY, frames=19, method="autoregressive"),
    Task(SEA, frames=30, seed=8, sampler="ddpm"),
]


def alone(engine: Engine, task: Task) -> np.ndarray:
    """The frames of a task rendered by itself."""
    options = {key: value for key, value in vars(task).items() if key != "story"}
    return np.concatenate([clip.frames for clip in engine.render(task.story, **options)])


def together(clips: list[tuple[int, Clip]], count: int) -> list[np.ndarray]:
    """The frames of every video, after checking that its clips came in order."""
    frames: list[list[np.ndarray]] = [[] for _ in range(count)]
    for number, clip in clips:
        assert clip.first_frame == sum(map(len, frames[number]))
        frames[number].append(clip.frames)
    return [np.concatenate(parts) for parts in frames]


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:3"])
@pytest.mark.parametrize("policy", ["eager", "level", "latency"])
def test_videos_rendered_together_are_what_each_is_alone(tiny_bundle: Path, devices: str, policy: Any) -> None:
    with Engine.open(tiny_bundle, devices=devices) as engine:
        videos = engine.render_many(TASKS, policy=policy, max_batch=4)
        made = together(list(videos), len(TASKS))
        assert [(result.frames, result.error) for result in videos.results] == [(len(m), None) for m in made]
        for frames, task in zip(made, TASKS, strict=True):
            assert np.abs(frames.astype(int) - alone(engine, task)).max() <= 1


def test_batches_are_filled_across_videos(tiny_bundle: Path) -> None:
    sizes: Counter[int] = Counter()

    class Counting(OnnxRuntimeRunner):
        def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
            sizes[len(inputs["x"])] += 1
            return super().step(inputs)

    bundle, workers = Bundle.open(tiny_bundle), parse_devices("cpu:1")
    with Engine(bundle, workers, (Counting(bundle, workers[0]),)) as engine:
        engine.costs(4)  # measured, so that only the render's own steps are counted below
        best, widest = (ask(4) for ask in (engine.costs(4)[0].best_batch, engine.costs(4)[0].widest_batch))
        sizes.clear()
        # One segment each: alone they can only run one at a time.
        list(engine.render_many([Task(SKY, frames=3, depth=1, seed=n) for n in range(12)], max_batch=4))
    assert best <= max(sizes) <= widest
    assert sum(size * count for size, count in sizes.items()) == 12 * 5


def test_many_more_videos_than_devices_are_open_a_few_at_a_time(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nuwaxl.engine import render

    alive, most = 0, 0

    class Counted(render.Job):
        def __init__(self, *arguments: Any) -> None:
            nonlocal alive, most
            super().__init__(*arguments)
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    monkeypatch.setattr(render, "Job", Counted)
    ended = set()
    with Engine.open(tiny_bundle, devices="cpu:2") as engine:
        limit = 1 + sum(cost.best_batch(2) for cost in engine.costs(2))
        for number, _ in engine.render_many([Task(SKY, frames=5)] * 60, max_batch=2):
            ended.add(number)
            assert engine._render is not None
            assert (engine._render.recorder.batches, engine._render.recorder.steps_ms) == ([], [])
    assert ended == set(range(60))
    # A worker may hold the last batch's jobs a moment longer.
    assert most <= limit + 4


def test_progress_counts_over_all_videos(tiny_bundle: Path) -> None:
    seen: list[Progress] = []
    with Engine.open(tiny_bundle) as engine:
        list(engine.render_many(TASKS, progress=seen.append))
        requests = [engine.resolve(task) for task in TASKS]
    steps = sum(len(request.plan) * request.steps for request in requests)
    for phase, total in (("diffuse", steps), ("decode", sum(request.frames for request in requests))):
        done = [progress.done for progress in seen if progress.phase == phase]
        assert done == sorted(done)
        assert done[-1] == total
        assert {progress.total for progress in seen if progress.phase == phase} == {total}


class Failing(OnnxRuntimeRunner):
    """Makes the latents of one seed NaN: its noise begins with a number known to the test."""

    poison: float = 0.0

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        outputs = super().step(inputs)
        bad = (inputs["guidance"] == np.float32(self.poison))[:, None, None, None, None]
        return {name: np.where(bad, np.float32("nan"), tensor) for name, tensor in outputs.items()}


@pytest.fixture
def failing_engine(tiny_bundle: Path) -> Callable[[str], Engine]:
    """Engines in which segments of guidance 7 end in NaN."""

    def make(devices: str) -> Engine:
        bundle, workers = Bundle.open(tiny_bundle), parse_devices(devices)
        runners = tuple(Failing(bundle, worker) for worker in workers)
        for runner in runners:
            runner.poison = 7.0
        return Engine(bundle, workers, runners)

    return make


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_a_video_that_fails_leaves_the_others_alone(
    failing_engine: Callable[[str], Engine], devices: str, tmp_path: Path
) -> None:
    tasks = [Task(SKY, frames=40), Task(SKY, frames=90, guidance=7.0), Task(SEA), Task(SEA, seed=9)]
    ends: list[int] = []
    with failing_engine(devices) as engine:
        paths = [tmp_path / f"{number}.mp4" for number in range(4)]
        results = engine.render_many(tasks).save(paths, on_end=lambda number, _: ends.append(number))
        assert [result.error is None for result in results] == [True, False, True, True]
        assert "finite latents" in str(results[1].error)
        assert sorted(ends) == [0, 1, 2, 3]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["0.mp4", "2.mp4", "3.mp4"]
        with pytest.raises(RenderError, match="finite latents"):
            list(engine.render(SKY, frames=3, guidance=7.0))


def test_a_video_whose_prompts_cannot_be_encoded_fails_alone(tiny_bundle: Path) -> None:
    class Choking(OnnxRuntimeRunner):
        def encode_text(self, tokens: np.ndarray) -> np.ndarray:
            if (tokens == WORDS.index("blurry")).any():
                raise ValueError("cannot swallow that")
            return super().encode_text(tokens)

    bundle, workers = Bundle.open(tiny_bundle), parse_devices("cpu:1")
    with Engine(bundle, workers, (Choking(bundle, workers[0]),)) as engine:
        videos = engine.render_many([SEA, Task(SEA, negative_prompt="blurry"), Task(SKY, frames=30)], max_batch=4)
        list(videos)
    assert [result.error is None for result in videos.results] == [True, False, True]
    assert "cannot swallow that" in str(videos.results[1].error)


def test_newcomers_that_cannot_join_fail_with_those_under_way_and_the_device_goes_on(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nuwaxl.engine import render

    begun = threading.Event()
    joins = 0

    class Late(render.Job):
        """All videos but the first come when that is under way."""

        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            assert self.request.seed == 0 or begun.wait(60)

    class Full(OnnxRuntimeRunner):
        """Takes a step when five videos are there."""

        def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
            begun.set()
            while engine._render is not None and engine._render._admitted < 5:
                time.sleep(0.001)
            return super().step(inputs)

    def full_once(self: OnnxRuntimeDenoising, segments: Segments) -> None:
        nonlocal joins
        joins += 1
        if joins == 1:
            raise MemoryError("no room for newcomers")
        join(self, segments)

    join = OnnxRuntimeDenoising.join
    monkeypatch.setattr(OnnxRuntimeDenoising, "join", full_once)
    monkeypatch.setattr(render, "Job", Late)
    bundle, workers = Bundle.open(tiny_bundle), parse_devices("cpu:1")
    with Engine(bundle, workers, (Full(bundle, workers[0]),)) as engine:
        engine._costs = (4, [CostModel([1, 4], [8.0, 11.0])])  # of a device that takes four at once
        videos = engine.render_many([Task(SKY, frames=4, seed=seed) for seed in range(9)], max_batch=4)
        list(videos)
    failed = [number for number, result in enumerate(videos.results) if result.error is not None]
    assert failed == [0, 1, 2, 3]
    assert all("no room for newcomers" in str(videos.results[number].error) for number in failed)


def test_a_file_that_cannot_be_written_fails_alone(tiny_bundle: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from nuwaxl.engine.mp4 import Mp4Writer

    write = Mp4Writer.write

    refused = []

    def full_disk(self: Mp4Writer, frames: np.ndarray) -> None:
        if "bad" in str(self._path):
            time.sleep(0.3)  # further clips of it are there meanwhile
            refused.append(frames)
            raise RenderError("no space left")
        write(self, frames)

    monkeypatch.setattr(Mp4Writer, "write", full_disk)
    with Engine.open(tiny_bundle, devices="cpu:2") as engine:
        results = engine.render_many([Task(SKY, frames=80), SEA]).save([tmp_path / "bad.mp4", tmp_path / "good.mp4"])
    assert "no space left" in str(results[0].error)
    assert len(refused) == 1  # FFmpeg crashes where more is written after a failure
    assert results[1].error is None
    assert [path.name for path in tmp_path.iterdir()] == ["good.mp4"]


def test_bad_tasks_are_refused_before_any_work(tiny_bundle: Path, tmp_path: Path) -> None:
    with Engine.open(tiny_bundle) as engine:
        with pytest.raises(InputError, match="at least one story"):
            engine.render_many([])
        with pytest.raises(InputError, match=r"in task 1, .*frames"):
            engine.render_many([SEA, Task(SKY)])
        with pytest.raises(InputError, match="1 paths"):
            engine.render_many([SEA]).save([])
        (tmp_path / "link.mp4").symlink_to("a.mp4")
        for name in ("a.mp4", "link.mp4"):
            with pytest.raises(InputError, match=r"a path of its own for each task; found .*a\.mp4 more than once"):
                engine.render_many([SEA, SEA]).save([tmp_path / "a.mp4", tmp_path / name])
        with pytest.raises(RenderError, match="none; iterate"):
            _ = engine.render_many([SEA]).results

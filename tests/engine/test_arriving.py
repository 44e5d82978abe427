"""Renders on devices that go on while decoded frames come to the host."""

from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Clip, CostModel, Engine, Story, Task
from nuwaxl.engine.arriving import Arriving
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners.base import Segments
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.stats import Recorder
from nuwaxl.errors import DeviceLost, RenderError

STORY = Story([(0, "red sky"), (9, "blue sea")], seed=3)
SEA = Story([(0, "sea")])


class Later(OnnxRuntimeRunner):
    """Frames are there when they are asked for; `seen` tells what happened in which order."""

    later = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seen: list[str] = []
        self.on_clip: Callable[[np.ndarray], None] = lambda latents: None

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.seen.append("step")
        return super().step(inputs)

    def begin_decode(self, latents: np.ndarray) -> Callable[[], np.ndarray]:
        self.seen.append("begin")
        given = latents.copy()

        def video() -> np.ndarray:
            self.seen.append("clip")
            self.on_clip(given)
            return super(Later, self).decode(given)

        return video


class Queued(Later):
    """A device that is at it for a while, while the host goes on."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.until = 0.0

    @staticmethod
    def seconds(segments: int) -> float:
        return 0.004 * (2 + segments)

    def queue(self, segments: int) -> float:
        self.until = max(self.until, monotonic()) + self.seconds(segments)
        return self.until

    def start(self, segments: Segments) -> "QueuedDenoising":
        return QueuedDenoising(self, super().start(segments), len(segments.x))

    def begin_decode(self, latents: np.ndarray) -> Callable[[], np.ndarray]:
        # The host's work comes first: it is not the device's, which goes on meanwhile.
        video, there = self.decode(latents), self.queue(1)

        def clip() -> np.ndarray:
            sleep(max(0.0, there - monotonic()))
            return video

        return clip


class QueuedDenoising:
    """Waits for the step before, and for the last where latents are asked for."""

    def __init__(self, runner: Queued, inner: Any, count: int) -> None:
        self.runner, self.inner, self.count = runner, inner, count

    def step(self, *arguments: Any) -> None:
        self.wait()
        self.inner.step(*arguments)
        self.runner.queue(self.count)

    def latents(self, slots: Any) -> np.ndarray:
        self.wait()
        return self.inner.latents(slots)

    def join(self, segments: Segments) -> None:
        self.inner.join(segments)
        self.count += len(segments.x)

    def keep(self, slots: Any) -> None:
        self.inner.keep(slots)
        self.count = len(slots)

    def wait(self) -> None:
        sleep(max(0.0, self.runner.until - monotonic()))


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:3"])
def test_steps_that_a_device_queues_are_recorded_with_the_time_they_took(tiny_bundle: Path, devices: str) -> None:
    bundle, workers = Bundle.open(tiny_bundle), parse_devices(devices)
    costs = CostModel([1, 2, 4], [Queued.seconds(size) for size in (1, 2, 4)], Queued.seconds(1))
    with Engine(bundle, workers, tuple(Queued(bundle, worker) for worker in workers)) as engine:
        engine._costs = (4, [costs] * len(workers))  # what a busy machine measures may forbid batches
        video = engine.render(STORY, frames=60, max_batch=4)
        for _ in video:
            pass
    stats = video.stats
    assert 1 in {step.segments for step in stats.steps_ms}
    assert max(step.segments for step in stats.steps_ms) >= 3
    # A stretch of 100 ms begins up to 5 ms late where another thread has Python's lock when a clip has come.
    assert all(step.ms >= 900 * Queued.seconds(step.segments) for step in stats.steps_ms)
    diffuse_s = sum(batch.end_s - batch.start_s for batch in stats.batches if batch.kind == "diffuse")
    assert 0.3 < sum(step.ms for step in stats.steps_ms) / 1e3 / diffuse_s <= 1.001


@pytest.fixture
def later(tiny_bundle: Path) -> Callable[[str], tuple[Engine, list[Later]]]:
    def make(devices: str) -> tuple[Engine, list[Later]]:
        bundle, workers = Bundle.open(tiny_bundle), parse_devices(devices)
        runners = [Later(bundle, worker) for worker in workers]
        engine = Engine(bundle, workers, tuple(runners))
        engine.costs()
        for runner in runners:
            runner.seen.clear()
        return engine, runners

    return make


def frames(engine: Engine, story: Story = STORY, count: int = 100) -> np.ndarray:
    return np.concatenate([clip.frames for clip in engine.render(story, frames=count)]).astype(int)


@pytest.mark.parametrize("devices", ["cpu:1", "cpu:3"])
@pytest.mark.parametrize("policy", ["level", "eager", "latency"])
def test_the_frames_are_those_of_a_runner_that_waits(
    later: Callable[[str], tuple[Engine, list[Later]]], tiny_bundle: Path, devices: str, policy: str
) -> None:
    with Engine.open(tiny_bundle, devices=devices) as engine:
        expected = frames(engine)
    engine, runners = later(devices)
    with engine:
        found = np.concatenate([clip.frames for clip in engine.render(STORY, frames=100, policy=policy)])
    assert np.abs(found - expected).max() <= 1
    seen = [one for runner in runners for one in runner.seen]
    assert seen.count("begin") == seen.count("clip") > 0


def test_the_device_has_its_next_work_before_the_clip_is_waited_for(
    later: Callable[[str], tuple[Engine, list[Later]]],
) -> None:
    engine, (runner,) = later("cpu:1")
    with engine:
        list(engine.render_many([Task(STORY, frames=40, seed=seed) for seed in range(6)], max_batch=1))
    behind = [runner.seen[i + 1] for i, what in enumerate(runner.seen[:-1]) if what == "begin"]
    # Where there is other work: not for the last windows, nor while nobody takes the clips.
    assert behind.count("step") > 2
    assert behind.count("begin") > 0
    # At most two are on their way, the second only until the first is taken.
    under_way = np.cumsum([{"begin": 1, "clip": -1, "step": 0}[what] for what in runner.seen])
    assert under_way.max() <= 2
    assert under_way[-1] == 0


def test_a_clip_that_was_on_its_way_from_a_lost_device_is_decoded_by_another(
    later: Callable[[str], tuple[Engine, list[Later]]], tiny_bundle: Path
) -> None:
    with Engine.open(tiny_bundle) as engine:
        expected = frames(engine)
    engine, runners = later("cpu:2")

    def unplugged(latents: np.ndarray) -> None:
        raise DeviceLost("unplugged")

    runners[1].on_clip = unplugged
    with engine:
        assert np.abs(frames(engine) - expected).max() <= 1
        runners[0].on_clip = runners[1].on_clip = unplugged
        with pytest.raises(RenderError, match="unplugged"):
            frames(engine)


def test_a_clip_that_fails_fails_its_video_alone(later: Callable[[str], tuple[Engine, list[Later]]]) -> None:
    engine, (runner,) = later("cpu:1")
    failed = []

    def first_fails(latents: np.ndarray) -> None:
        if not failed:
            failed.append(latents)
            raise ValueError("no such picture")

    runner.on_clip = first_fails
    with engine:
        videos = engine.render_many([Task(STORY, frames=30), Task(SEA, frames=30, seed=4)])
        list(videos)
        errors = [result.error for result in videos.results]
        assert sum(error is not None for error in errors) == 1
        assert "decode [0]: ValueError: no such picture" in str(next(error for error in errors if error is not None))
        runner.on_clip = lambda latents: None
        assert len(frames(engine)) == 100


def test_a_clip_is_taken_once_whoever_fails() -> None:
    taken: list[int] = []

    def fail(*_: object) -> None:
        raise ValueError("no room")

    def take() -> Clip:
        taken.append(1)
        return Clip(0, np.zeros((1, 2, 2, 3), np.uint8))

    arriving = Arriving()
    arriving.begin((0, 0), take, 0.0)
    with pytest.raises(ValueError, match="no room"):
        arriving.wait(came=fail, failed=fail)
    assert not arriving
    arriving.wait(came=fail, failed=fail)
    assert taken == [1]


def test_a_clip_that_cannot_be_handed_over_fails_its_video_and_nobody_waits(
    later: Callable[[str], tuple[Engine, list[Later]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, _ = later("cpu:1")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("out of luck")

    with engine:
        monkeypatch.setattr(Recorder, "batch", broken)
        with pytest.raises(RenderError, match=r"ZeroDivisionError: out of luck"):
            frames(engine)
        monkeypatch.undo()
        assert len(frames(engine)) == 100


def test_leaving_a_render_early_leaves_no_worker(
    later: Callable[[str], tuple[Engine, list[Later]]], no_worker_is_left: None
) -> None:
    engine, _ = later("cpu:2")
    with engine:
        clips = iter(engine.render(STORY, frames=100))
        next(clips)
        clips.close()

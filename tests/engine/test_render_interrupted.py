"""Renders that do not run to their end: closed, failed, interrupted, or with a slow consumer."""

import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Clip, Engine, Progress, Story
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeDenoising, OnnxRuntimeRunner
from nuwaxl.errors import RenderError

STORY = Story([(0, "red sky"), (9, "blue sea")])


class Hooked(OnnxRuntimeRunner):
    """A runner that calls hooks before its steps and its decodes."""

    before_step: Callable[[], None] = staticmethod(lambda: None)
    before_decode: Callable[[], None] = staticmethod(lambda: None)

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.before_step()
        return super().step(inputs)

    def decode(self, latents: Any) -> Any:
        self.before_decode()
        return super().decode(latents)


@pytest.fixture
def hooked_engine(tiny_bundle: Path) -> Callable[..., Engine]:
    """Makes an engine whose runners call the hooks given."""

    def make(devices: str = "cpu:2", **hooks: Callable[[], None]) -> Engine:
        bundle, workers = Bundle.open(tiny_bundle), parse_devices(devices)
        runners = tuple(Hooked(bundle, worker) for worker in workers)
        for runner in runners:
            for name, hook in hooks.items():
                setattr(runner, name, hook)
        return Engine(bundle, workers, runners)

    return make


@pytest.fixture(autouse=True)
def no_worker_is_left() -> Iterator[None]:
    """No worker thread outlives the test that started it."""
    yield
    assert worker_threads() == []


def worker_threads() -> list[str]:
    """Names of the worker threads alive."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("nuwaxl ")]


def test_leaving_the_iteration_stops_the_workers_within_a_step(hooked_engine: Callable[..., Engine]) -> None:
    steps = 0

    def slow_step() -> None:
        nonlocal steps
        steps += 1
        time.sleep(0.02)

    def leave(progress: Progress) -> None:
        if progress.phase == "diffuse" and progress.done > 10:
            raise EOFError

    engine = hooked_engine(before_step=slow_step)
    with pytest.raises(EOFError):
        for _ in engine.render(STORY, frames=400, steps=100, max_batch=1, progress=leave):
            pass
    at_return = steps
    assert worker_threads() == []
    assert 10 < steps < 100
    time.sleep(0.1)
    assert steps == at_return


def test_closing_the_iterator_stops_the_workers(hooked_engine: Callable[..., Engine]) -> None:
    clips = iter(hooked_engine().render(STORY, frames=300))
    assert worker_threads() == []
    next(clips)
    assert len(worker_threads()) == 2
    clips.close()
    assert worker_threads() == []


def test_ctrl_c_while_waiting_stops_and_joins(hooked_engine: Callable[..., Engine]) -> None:
    engine = hooked_engine(before_step=lambda: time.sleep(0.05))
    began = time.perf_counter()
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        for _ in engine.render(STORY, frames=1000, steps=50):
            pass
    assert time.perf_counter() - began < 30
    assert worker_threads() == []


def test_a_failing_worker_is_an_error_in_the_caller_with_its_cause(
    hooked_engine: Callable[..., Engine],
) -> None:
    calls = 0

    def fail_later() -> None:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise ZeroDivisionError("out of\nluck")

    engine = hooked_engine(before_step=fail_later)
    with pytest.raises(RenderError, match="ZeroDivisionError: out of luck") as caught:
        for _ in engine.render(STORY, frames=300):
            pass
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert "cpu#" in str(caught.value)
    assert worker_threads() == []


def test_a_failing_decoder_is_an_error_after_the_clips_before_it(
    hooked_engine: Callable[..., Engine],
) -> None:
    calls = 0

    def fail_at_third() -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise MemoryError

    engine = hooked_engine("cpu:1", before_decode=fail_at_third)
    with pytest.raises(RenderError, match=r"decode \[2\]: MemoryError"):
        for _ in engine.render(STORY, frames=100):
            pass


def test_latents_that_are_not_finite_are_an_error(
    hooked_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnnxRuntimeDenoising, "latents", lambda self: np.full((1, 4, 3, 8, 8), np.nan, np.float32))
    with pytest.raises(RenderError, match="finite latents"):
        list(hooked_engine().render(STORY, frames=3))


def test_an_engine_can_render_again_after_a_failure(hooked_engine: Callable[..., Engine]) -> None:
    fail = [True]

    def fail_once() -> None:
        if fail.pop() if fail else False:
            raise OSError

    engine = hooked_engine("cpu:1", before_decode=fail_once)
    with pytest.raises(RenderError):
        list(engine.render(STORY, frames=20))
    assert sum(len(clip.frames) for clip in engine.render(STORY, frames=20)) == 20


def test_with_a_slow_consumer_few_clips_are_alive(hooked_engine: Callable[..., Engine]) -> None:
    """Memory beyond the latents does not grow with the number of frames: clips wait in a bounded number."""
    decoded = 0

    def count() -> None:
        nonlocal decoded
        decoded += 1

    engine = hooked_engine("cpu:2", before_decode=count)
    alive: list[weakref.ref[Clip]] = []
    most_ahead = most_alive = 0
    clips = iter(engine.render(STORY, frames=200))
    for taken, clip in enumerate(clips):
        alive.append(weakref.ref(clip))
        del clip
        if taken < 20:
            time.sleep(0.03)
        gc.collect(0)
        most_ahead = max(most_ahead, decoded - taken)
        most_alive = max(most_alive, sum(ref() is not None for ref in alive))
    assert taken > 90
    assert most_alive == 1
    assert 2 <= most_ahead <= 6


def test_an_abandoned_iterator_stops_its_workers(hooked_engine: Callable[..., Engine]) -> None:
    clips = iter(hooked_engine().render(STORY, frames=300))
    next(clips)
    assert worker_threads() != []
    del clips
    gc.collect()
    assert worker_threads() == []

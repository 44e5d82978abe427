"""Renders that do not run to their end: closed, failed, interrupted, or with a slow consumer."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Clip, Engine, Progress, Story, Task, process
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.device_worker import DeviceWorker
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners.base import Segments
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeDenoising, OnnxRuntimeRunner
from nuwaxl.errors import DeviceLost, InputError, RenderCancelled, RenderError
from tests.engine.conftest import worker_threads

STORY = Story([(0, "red sky"), (9, "blue sea")])


pytestmark = pytest.mark.usefixtures("no_worker_is_left")


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
    assert 10 < steps < 1000  # of 20 000 and more
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


@pytest.mark.parametrize("more", [1, 2])
def test_a_second_ctrl_c_waits_for_the_workers_too_and_a_third_does_not(
    hooked_engine: Callable[..., Engine], more: int
) -> None:
    def interrupt() -> None:
        for _ in range(1 + more):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    engine = hooked_engine("cpu", before_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(engine.render(STORY, frames=30))
    assert len(worker_threads()) == more - 1
    process._stop_all()  # as at exit: threads that it tears out of C++ abort the process
    assert worker_threads() == []


def test_what_was_under_way_is_freed_as_soon_as_the_workers_end(
    hooked_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[weakref.ref[OnnxRuntimeDenoising]] = []
    start = OnnxRuntimeRunner.start

    def seen(self: OnnxRuntimeRunner, segments: Segments) -> OnnxRuntimeDenoising:
        begun.append(weakref.ref(denoising := start(self, segments)))
        return denoising

    monkeypatch.setattr(OnnxRuntimeRunner, "start", seen)
    clips = iter(hooked_engine().render(STORY, frames=300))
    next(clips)
    gc.collect()
    gc.disable()  # memory of a GPU is not what the collector counts
    try:
        clips.close()
        assert [ref() for ref in begun if ref() is not None] == []
    finally:
        gc.enable()
    assert len(begun) > 2


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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("devices", ["cpu:1", "cpu:2"])
def test_nobody_waits_for_a_worker_that_broke(
    hooked_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch, devices: str
) -> None:
    run = DeviceWorker._run

    def first_breaks(self: DeviceWorker) -> None:
        if self._number == 0:
            raise ZeroDivisionError("out of luck")
        run(self)

    engine = hooked_engine(devices)
    monkeypatch.setattr(DeviceWorker, "_run", first_breaks)
    if devices == "cpu:2":
        assert sum(len(clip.frames) for clip in engine.render(STORY, frames=30)) == 30
    else:
        with pytest.raises(RenderError, match="ZeroDivisionError: out of luck"):
            list(engine.render(STORY, frames=30))


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
    monkeypatch.setattr(
        OnnxRuntimeDenoising, "latents", lambda self, slots: np.full((len(slots), 4, 3, 8, 8), np.nan, np.float32)
    )
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


@pytest.mark.parametrize("devices", ["cpu", "cpu:2"])
def test_an_interpreter_may_exit_with_an_iteration_left_open(tiny_bundle: Path, devices: str) -> None:
    program = (
        "import sys\n"
        "from nuwaxl.engine import Engine, Story\n"
        "engine = Engine.open(sys.argv[1], devices=sys.argv[2])\n"
        "clips = iter(engine.render(Story([(0, 'red sky')]), frames=3000, steps=50))\n"
        "next(clips)\n"
        "print('taken')\n"
    )
    command = [sys.executable, "-c", program, str(tiny_bundle), devices]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "taken\n", "")


def test_a_process_forked_in_a_render_may_exit_as_any_other(tiny_bundle: Path) -> None:
    program = (
        "import os, sys\n"
        "from nuwaxl.engine import Engine, Story\n"
        "engine = Engine.open(sys.argv[1], devices='cpu:2')\n"
        "clips = iter(engine.render(Story([(0, 'red sky')]), frames=300))\n"
        "next(clips)\n"
        "if (child := os.fork()) == 0:\n"
        "    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 1 + len(list(clips)))\n"
    )
    command = [sys.executable, "-c", program, str(tiny_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    windows = len(list(Engine.open(tiny_bundle).render(Story([(0, "red sky")]), frames=300)))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"7 {windows}\n", "")


def test_cancelling_from_another_thread_ends_the_iteration_within_a_step(hooked_engine: Callable[..., Engine]) -> None:
    engine = hooked_engine("cpu:2", before_step=lambda: time.sleep(0.1))
    video = engine.render(STORY, frames=400, steps=100, max_batch=1)
    cancelled = threading.Timer(0.5, video.cancel)
    cancelled.start()
    began = time.perf_counter()
    with pytest.raises(RenderCancelled):
        list(video)
    assert time.perf_counter() - began < 10  # the whole render takes a quarter of an hour
    assert worker_threads() == []
    assert sum(len(clip.frames) for clip in engine.render(STORY, frames=3, steps=1)) == 3


def test_an_async_iteration_leaves_the_loop_free_and_gives_the_same_frames(
    hooked_engine: Callable[..., Engine],
) -> None:
    video = hooked_engine("cpu:2", before_step=lambda: time.sleep(0.01)).render(STORY, frames=30)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    async def take() -> list[Clip]:
        ticking = asyncio.create_task(tick())
        clips = [clip async for clip in video]
        ticking.cancel()
        return clips

    frames = np.concatenate([clip.frames for clip in asyncio.run(take())])
    assert ticks > 5
    np.testing.assert_array_equal(frames, np.concatenate([clip.frames for clip in video]))


def test_cancelling_the_task_of_an_async_iteration_stops_the_workers(hooked_engine: Callable[..., Engine]) -> None:
    engine = hooked_engine("cpu:2", before_step=lambda: time.sleep(0.02))

    async def take() -> None:
        async for _ in engine.render(STORY, frames=400, steps=100):
            pass

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(take(), 0.5)

    asyncio.run(main())
    assert worker_threads() == []
    assert sum(len(clip.frames) for clip in engine.render(STORY, frames=3, steps=1)) == 3


def test_two_engines_of_one_process_render_at_the_same_time(hooked_engine: Callable[..., Engine]) -> None:
    first, second = (iter(hooked_engine("cpu:2").render(STORY, frames=60, seed=seed)) for seed in (1, 2))
    pairs = list(zip(first, second, strict=True))
    assert sum(len(clip.frames) for clip, _ in pairs) == 60
    assert any((one.frames != other.frames).any() for one, other in pairs)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_engine_is_refused_in_a_forked_process(tiny_bundle: Path) -> None:
    engine = Engine.open(tiny_bundle)
    child = os.fork()
    if child == 0:
        try:
            engine.render(STORY, frames=3)
        except InputError as error:
            os._exit(0 if "after the fork" in str(error) else 3)
        os._exit(4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Breaking(OnnxRuntimeRunner):
    """A runner of a device that goes away after some steps."""

    steps_left = 10**9

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise DeviceLost("unplugged")
        return super().step(inputs)


@pytest.mark.parametrize("steps_left", [0, 7, 33])
def test_the_other_devices_take_over_what_a_lost_one_had_under_way(tiny_bundle: Path, steps_left: int) -> None:
    bundle, workers = Bundle.open(tiny_bundle), parse_devices("cpu:2")
    runners = tuple(Breaking(bundle, worker) for worker in workers)
    with Engine(bundle, workers, runners) as engine:
        undisturbed = np.concatenate([clip.frames for clip in engine.render(STORY, frames=100)])
        runners[1].steps_left = steps_left
        found = np.concatenate([clip.frames for clip in engine.render(STORY, frames=100)])
        assert np.abs(found.astype(int) - undisturbed).max() <= 1
        # On a busy machine the other one may have had too little to do to be lost yet.
        runners[0].steps_left, runners[1].steps_left = 20, 0
        with pytest.raises(RenderError, match="unplugged"):
            list(engine.render(STORY, frames=100))


def test_when_all_devices_are_lost_every_video_fails_those_that_had_not_begun_too(tiny_bundle: Path) -> None:
    bundle, workers = Bundle.open(tiny_bundle), parse_devices("cpu:2")
    runners = tuple(Breaking(bundle, worker) for worker in workers)
    with Engine(bundle, workers, runners) as engine:
        engine.costs(2)
        for runner in runners:
            runner.steps_left = 20
        videos = engine.render_many([Task(STORY, frames=9, seed=seed) for seed in range(40)], max_batch=2)
        list(videos)
    errors = [str(result.error) for result in videos.results if result.error is not None]
    assert len(errors) > 20
    assert all("unplugged" in error for error in errors)


def test_costs_are_measured_on_the_devices_that_are_left(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path))
    bundle, workers = Bundle.open(tiny_bundle), parse_devices("cpu:2")
    runners = tuple(Breaking(bundle, worker) for worker in workers)
    runners[0].steps_left = 1
    with Engine(bundle, workers, runners) as engine:
        assert sum(len(clip.frames) for clip in engine.render(STORY, frames=30)) == 30
        runners[1].steps_left = 1
        with pytest.raises(DeviceLost, match="unplugged"):
            engine.costs(17)

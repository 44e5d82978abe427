"""The engine inside another program: threads, an event loop, other processes, and closing at any moment."""

import asyncio
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Clip, CostModel, Engine, Progress, Story, Task, Video
from nuwaxl.engine.job import Job
from nuwaxl.errors import DeviceLost, InputError, RenderCancelled, RenderError
from tests.engine.conftest import worker_threads

STORY = Story([(0, "red sky"), (9, "blue sea")])
Make = Callable[..., Engine]


pytestmark = pytest.mark.usefixtures("no_worker_is_left")


@pytest.fixture
def no_known_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Costs must be measured."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "no_known_costs"))


def length(clips: list[Clip]) -> int:
    return sum(len(clip.frames) for clip in clips)


def test_threads_that_ask_for_costs_at_once_measure_once(hooked_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def slow(*arguments: Any) -> list[CostModel]:
        measured.append(arguments[3])
        time.sleep(0.2)
        return [CostModel([1], [1.0])] * 2

    engine = hooked_engine()
    monkeypatch.setattr("nuwaxl.engine.engine.device_costs", slow)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.costs, [17] * 8))
    assert measured == [17]
    found[0].clear()  # the caller's own
    assert len(engine.costs(17)) == 2


def test_costs_are_not_measured_on_devices_that_render(hooked_engine: Make) -> None:
    engine = hooked_engine()
    clips = iter(engine.render(STORY, frames=100, max_batch=4))
    next(clips)
    assert len(engine.costs(4)) == 2
    with pytest.raises(RenderError, match="idle engine"):
        engine.costs(17)
    clips.close()
    assert len(engine.costs(17)) == 2


def test_closing_the_engine_ends_a_render_within_a_step(hooked_engine: Make) -> None:
    steps = 0

    def slow_step() -> None:
        nonlocal steps
        steps += 1
        time.sleep(0.05)

    engine = hooked_engine(before_step=slow_step)
    engine.costs(1)
    with ThreadPoolExecutor(1) as pool:
        rendering = pool.submit(list, engine.render(STORY, frames=400, steps=100, max_batch=1))
        before = steps
        while steps < before + 6:
            time.sleep(0.01)
        at_close = steps
        engine.close()
        assert worker_threads() == []
        at_return = steps
        with pytest.raises(RenderCancelled):
            rendering.result(60)
    assert at_return - at_close <= 20  # of 20 000 and more
    assert steps == at_return
    engine.close()
    with pytest.raises(InputError, match="closed"):
        engine.costs(1)


def test_leaving_the_engines_block_ends_an_iteration_that_was_left_open(hooked_engine: Make) -> None:
    with hooked_engine() as engine:
        clips = iter(engine.render(STORY, frames=300))
        next(clips)
        unbegun = engine.render(STORY, frames=3)
    assert worker_threads() == []
    with pytest.raises(RenderCancelled):
        list(clips)
    with pytest.raises(InputError, match="closed"):
        list(unbegun)


def test_a_second_iteration_at_once_is_refused_and_leaves_the_first_alone(hooked_engine: Make) -> None:
    video = hooked_engine().render(STORY, frames=60)
    first = iter(video)
    taken = [next(first)]
    with pytest.raises(RenderError, match="idle engine"):
        next(iter(video))
    assert length(taken + list(first)) == 60
    assert video.stats.frames == 60
    second = iter(video)
    next(second)
    with pytest.raises(RenderError, match="idle engine"):
        list(video)
    video.cancel()  # still means the one that runs
    with pytest.raises(RenderCancelled):
        list(second)


def test_a_progress_callback_may_cancel_or_raise(hooked_engine: Make) -> None:
    engine = hooked_engine()

    def cancel(progress: Progress) -> None:
        if progress.phase == "decode":
            video.cancel()

    video = engine.render(STORY, frames=300, progress=cancel)
    taken: list[Clip] = []
    with pytest.raises(RenderCancelled):
        taken.extend(iter(video))
    assert length(taken) < 300

    def refuse(progress: Progress) -> None:
        raise LookupError("not today")

    with pytest.raises(LookupError, match="not today"):
        list(engine.render(STORY, frames=300, progress=refuse))
    assert worker_threads() == []
    assert length(list(engine.render(STORY, frames=3))) == 3


def test_cancelling_before_the_start_is_not_too_early(hooked_engine: Make, tmp_path: Path) -> None:
    async def first(video: Video) -> Clip:
        return await anext(aiter(video))

    engine = hooked_engine(before_step=pytest.fail)
    video, videos = engine.render(STORY, frames=3), engine.render_many([Task(STORY, frames=3)])
    video.cancel()
    videos.cancel()
    attempts: list[Callable[[], object]] = [
        lambda: list(video),
        lambda: list(videos),
        lambda: video.save(tmp_path / "video.mp4"),
        lambda: videos.save([tmp_path / "video.mp4"]),
        lambda: asyncio.run(first(video)),
    ]
    for attempt in attempts:
        with pytest.raises(RenderCancelled):
            attempt()
    assert list(tmp_path.iterdir()) == []


def test_cancelling_a_task_leaves_the_video_usable(hooked_engine: Make) -> None:
    video = hooked_engine(before_step=lambda: time.sleep(0.01)).render(STORY, frames=9)

    async def take() -> list[Clip]:
        return [clip async for clip in video]

    async def main() -> int:
        task = asyncio.create_task(take())
        await asyncio.sleep(0)  # it has begun, its thread perhaps not
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return length(await take())

    assert asyncio.run(main()) == 9


@pytest.mark.usefixtures("no_known_costs")
def test_cancelling_while_costs_are_measured_ends_within_a_step(hooked_engine: Make) -> None:
    steps = 0

    def slow_step() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            video.cancel()
        time.sleep(0.2)

    video = hooked_engine(measured=False, before_step=slow_step).render(STORY, frames=30)
    with pytest.raises(RenderCancelled):
        list(video)
    assert steps <= 7  # of two devices, each of which takes 15 and more


@pytest.mark.usefixtures("no_known_costs")
def test_ctrl_c_while_costs_are_measured_ends_within_a_step(hooked_engine: Make) -> None:
    steps = 0

    def slow_step() -> None:
        nonlocal steps
        steps += 1
        if steps == 5:  # both are under way
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.2)

    engine = hooked_engine(measured=False, before_step=slow_step)
    with pytest.raises(KeyboardInterrupt):
        list(engine.render(STORY, frames=30))
    assert steps <= 12  # of two devices, each of which takes 15 and more
    engine.close()


@pytest.mark.usefixtures("no_known_costs")
def test_a_failing_measurement_is_an_error_with_its_cause(hooked_engine: Make) -> None:
    failing = [True]

    def fail() -> None:
        if failing[0]:
            raise ZeroDivisionError("out of\nluck")

    engine = hooked_engine(measured=False, before_step=fail)
    with pytest.raises(RenderError, match="costs failed: ZeroDivisionError: out of luck") as caught:
        list(engine.render(STORY, frames=3))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    failing[0] = False
    assert length(list(engine.render(STORY, frames=3))) == 3


def test_many_prompts_are_given_up_between_their_batches(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as engine:
        task = Task(Story([(frame, f"sky {frame}") for frame in range(40)]), frames=40)
        job = Job(engine.bundle.manifest.network, engine._tokenizer, task.story, engine.resolve(task))
        checks = 0

        def stop_at_second() -> None:
            nonlocal checks
            checks += 1
            if checks == 2:
                raise RenderCancelled("enough")

        with pytest.raises(RenderCancelled):
            job.encode_text(engine._runners[0], stop_at_second)
        assert job.encode_text(engine._runners[0], lambda: None)
        assert job.texts == 41


def test_an_error_comes_out_of_an_async_iteration(hooked_engine: Make) -> None:
    fail = [False]

    def break_down() -> None:
        if fail[0]:
            raise ZeroDivisionError

    engine = hooked_engine(before_decode=break_down)
    engine.costs()
    fail[0] = True

    async def take() -> None:
        async for _ in engine.render(STORY, frames=30):
            pass

    with pytest.raises(RenderError, match="ZeroDivisionError"):
        asyncio.run(take())
    fail[0] = False
    assert length(list(engine.render(STORY, frames=3))) == 3


def test_leaving_an_async_iteration_early_stops_the_workers(hooked_engine: Make) -> None:
    engine = hooked_engine()

    async def first() -> Clip:
        async for clip in engine.render(STORY, frames=300):
            return clip
        raise AssertionError

    assert asyncio.run(first()).first_frame == 0
    assert worker_threads() == []
    assert length(list(engine.render(STORY, frames=3))) == 3


def test_several_videos_are_taken_by_an_async_iteration(hooked_engine: Make) -> None:
    videos = hooked_engine().render_many([Task(STORY, frames=20), Task(STORY, frames=9, seed=1)])

    async def take() -> list[tuple[int, Clip]]:
        return [item async for item in videos]

    clips = asyncio.run(take())
    assert [length([clip for number, clip in clips if number == n]) for n in (0, 1)] == [20, 9]
    assert [result.error for result in videos.results] == [None, None]


def test_ctrl_c_in_an_event_loop_stops_the_workers(hooked_engine: Make) -> None:
    engine = hooked_engine(before_step=lambda: time.sleep(0.05))

    async def take() -> None:
        async for _ in engine.render(STORY, frames=1000, steps=50):
            pass

    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(take())


def test_without_devices_all_videos_fail_also_those_not_begun(hooked_engine: Make) -> None:
    gone = [False]

    def unplug() -> None:
        if gone[0]:
            raise DeviceLost("unplugged")

    engine = hooked_engine(before_step=unplug)
    engine.costs(2)
    gone[0] = True
    videos = engine.render_many([Task(STORY, frames=3)] * 30, max_batch=2)
    assert list(videos) == []
    assert all("unplugged" in str(result.error) for result in videos.results)
    assert len(videos.results) == 30


def in_a_fork(engine: Engine, clips: Iterator[Clip], answers: Any) -> None:
    """What a forked process does with an engine and an iteration that it inherited."""
    for attempt in (lambda: list(engine.render(STORY, frames=3)), engine.costs, lambda: next(clips)):
        try:
            attempt()
            answers.put("nothing was raised")
        except InputError as error:
            answers.put(str(error))
    engine.close()
    answers.put("closed")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_open_an_engine_of_its_own(tiny_bundle: Path) -> None:
    engine = Engine.open(tiny_bundle, devices="cpu:2")
    clips = iter(engine.render(STORY, frames=300))
    taken = [next(clips)]
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=in_a_fork, args=(engine, clips, answers))
    child.start()
    told = [answers.get(timeout=60) for _ in range(4)]
    child.join(60)
    assert child.exitcode == 0
    assert all("open an engine after the fork" in answer for answer in told[:3])
    assert told[3] == "closed"
    assert length(taken + list(clips)) == 300  # the parent is not disturbed
    engine.close()


def test_an_engine_cannot_be_sent_to_another_process(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as engine, pytest.raises(InputError, match=r"call Engine\.open there"):
        pickle.dumps(engine)


def test_users_without_a_home_have_a_cache_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from nuwaxl.engine.costs import cache_folder

    def nobody(kind: type[Path]) -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", classmethod(nobody))
    monkeypatch.delenv("NUWAXL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder().is_absolute()


def test_two_threads_with_an_engine_each_make_what_one_makes(hooked_engine: Make) -> None:
    def frames(seed: int) -> np.ndarray:
        with hooked_engine("cpu:1") as engine:
            return np.concatenate([clip.frames for clip in engine.render(STORY, frames=40, seed=seed)])

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(frames, [1, 2]))
    for seed, found in zip([1, 2], together, strict=True):
        assert np.abs(found.astype(int) - frames(seed)).max() <= 1

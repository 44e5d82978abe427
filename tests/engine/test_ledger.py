"""What workers and the thread that takes the events tell each other."""

import threading
import time
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine._core import CostModel, Plan, Scheduler
from nuwaxl.engine.job import Clip
from nuwaxl.engine.ledger import Counts, Ledger
from nuwaxl.engine.windows import decode_windows
from nuwaxl.errors import RenderCancelled, RenderError

JOB: Any = SimpleNamespace(
    request=SimpleNamespace(plan=Plan(7, 4), steps=2),
    windows=decode_windows(7, 4, 1),
    finished=[],
    close=lambda: None,
)
CLIP = Clip(0, np.zeros((1, 2, 2, 3), np.uint8))


def ledger_of(devices: int = 1) -> tuple[Ledger, Scheduler]:
    scheduler = Scheduler(policy="eager", devices=[CostModel([1], [1.0], 0.1)] * devices, max_batch=1)
    return Ledger(scheduler), scheduler


def test_a_clip_is_news_and_can_be_taken_once() -> None:
    ledger, _ = ledger_of()
    ledger.open(0, JOB, decode_ahead=1)
    assert ledger.news() == (None, Counts())
    ledger.decoded((0, 0), CLIP)
    ledger.count(texts=2, steps=3)
    ledger.wait()
    assert ledger.news() == (0, Counts(texts=2, steps=3))
    assert ledger.take(0, 1) is None
    assert ledger.take(0, 0) is CLIP
    assert ledger.take(0, 0) is None
    assert ledger.news() == (None, Counts(texts=2, steps=3))


def test_whoever_waits_is_woken_by_what_another_thread_writes_down() -> None:
    ledger, _ = ledger_of()
    ledger.open(0, JOB, decode_ahead=1)
    for write in (lambda: ledger.count(steps=1), lambda: ledger.decoded((0, 0), CLIP), ledger.cancel):
        waiting = threading.Thread(target=ledger.wait)
        waiting.start()
        time.sleep(0.02)
        assert waiting.is_alive()
        write()
        waiting.join(60)
        assert not waiting.is_alive()


def test_the_first_failure_of_a_job_counts_and_the_scheduler_knows_it() -> None:
    ledger, scheduler = ledger_of()
    for number in range(2):
        ledger.open(number, JOB, decode_ahead=1)
    first = ledger.blame(ValueError("out of\nluck"), "cpu#0", {0})
    ledger.fail(0, RenderError("later"))
    ledger.fail(7, RenderError("of no job"))
    assert str(first) == "the render failed on cpu#0: ValueError: out of luck"
    assert isinstance(first.__cause__, ValueError)
    assert (ledger.failed(), ledger.wanted(0), ledger.wanted(1)) == ({0}, None, JOB)
    assert scheduler.next(0).items == [(1, 0)]
    assert ledger.close(0) is first
    assert ledger.close(1) is None


def test_a_failure_that_is_kept_keeps_nothing_that_a_worker_was_at() -> None:
    class Batch:
        def step(self) -> None:
            began.append(weakref.ref(self))
            raise ValueError("no memory")

    def diffuse() -> None:
        batch = Batch()
        try:
            batch.step()
        except ValueError as error:
            raise RenderError("no step") from error

    ledger, _ = ledger_of()
    began: list[weakref.ref[Batch]] = []
    try:
        diffuse()
    except RenderError as error:
        failure = ledger.blame(error, "cuda:0", {0})
    assert began[0]() is None
    assert isinstance(failure.__cause__, RenderError)


def test_clips_that_come_after_a_job_was_closed_are_no_news() -> None:
    ledger, _ = ledger_of()
    ledger.open(0, JOB, decode_ahead=1)
    ledger.close(0)
    ledger.decoded((0, 0), CLIP)
    assert ledger.news()[0] is None
    assert ledger.take(0, 0) is None


def test_without_devices_all_jobs_fail_those_that_open_later_too() -> None:
    ledger, _ = ledger_of(devices=2)
    ledger.open(0, JOB, decode_ahead=1)
    ledger.lose(0, "cpu#0", ValueError("gone"))
    assert ledger.failed() == set()
    ledger.lose(1, "cpu#1", ValueError("gone as well"))
    ledger.open(1, JOB, decode_ahead=1)
    assert ledger.failed() == {0, 1}
    assert [ledger.news()[0] for _ in range(2)] == [0, 1]
    assert "cpu#1: ValueError: gone as well" in str(ledger.close(1))


def test_after_a_cancellation_nothing_is_told_or_opened_any_more() -> None:
    ledger, scheduler = ledger_of()
    ledger.open(0, JOB, decode_ahead=1)
    ledger.cancel()
    assert scheduler.stopped
    for ask in (ledger.news, lambda: ledger.take(0, 0), lambda: ledger.open(1, JOB, decode_ahead=1)):
        with pytest.raises(RenderCancelled):
            ask()

"""What is recorded of a device's steps, by a clock of our own."""

import pytest

from nuwaxl.engine.stats import Recorder, StepRecord
from nuwaxl.engine.stretches import Stretches


class Clock(Recorder):
    """A recorder whose time is what a test says."""

    time = 0.0

    def now(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stretch(clock: Clock, stretches: Stretches, segments: int, calls: list[float], took: float, finished: bool) -> None:
    """One stretch of the first `segments` segments, whose calls returned after so long, over after `took` seconds."""
    stretches.begin()
    for seconds in calls:
        stretches.called(seconds)
    clock.time += took
    stretches.end([(0, segment) for segment in range(segments)], 1, finished=finished)


def test_steps_that_return_when_they_are_done_have_the_time_of_their_calls(clock: Clock) -> None:
    stretches = Stretches(clock, "cpu", queued=False)
    stretch(clock, stretches, 2, [0.25, 0.5], 1.0, finished=False)
    stretch(clock, stretches, 3, [0.75], 1.0, finished=True)
    assert clock.steps_ms == [StepRecord(2, 250.0), StepRecord(2, 500.0), StepRecord(3, 750.0)]
    assert [(batch.start_s, batch.end_s, batch.steps) for batch in clock.batches] == [(0.0, 1.0, 2), (1.0, 2.0, 1)]
    assert [(batch.kind, batch.depth, batch.segments, batch.jobs) for batch in clock.batches] == [
        ("diffuse", 1, [0, 1], [0, 0]),
        ("diffuse", 1, [0, 1, 2], [0, 0, 0]),
    ]


def test_steps_that_are_queued_share_a_stretch_that_was_waited_for(clock: Clock) -> None:
    stretches = Stretches(clock, "gpu", queued=True)
    stretch(clock, stretches, 2, [0.0, 0.5, 1.0], 1.5, finished=True)
    assert clock.steps_ms == [StepRecord(2, 500.0)] * 3


def test_of_queued_steps_that_others_reach_into_nothing_is_known(clock: Clock) -> None:
    stretches = Stretches(clock, "gpu", queued=True)
    stretch(clock, stretches, 1, [0.0], 0.0, finished=False)  # a newcomer came while the device was at it,
    stretch(clock, stretches, 2, [0.5, 0.5], 2.0, finished=True)  # and this began before it was done
    assert clock.steps_ms == []
    stretch(clock, stretches, 2, [0.0], 0.5, finished=True)
    assert clock.steps_ms == [StepRecord(2, 500.0)]
    assert [batch.steps for batch in clock.batches] == [1, 2, 1], "what was done is recorded all the same"


def test_what_the_device_was_at_before_is_not_the_stretchs(clock: Clock) -> None:
    stretches = Stretches(clock, "gpu", queued=True)
    stretches.begin()
    clock.time += 3.0  # a window is decoded, behind which the step was queued
    stretches.begin()
    stretches.called(0.0)
    clock.time += 0.5
    stretches.end([(0, 0)], 0, finished=True)
    assert clock.steps_ms == [StepRecord(1, 500.0)]
    assert (clock.batches[0].start_s, clock.batches[0].end_s) == (3.0, 3.5)

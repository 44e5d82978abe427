"""Schedules by costs that were measured wrong, on devices that take what they really take."""

import heapq
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuwaxl.engine._core import CostModel, Plan, Scheduler, simulate

STEPS = 10
MAX_BATCH = 16
SIZES = (1, 2, 4, 8, 16)


def makespan(plans: Sequence[Plan], believed: Sequence[CostModel], true: Sequence[CostModel]) -> float:
    """Seconds until all segments are done: the scheduler is told the believed costs, steps take the true ones."""
    scheduler = Scheduler(policy="eager", devices=list(believed), max_batch=MAX_BATCH)
    for plan in plans:
        scheduler.add(plan, steps=STEPS)
    scheduler.close()
    left: list[dict[tuple[int, int], int]] = [{} for _ in true]
    ends: list[tuple[float, int]] = []
    now = 0.0

    def step(device: int, newcomers: Sequence[tuple[int, int]]) -> None:
        left[device].update(dict.fromkeys(newcomers, STEPS))
        heapq.heappush(ends, (now + true[device].step_s(len(left[device])), device))

    def ask() -> None:
        for device, held in enumerate(left):
            if not held and (work := scheduler.try_next(device)) is not None:
                step(device, work.items)

    ask()
    while ends:
        now, device = heapq.heappop(ends)
        left[device] = {item: steps - 1 for item, steps in left[device].items()}
        scheduler.advance(device)
        scheduler.done(device, [item for item, steps in left[device].items() if steps == 0])
        left[device] = {item: steps for item, steps in left[device].items() if steps}
        if left[device]:
            step(device, scheduler.join(device))
        ask()
    assert scheduler.finished, "devices are idle, and work is left"
    return now


def noisy(true: CostModel, factors: Sequence[float]) -> CostModel:
    """What was measured of a device, wrong by a factor at each size."""
    return CostModel(list(SIZES), [true.step_s(size) * factor for size, factor in zip(SIZES, factors, strict=True)])


def costs(start_s: float) -> CostModel:
    """Of a device whose step of b segments takes start_s + b."""
    return CostModel(list(SIZES), [start_s + size for size in SIZES])


def test_with_true_costs_this_is_the_virtual_clock() -> None:
    for start_s, devices, frames in ((0.0, 3, 700), (7.0, 2, 1024), (3.0, 5, 3000)):
        plan, alike = Plan(frames, 16), [costs(start_s)] * devices
        virtual = simulate([plan], policy="eager", devices=alike, max_batch=MAX_BATCH, steps=STEPS)
        assert makespan([plan], alike, alike) == pytest.approx(virtual.makespan_s, rel=0.02)


@settings(deadline=None)
@given(
    st.floats(0.0, 20.0),
    st.lists(st.lists(st.floats(0.7, 1.3), min_size=5, max_size=5), min_size=1, max_size=4),
    st.lists(st.integers(1, 1500), min_size=1, max_size=3),
)
def test_no_measurement_makes_a_schedule_worse_than_it_is_wrong(
    start_s: float, factors: list[list[float]], frames: list[int]
) -> None:
    """A batch looks best by at most 1.3 / 0.7, so that it cannot be worse by more; and a step of waiting."""
    true = costs(start_s)
    plans = [Plan(count, 16) for count in frames]
    believed = [noisy(true, row) for row in factors]
    best = makespan(plans, [true] * len(factors), [true] * len(factors))
    assert makespan(plans, believed, [true] * len(factors)) <= 1.3 / 0.7 * best


def test_wrong_costs_cost_little_on_average() -> None:
    rng = random.Random(7)
    ratios = []
    for _ in range(150):
        devices, true = rng.randint(1, 8), costs(rng.choice((0.0, 1.0, 3.0, 7.0, 20.0)))
        plan = Plan(rng.randint(16, 3000), 16)
        believed = [noisy(true, [rng.uniform(0.7, 1.3) for _ in SIZES]) for _ in range(devices)]
        ratios.append(
            makespan([plan], believed, [true] * devices) / makespan([plan], [true] * devices, [true] * devices)
        )
    assert statistics.mean(ratios) <= 1.10

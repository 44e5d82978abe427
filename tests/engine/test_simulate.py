"""The virtual clock: it keeps the rules of the scheduler, and its times are those of the cost models."""

import signal
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuwaxl.engine._core import CostModel, Plan, Simulation, simulate
from tests.engine.scheduling import POLICIES, flat, plans, slow, wide, windows_over

CLOSE = 1e-6
Kind = Callable[[], CostModel]


def run(jobs: list[Plan], policy: str, costs: list[CostModel], decode: bool = True, steps: int = 3) -> Simulation:
    windows = [windows_over(plan, 8, 1) for plan in jobs] if decode else None
    return simulate(
        jobs,
        policy=policy,
        devices=costs,
        max_batch=8,
        steps=steps,
        decode_windows=windows,
        decode_ahead=2,
        record=True,
    )


@settings(deadline=None)
@given(
    st.lists(plans(), min_size=1, max_size=3),
    st.sampled_from(POLICIES),
    st.lists(st.sampled_from([flat, wide, slow]), min_size=1, max_size=5),
    st.booleans(),
)
def test_a_simulation_keeps_the_rules(jobs: list[Plan], policy: str, kinds: list[Kind], decode: bool) -> None:
    costs = [kind() for kind in kinds]
    result = run(jobs, policy, costs, decode)
    starts: dict[tuple[int, int], float] = {}
    ends: dict[tuple[int, int], float] = {}
    steps: Counter[tuple[int, int]] = Counter()
    device_of: dict[tuple[int, int], int] = {}
    decoded: Counter[tuple[int, int]] = Counter()
    free_at: dict[int, float] = defaultdict(float)
    for span in result.spans:
        cost = costs[span.device]
        assert span.start_s >= free_at[span.device] - CLOSE
        free_at[span.device] = span.end_s
        took = cost.decode_s if span.kind == "decode" else cost.step_s(len(span.items))
        assert span.end_s - span.start_s == pytest.approx(took)
        if span.kind == "decode":
            ((job, window),) = span.items
            decoded[job, window] += 1
            first, last = windows_over(jobs[job], 8, 1)[window]
            origins = {jobs[job].origin_of(frame) for frame in range(first, last + 1)}
            assert all(ends[job, id] <= span.start_s + CLOSE and steps[job, id] == 3 for id in origins)
            continue
        assert len(span.items) <= cost.widest_batch(8)
        for item in span.items:
            steps[item] += 1
            starts.setdefault(item, span.start_s)
            ends[item] = span.end_s
            assert device_of.setdefault(item, span.device) == span.device
    assert steps == Counter({(job, id): 3 for job, plan in enumerate(jobs) for id in range(len(plan))})
    if decode:
        counts = [len(windows_over(plan, 8, 1)) for plan in jobs]
        assert decoded == Counter({(job, window): 1 for job, count in enumerate(counts) for window in range(count)})
    for (job, id), start in starts.items():
        parent = jobs[job].segment(id).parent
        assert parent < 0 or ends[job, parent] <= start + CLOSE
    assert result.makespan_s == pytest.approx(max(free_at.values()))
    assert result.diffusion_s == pytest.approx(max(ends.values()))
    busy = [0.0] * len(costs)
    for span in result.spans:
        busy[span.device] += span.end_s - span.start_s
    assert result.busy_s == pytest.approx(busy)
    assert result.steps == sum(span.kind == "diffuse" for span in result.spans)
    assert result.mean_batch == pytest.approx(sum(steps.values()) / result.steps)


@settings(deadline=None)
@given(st.lists(plans(), min_size=1, max_size=3), st.integers(1, 6), st.sampled_from([flat, wide]))
def test_no_device_idles_while_segments_are_ready(jobs: list[Plan], devices: int, kind: Kind) -> None:
    """Of devices that are alike: between two moments, an idle device means that every ready segment is taken."""
    result = run(jobs, "eager", [kind()] * devices, decode=False)
    began: dict[tuple[int, int], float] = {}
    ended: dict[tuple[int, int], float] = {}
    for span in result.spans:
        for item in span.items:
            began.setdefault(item, span.start_s)
            ended[item] = span.end_s
    moments = sorted({round(span.start_s, 6) for span in result.spans})
    for start, end in pairwise(moments):
        middle = (start + end) / 2
        busy = sum(span.start_s < middle < span.end_s for span in result.spans)
        if busy == devices:
            continue
        for (job, id), start_s in began.items():
            parent = jobs[job].segment(id).parent
            ready_s = 0.0 if parent < 0 else ended[job, parent]
            assert not ready_s < middle < start_s, f"segment {id} waited while a device was idle"


@pytest.mark.parametrize("kind", [flat, wide])
@pytest.mark.parametrize("devices", [1, 3, 16])
def test_eager_is_no_slower_than_the_barrier_and_the_tree_than_the_chain(kind: Kind, devices: int) -> None:
    cost = kind()
    plan, chain = Plan(1024, 16, 3), Plan.autoregressive(1024, 16, 8)

    def makespan(of: Plan, policy: str) -> float:
        return run([of], policy, [cost] * devices, decode=False).makespan_s

    assert makespan(plan, "eager") <= makespan(plan, "level") + CLOSE
    assert makespan(plan, "eager") < makespan(chain, "eager")
    assert makespan(chain, "eager") == pytest.approx(len(chain) * 3 * cost.step_s(1))


def test_latency_shows_the_first_frames_first() -> None:
    plan = Plan(3000, 16)
    windows = [windows_over(plan, 16, 1)]
    first = {
        policy: simulate(
            [plan], policy=policy, devices=[wide()] * 2, max_batch=8, steps=10, decode_windows=windows, decode_ahead=4
        ).first_frames_s[0]
        for policy in POLICIES
    }
    # Three segments one after the other, and the window.
    assert first["latency"] == pytest.approx(3 * 10 * wide().step_s(1) + wide().decode_s)
    assert first["latency"] < min(first["eager"], first["level"])


def test_a_slow_device_does_not_hold_up_the_others() -> None:
    plan = Plan(1024, 16, 3)
    alone = run([plan], "eager", [wide(), wide()], decode=False).makespan_s
    helped = run([plan], "eager", [wide(), wide(), slow()], decode=False).makespan_s
    assert helped <= alone + CLOSE


def test_two_videos_together_take_less_than_one_after_the_other() -> None:
    plan = Plan(1024, 16, 3)
    one = run([plan], "eager", [wide()] * 4, decode=False).makespan_s
    assert run([plan, plan], "eager", [wide()] * 4, decode=False).makespan_s < 1.9 * one


def test_the_result_does_not_depend_on_recording() -> None:
    plan = Plan(700, 16)
    recorded = run([plan], "eager", [wide()] * 3, decode=False)
    plain = simulate([plan], policy="eager", devices=[wide()] * 3, max_batch=8, steps=3)
    assert plain.spans == []
    assert (plain.makespan_s, plain.batches, plain.joined) == (recorded.makespan_s, recorded.batches, recorded.joined)
    assert plain.cpu_s >= 0.0


def test_wrong_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the decode windows of each of the 1 plans; found 2 lists"):
        simulate([Plan(16, 16)], policy="eager", devices=[flat()], max_batch=1, steps=1, decode_windows=[[], []])


def test_a_simulation_lets_python_handle_signals() -> None:
    """Of a film that would take hours."""

    class Enough(Exception):
        pass

    def ring(*_: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Enough):
            simulate([Plan(2**50, 16)], policy="eager", devices=[flat()], max_batch=8, steps=10)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

"""The scheduler, driven by one simulated thread in many interleavings, and by real threads."""

import math
import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine._core import Plan, Scheduler, Work

PATIENCE_S = 30.0  # far beyond what any of this takes: reaching it means a thread hangs


def windows_over(plan: Plan, length: int, overlap: int) -> list[tuple[int, int]]:
    """Frame ranges that decode windows of `length` frames read, clamped at the video's ends."""
    hop = length - 2 * overlap
    return [
        (max(0, start - overlap), min(plan.frames, start + hop + overlap) - 1) for start in range(0, plan.frames, hop)
    ]


@dataclass
class Setup:
    plan: Plan
    policy: str
    devices: int
    max_batch: int
    windows: list[tuple[int, int]]
    decode_ahead: int

    def scheduler(self) -> Scheduler:
        return Scheduler(
            self.plan,
            policy=self.policy,
            devices=self.devices,
            max_batch=self.max_batch,
            decode_windows=self.windows,
            decode_ahead=self.decode_ahead,
        )


@dataclass
class Model:
    """What must hold at every moment of a render, kept in the plainest way, beside the scheduler."""

    setup: Setup
    started: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    windows_started: int = 0
    windows_consumed: int = 0

    def may_start(self, id: int) -> bool:
        plan, segment = self.setup.plan, self.setup.plan.segment(id)
        if id in self.started or (segment.parent >= 0 and segment.parent not in self.done):
            return False
        barrier = sum(plan.counts[: segment.depth])
        return self.setup.policy == "eager" or all(above in self.done for above in range(barrier))

    def ready(self) -> list[list[int]]:
        """Segments that may start, by depth."""
        ids: list[list[int]] = [[] for _ in self.setup.plan.counts]
        for id in range(len(self.setup.plan)):
            if self.may_start(id):
                ids[self.setup.plan.segment(id).depth].append(id)
        return ids

    def window_ready(self) -> bool:
        if self.windows_started == len(self.setup.windows):
            return False
        first, last = self.setup.windows[self.windows_started]
        final = all(self.setup.plan.origin_of(frame) in self.done for frame in range(first, last + 1))
        return final and self.windows_started < self.windows_consumed + self.setup.decode_ahead

    def handed_out(self, work: Work | None) -> None:
        """Check that `work` is exactly what the rules ask for now, and take note of it."""
        ready = next((ids for ids in self.ready() if ids), None)
        if ready is not None:
            assert work is not None, "a device was turned away while segments were ready"
            assert work.kind == "diffuse", "decoding went before diffusion"
            share = math.ceil(len(ready) / self.setup.devices)
            assert work.items == ready[: min(self.setup.max_batch, share)]
            assert work.depth == self.setup.plan.segment(work.items[0]).depth
            self.started.update(work.items)
        elif self.window_ready():
            assert work is not None, "a device was turned away while a window could be decoded"
            assert (work.kind, work.items, work.depth) == ("decode", [self.windows_started], -1)
            self.windows_started += 1
        else:
            assert work is None, "work was handed out before it was ready"

    def all_handed_out(self) -> bool:
        return len(self.started) == len(self.setup.plan) and self.windows_started == len(self.setup.windows)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    length = draw(st.integers(3, 8))
    depth = draw(st.integers(1, 3))
    plan = Plan(draw(st.integers(1, min(Plan.span(length, depth), 80))), length, depth)
    window = draw(st.integers(3, 12))
    windows = windows_over(plan, window, draw(st.integers(0, (window - 1) // 2)))
    return Setup(
        plan=plan,
        policy=draw(st.sampled_from(["level", "eager"])),
        devices=draw(st.integers(1, 4)),
        max_batch=draw(st.integers(1, 9)),
        windows=draw(st.sampled_from([windows, []])),
        decode_ahead=draw(st.integers(1, 4)),
    )


@given(setups(), st.randoms(use_true_random=False))
def test_every_interleaving_hands_out_exactly_what_the_rules_ask_for(setup: Setup, random) -> None:
    scheduler, model = setup.scheduler(), Model(setup)
    running: dict[int, Work] = {}
    decoded: list[int] = []
    for _ in range(20 * (len(setup.plan) + len(setup.windows)) + 100):
        if model.all_handed_out() and not running:
            break
        device = random.randrange(setup.devices)
        if device in running:
            work = running.pop(device)
            scheduler.done(work)
            if work.kind == "diffuse":
                model.done.update(work.items)
            else:
                decoded += work.items
        elif decoded and random.random() < 0.5:
            scheduler.consumed(decoded.pop(0))
            model.windows_consumed += 1
        elif model.all_handed_out():
            assert scheduler.next(device) is None
        else:
            work_or_none = scheduler.try_next(device)
            model.handed_out(work_or_none)
            if work_or_none is not None:
                assert work_or_none.device == device
                running[device] = work_or_none
        assert scheduler.finished == (model.all_handed_out() and not running)
    assert scheduler.finished
    assert model.done == set(range(len(setup.plan)))
    assert all(scheduler.next(device) is None for device in range(setup.devices))


def run_threads(setup: Setup, hold_s: float = 0.0) -> tuple[list[Work], list[int]]:
    """Render with one real thread a device and a consumer; returns all work, and windows as consumed."""
    scheduler = setup.scheduler()
    model = Model(setup)
    lock, decoded = threading.Condition(), set[int]()
    seen: list[Work] = []
    faults: list[BaseException] = []

    def worker(device: int) -> None:
        try:
            while (work := scheduler.next(device)) is not None:
                with lock:
                    seen.append(work)
                    for id in work.items if work.kind == "diffuse" else []:
                        assert model.may_start(id), f"segment {id} started too early or twice"
                        model.started.add(id)
                    if work.kind == "decode":
                        first, last = setup.windows[work.items[0]]
                        origins = {setup.plan.origin_of(frame) for frame in range(first, last + 1)}
                        assert origins <= model.done, "a window was decoded before its frames were final"
                        model.windows_started += 1
                        assert model.windows_started <= model.windows_consumed + setup.decode_ahead
                time.sleep(hold_s)
                with lock:
                    if work.kind == "diffuse":
                        model.done.update(work.items)
                    else:
                        decoded.update(work.items)
                    lock.notify_all()
                scheduler.done(work)
        except BaseException as fault:
            faults.append(fault)
            scheduler.stop()

    threads = [threading.Thread(target=worker, args=(d,), daemon=True) for d in range(setup.devices)]
    for thread in threads:
        thread.start()
    consumed: list[int] = []
    for window in range(len(setup.windows)):
        with lock:
            if not lock.wait_for(lambda window=window: window in decoded or faults, PATIENCE_S) or faults:
                break
            model.windows_consumed += 1
        scheduler.consumed(window)
        consumed.append(window)
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert not faults, faults
    assert scheduler.finished
    return seen, consumed


@pytest.mark.parametrize("policy", ["level", "eager"])
@pytest.mark.parametrize("devices", [1, 2, 5])
@pytest.mark.parametrize("max_batch", [1, 16])
def test_real_threads_render_1024_frames_each_segment_and_window_once(
    policy: str, devices: int, max_batch: int
) -> None:
    plan = Plan(1024, 16, 3)
    windows = windows_over(plan, 16, 2)
    seen, consumed = run_threads(Setup(plan, policy, devices, max_batch, windows, decode_ahead=3))
    segments = sorted(id for work in seen if work.kind == "diffuse" for id in work.items)
    assert segments == list(range(75))
    assert sorted(id for work in seen if work.kind == "decode" for id in work.items) == list(range(len(windows)))
    assert consumed == list(range(len(windows)))
    assert sorted(work.id for work in seen) == list(range(len(seen)))
    assert max(len(work.items) for work in seen) <= max_batch


@given(setups())
def test_real_threads_finish_any_plan(setup: Setup) -> None:
    seen, consumed = run_threads(setup)
    segments = sorted(id for work in seen if work.kind == "diffuse" for id in work.items)
    assert segments == list(range(len(setup.plan)))
    assert consumed == list(range(len(setup.windows)))


def test_devices_work_at_the_same_time() -> None:
    """With a hold per batch, two devices must take clearly less time than one: waiting gives up the GIL."""
    plan = Plan(1024, 16, 3)
    took = []
    for devices in (1, 2):
        start = time.perf_counter()
        run_threads(Setup(plan, "eager", devices, 1, [], 1), hold_s=0.01)
        took.append(time.perf_counter() - start)
    assert took[0] >= 0.75
    assert took[1] < 0.85 * took[0]


def scheduler_for(policy: str = "eager", devices: int = 2, windows: list[tuple[int, int]] | None = None) -> Scheduler:
    return Setup(Plan(1024, 16, 3), policy, devices, 16, windows or [], 1).scheduler()


def take(scheduler: Scheduler, device: int) -> Work:
    work = scheduler.try_next(device)
    assert work is not None
    return work


def test_level_waits_at_the_barrier_where_eager_goes_on() -> None:
    following = {}
    for policy in ("level", "eager"):
        scheduler = scheduler_for(policy)
        scheduler.done(take(scheduler, 0))
        held = take(scheduler, 0)
        for _ in range(2):
            scheduler.done(take(scheduler, 1))
        assert held.items == [1, 2, 3]
        following[policy] = scheduler.try_next(1)
    assert following["level"] is None
    assert following["eager"] is not None
    assert following["eager"].depth == 2


def test_stop_wakes_blocked_workers_and_running_work_may_still_finish() -> None:
    scheduler = scheduler_for(devices=4)
    running = take(scheduler, 0)
    got: list[Work | None] = []
    threads = [
        threading.Thread(target=lambda d=device: got.append(scheduler.next(d)), daemon=True) for device in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert got == []
    start = time.perf_counter()
    scheduler.stop()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert time.perf_counter() - start < 1.0
    assert got == [None, None, None]
    assert scheduler.stopped
    scheduler.done(running)
    assert scheduler.next(0) is None
    assert not scheduler.finished


def test_waiting_costs_no_processor_time() -> None:
    scheduler = scheduler_for()
    running = take(scheduler, 0)
    used: list[float] = []

    def wait() -> None:
        start = time.thread_time()
        scheduler.next(1)
        used.append(time.thread_time() - start)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.3)
    scheduler.done(running)
    thread.join(PATIENCE_S)
    assert used[0] < 0.05


def test_backpressure_holds_decoding_until_a_clip_is_taken() -> None:
    plan = Plan(30, 16)
    scheduler = Setup(plan, "eager", 1, 16, [(0, 9), (10, 19), (20, 29)], decode_ahead=2).scheduler()
    order = []
    while (work := scheduler.try_next(0)) is not None:
        order.append((work.kind, work.items))
        scheduler.done(work)
    assert order[-2:] == [("decode", [0]), ("decode", [1])]
    assert not scheduler.finished
    scheduler.consumed(0)
    work = take(scheduler, 0)
    assert work.items == [2]
    scheduler.done(work)
    assert scheduler.finished
    assert scheduler.next(0) is None


def test_work_that_is_unknown_or_done_is_refused() -> None:
    scheduler, other = scheduler_for(), scheduler_for(devices=1)
    work, foreign = take(scheduler, 1), take(other, 0)
    with pytest.raises(ValueError, match=r"expected work that next\(\) of this scheduler.*found work 0"):
        scheduler.done(foreign)
    scheduler.done(work)
    with pytest.raises(ValueError, match="report each work done once"):
        scheduler.done(work)


def test_a_device_must_report_before_it_asks_again() -> None:
    scheduler = scheduler_for()
    work = take(scheduler, 0)
    with pytest.raises(ValueError, match=r"expected device 0 to be free.*done\(work\) before next"):
        scheduler.next(0)
    scheduler.done(work)
    assert take(scheduler, 0).items == [1, 2, 3]


def test_windows_are_consumed_once_and_only_after_they_were_handed_out() -> None:
    scheduler = Setup(Plan(16, 16), "eager", 1, 1, [(0, 15)], 1).scheduler()
    for window in (-1, 0, 1):
        with pytest.raises(ValueError, match=f"expected a decode window.*found window {window}"):
            scheduler.consumed(window)
    scheduler.done(take(scheduler, 0))
    take(scheduler, 0)
    scheduler.consumed(0)
    with pytest.raises(ValueError, match="consumed once"):
        scheduler.consumed(0)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"policy": "lazy"}, 'expected policy "level" or "eager"; found "lazy"'),
        ({"devices": 0}, "expected devices of at least 1; found 0"),
        ({"max_batch": 0}, "expected max_batch of at least 1; found 0"),
        ({"decode_ahead": 0}, "expected decode_ahead of at least 1; found 0"),
        ({"windows": [(3, 2)]}, r"in order.*found \(3, 2\)"),
        ({"windows": [(-1, 2)]}, r"in order.*found \(-1, 2\)"),
        ({"windows": [(5, 8), (4, 9)]}, r"in order.*found \(4, 9\)"),
        ({"windows": [(0, 1024)]}, r"within frames 0 to 1023; found \(0, 1024\)"),
    ],
)
def test_an_impossible_schedule_is_refused_with_what_to_do(change: dict[str, object], text: str) -> None:
    arguments: dict[str, object] = {
        "plan": Plan(1024, 16),
        "policy": "eager",
        "devices": 1,
        "max_batch": 1,
        "windows": [],
        "decode_ahead": 1,
    }
    with pytest.raises(ValueError, match=text):
        Setup(**(arguments | change)).scheduler()


@pytest.mark.parametrize("device", [-1, 2])
def test_an_unknown_device_is_refused(device: int) -> None:
    with pytest.raises(ValueError, match=f"expected a device between 0 and 1; found {device}"):
        scheduler_for().next(device)

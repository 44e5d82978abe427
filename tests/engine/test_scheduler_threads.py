"""The scheduler with real threads: a worker a device, videos that come while they run."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nuwaxl.engine._core import Plan, Scheduler, Work
from tests.engine.scheduling import POLICIES, Item, Model, Video, add, videos, wide, windows_over

PATIENCE_S = 60.0  # far beyond what any of this takes: reaching it means a thread hangs


class Render:
    """Renders videos with a thread a device and a consumer; `lose` names a device that dies at its third work."""

    def __init__(self, policy: str, devices: int, lose: int | None = None) -> None:
        self.scheduler = Scheduler(policy=policy, devices=[wide()] * devices, max_batch=8)
        self.model = Model(policy, [wide()] * devices, 8)
        self.changed = threading.Condition()
        self.faults: list[BaseException] = []
        self.lose, self.devices = lose, devices

    def run(self, jobs: list[Video]) -> None:
        threads = [threading.Thread(target=self._guarded, args=(d,), daemon=True) for d in range(self.devices)]
        for thread in threads:
            thread.start()
        for job in jobs:
            with self.changed:
                self.model.add(job)
                add(self.scheduler, job)
        self.scheduler.close()
        for thread in threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert not self.faults, self.faults
        assert self.scheduler.finished
        assert self.model.over

    def _guarded(self, device: int) -> None:
        try:
            self._work(device)
        except BaseException as fault:
            self.faults.append(fault)
            self.scheduler.stop()

    def _work(self, device: int) -> None:
        count = 0
        while (work := self.scheduler.next(device)) is not None:
            count += 1
            if device == self.lose and count == 3:
                with self.changed:
                    self._take(device, work)
                    self.model.lost(device)
                    self.scheduler.lost(device)
                continue
            with self.changed:
                self._take(device, work)
            time.sleep(0)  # lets others go on
            if work.kind == "decode":
                ((job, window),) = work.items
                with self.changed:
                    self.model.done(device, work.items)
                    self.model.jobs[job].consumed += 1
                self.scheduler.done(device, work.items)
                self.scheduler.consumed(job, window)
                continue
            while self.model.held[device]:
                self.scheduler.advance(device)
                with self.changed:
                    finished = self.model.step(device)
                    self.model.done(device, finished)
                self.scheduler.done(device, finished)
                if self.model.held[device]:
                    newcomers = self.scheduler.join(device)
                    with self.changed:
                        self.model.took(device, newcomers)

    def _take(self, device: int, work: Work) -> None:
        """Take note of work that may have been handed out a moment ago: others have gone on meanwhile."""
        if work.kind == "diffuse":
            self.model.took(device, work.items)
            return
        ((job, window),) = work.items
        first, last = self.model.jobs[job].video.windows[window]
        origins = {self.model.jobs[job].video.plan.origin_of(frame) for frame in range(first, last + 1)}
        assert origins <= self.model.jobs[job].done, "a window was decoded before its frames were there"
        if window in self.model.jobs[job].windows_returned:
            self.model.jobs[job].windows_returned.remove(window)
        self.model.window[device] = (job, window)
        self.model.times_given[job, -1 - window] += 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("devices", [1, 2, 5])
def test_real_threads_do_every_segment_and_window_once(policy: str, devices: int) -> None:
    plans = [Plan(1024, 16, 3), Plan(300, 16), Plan.autoregressive(100, 16, 4)]
    jobs = [Video(plan, 2 + i, windows_over(plan, 16, 2), 3) for i, plan in enumerate(plans)]
    render = Render(policy, devices)
    render.run(jobs)
    expected: list[Item] = [(n, id) for n, job in enumerate(jobs) for id in range(-len(job.windows), len(job.plan))]
    assert dict(render.model.times_given) == dict.fromkeys(expected, 1)


@settings(max_examples=25)
@given(st.sampled_from(POLICIES), st.integers(2, 4), st.lists(videos(), min_size=1, max_size=3))
def test_real_threads_finish_any_videos_though_a_device_is_lost(policy: str, devices: int, jobs: list[Video]) -> None:
    Render(policy, devices, lose=0).run(jobs)


def test_devices_hold_work_at_the_same_time_and_one_waits_for_the_other_without_the_gil() -> None:
    """The second worker blocks in next() for as long as the first one needs Python to bring it work."""
    scheduler = waiting_scheduler(2)
    first = scheduler.next(0)
    assert first is not None
    both_hold = threading.Barrier(2)
    failed = threading.Event()

    def worker(device: int) -> None:
        try:
            assert scheduler.next(device) is not None
            both_hold.wait(PATIENCE_S)
        except BaseException:
            failed.set()
            raise

    threads = [threading.Thread(target=worker, args=(device,), daemon=True) for device in (1, 0)]
    threads[0].start()
    time.sleep(0.05)
    scheduler.done(0, first.items)
    threads[1].start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not failed.is_set()


def waiting_scheduler(devices: int) -> Scheduler:
    scheduler = Scheduler(policy="eager", devices=[wide()] * devices, max_batch=8)
    scheduler.add(Plan(1024, 16, 3), steps=1)
    return scheduler


def test_stop_wakes_blocked_workers_and_running_work_may_still_finish() -> None:
    scheduler = waiting_scheduler(4)
    running = scheduler.next(0)
    assert running is not None
    got: list[Work | None] = []
    threads = [
        threading.Thread(target=lambda d=device: got.append(scheduler.next(d)), daemon=True) for device in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    assert got == []
    scheduler.stop()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert got == [None, None, None]
    assert scheduler.stopped
    scheduler.done(0, running.items)
    assert scheduler.next(0) is None
    assert not scheduler.finished


def test_waiting_costs_no_processor_time() -> None:
    scheduler = waiting_scheduler(2)
    running = scheduler.next(0)
    assert running is not None
    used: list[float] = []

    def wait() -> None:
        start = time.thread_time()
        scheduler.next(1)
        used.append(time.thread_time() - start)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.3)
    scheduler.done(0, running.items)
    thread.join(PATIENCE_S)
    assert used[0] < 0.05


def test_a_lost_device_that_waits_leaves_and_its_work_wakes_another_one() -> None:
    scheduler = waiting_scheduler(3)
    running = scheduler.next(0)
    assert running is not None
    got: dict[int, Work | None] = {}
    threads = [
        threading.Thread(target=lambda d=device: got.update({d: scheduler.next(d)}), daemon=True) for device in (1, 2)
    ]
    for thread in threads:
        thread.start()
    scheduler.lost(1)
    threads[0].join(PATIENCE_S)
    assert got == {1: None}
    scheduler.lost(0)
    threads[1].join(PATIENCE_S)
    taken = got[2]
    assert taken is not None
    assert taken.items == running.items

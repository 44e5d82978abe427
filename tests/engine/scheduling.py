"""What must hold of any schedule, kept in the plainest way, and the life of a worker."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import strategies as st

from nuwaxl.engine._core import CostModel, Plan, Scheduler, Work

Item = tuple[int, int]

POLICIES = ("level", "eager", "latency")


# Functions and no constants: at exit nanobind reports what modules still hold.
def flat() -> CostModel:
    """A device to which batches save nothing."""
    return CostModel([1], [1.0])


def wide() -> CostModel:
    """A device whose step of b segments takes 7 + b."""
    return CostModel([1, 8], [8.0, 15.0], decode_s=1.0)


def slow() -> CostModel:
    """The same, ten times slower."""
    return CostModel([1, 8], [80.0, 150.0], decode_s=10.0)


def windows_over(plan: Plan, length: int, overlap: int) -> list[tuple[int, int]]:
    """Frame ranges that decode windows of `length` frames read, clamped at the video's ends."""
    hop = length - 2 * overlap
    return [
        (max(0, start - overlap), min(plan.frames, start + hop + overlap) - 1) for start in range(0, plan.frames, hop)
    ]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Small trees and chains."""
    length = draw(st.integers(3, 8))
    if draw(st.integers(0, 4)) == 0:
        return Plan.autoregressive(draw(st.integers(1, 40)), length, draw(st.integers(1, length - 1)))
    depth = draw(st.integers(1, 3))
    return Plan(draw(st.integers(1, min(Plan.span(length, depth), 80))), length, depth)


@dataclass
class Video:
    """A job to add: its plan, steps a segment, decode windows, and how far decoding may go ahead."""

    plan: Plan
    steps: int
    windows: list[tuple[int, int]]
    ahead: int
    finished: list[int] = field(default_factory=list)  # segments that an earlier render left


@st.composite
def videos(draw: st.DrawFn) -> Video:
    plan = draw(plans())
    window = draw(st.integers(3, 12))
    windows = windows_over(plan, window, draw(st.integers(0, (window - 1) // 2)))
    return Video(
        plan,
        steps=draw(st.integers(1, 4)),
        windows=draw(st.sampled_from([windows, []])),
        ahead=draw(st.integers(1, 4)),
        finished=draw(st.one_of(st.just([]), st.just(list(range(len(plan)))), grown(plan))),
    )


@st.composite
def grown(draw: st.DrawFn, plan: Plan) -> list[int]:
    """Segments of a plan with all their ancestors, in rising order."""
    finished: list[int] = []
    for id in range(len(plan)):
        if (id == 0 or plan.segment(id).parent in finished) and draw(st.booleans()):
            finished.append(id)
    return finished


@dataclass
class JobModel:
    video: Video
    held: set[int] = field(default_factory=set)
    done: set[int] = field(default_factory=set)
    windows_given: list[int] = field(default_factory=list)
    windows_returned: list[int] = field(default_factory=list)
    windows_done: set[int] = field(default_factory=set)
    consumed: int = 0
    failed: bool = False

    def may_start(self, id: int, policy: str) -> bool:
        plan = self.video.plan
        segment = plan.segment(id)
        if (
            self.failed
            or id in self.held
            or id in self.done
            or (segment.parent >= 0 and segment.parent not in self.done)
        ):
            return False
        barrier = sum(plan.counts[: segment.depth])
        return policy != "level" or all(above in self.done for above in range(barrier))

    def window_ready(self) -> int | None:
        """The window that may be decoded next."""
        if self.failed:
            return None
        if self.windows_returned:
            return min(self.windows_returned)
        window = len(set(self.windows_given))
        if window == len(self.video.windows) or window >= self.consumed + self.video.ahead:
            return None
        first, last = self.video.windows[window]
        final = all(self.video.plan.origin_of(frame) in self.done for frame in range(first, last + 1))
        return window if final else None

    @property
    def consumer_waits(self) -> bool:
        return bool(self.windows_returned) or len(set(self.windows_given)) == self.consumed

    @property
    def over(self) -> bool:
        everything = len(self.done) == len(self.video.plan) and len(self.windows_done) == len(self.video.windows)
        return self.failed or everything


class Model:
    """All that was handed out and reported, checked as it happens."""

    def __init__(self, policy: str, devices: list[CostModel], max_batch: int) -> None:
        self.policy = policy
        self.widest = [cost.widest_batch(max_batch) for cost in devices]
        self.alike = all(cost.steps_s == devices[0].steps_s for cost in devices)
        self.jobs: list[JobModel] = []
        self.held: list[dict[Item, int]] = [{} for _ in devices]  # steps left of the segments of each device
        self.window: list[Item | None] = [None for _ in devices]
        self.times_given: Counter[Item] = Counter()

    def add(self, video: Video) -> None:
        self.jobs.append(JobModel(video, done=set(video.finished)))

    def ready(self) -> list[Item]:
        return [
            (number, id)
            for number, job in enumerate(self.jobs)
            for id in range(len(job.video.plan))
            if job.may_start(id, self.policy)
        ]

    def windows_ready(self) -> list[Item]:
        found = [(number, job.window_ready()) for number, job in enumerate(self.jobs)]
        return [(number, window) for number, window in found if window is not None]

    def free(self, device: int) -> bool:
        return not self.held[device] and self.window[device] is None

    def handed_out(self, device: int, work: Work | None) -> None:
        """A free device asked and got `work`."""
        if work is None:
            assert not self.windows_ready(), "a device was turned away while a window could be decoded"
            if self.alike:
                assert not self.ready(), "a device was turned away while segments were ready"
            return
        assert work.device == device
        if work.kind == "decode":
            (item,) = work.items
            assert item in self.windows_ready()
            job = self.jobs[item[0]]
            if item[1] in job.windows_returned:
                job.windows_returned.remove(item[1])
            job.windows_given.append(item[1])
            self.window[device] = item
            return
        for number, _ in self.windows_ready():
            assert not self.jobs[number].consumer_waits, "diffusion went before a window that its consumer waits for"
        self.took(device, work.items)
        if self.policy == "level":
            depths = {(job, self.jobs[job].video.plan.segment(id).depth) for job, id in work.items}
            assert len(depths) == 1, "a batch of the paper's policy is of one depth of one video"

    def took(self, device: int, items: list[Item]) -> None:
        for job, id in items:
            assert self.jobs[job].may_start(id, self.policy), f"segment {id} of job {job} started early or twice"
            self.jobs[job].held.add(id)
            self.held[device][job, id] = self.jobs[job].video.steps
            self.times_given[job, id] += 1
        assert len(self.held[device]) <= self.widest[device]

    def step(self, device: int) -> list[Item]:
        """The device does a step: the items it finished."""
        for item in self.held[device]:
            self.held[device][item] -= 1
        return [item for item, left in self.held[device].items() if left == 0]

    def done(self, device: int, items: list[Item]) -> None:
        for job, id in items:
            if self.window[device] == (job, id):
                self.window[device] = None
                self.jobs[job].windows_done.add(id)
                continue
            del self.held[device][job, id]
            self.jobs[job].held.discard(id)
            if not self.jobs[job].failed:
                self.jobs[job].done.add(id)

    def lost(self, device: int) -> None:
        for job, id in self.held[device]:
            self.jobs[job].held.discard(id)
        self.held[device].clear()
        if (item := self.window[device]) is not None:
            self.jobs[item[0]].windows_returned.append(item[1])
            self.window[device] = None

    @property
    def over(self) -> bool:
        return all(job.over for job in self.jobs) and all(self.free(device) for device in range(len(self.held)))


def add(scheduler: Scheduler, video: Video) -> int:
    return scheduler.add(
        video.plan,
        steps=video.steps,
        decode_windows=video.windows,
        decode_ahead=video.ahead,
        finished=video.finished,
    )

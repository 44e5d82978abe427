"""Types of the native core: plan, cost model, scheduler, virtual clock and noise. The C++ is in engine/csrc/."""

from typing import Literal, final

import numpy as np
import numpy.typing as npt

@final
class Segment:
    """One diffusion of L frames: global at depth 0 of the tree, local below (paper, 3.3); or a window of a chain."""

    @property
    def depth(self) -> int:
        """0 for the global diffusion, 1 to m - 1 for the locals; 0 for all windows of a chain."""

    @property
    def index(self) -> int:
        """Position among the segments of the same depth, from 0."""

    @property
    def first_frame(self) -> int:
        """Number of the segment's first frame: index * (L - 1) * stride, in a chain index * (L - overlap)."""

    @property
    def stride(self) -> int:
        """Frames from one frame of the segment to the next: (L - 1) ** (m - 1 - depth), in a chain 1."""

    @property
    def parent(self) -> int:
        """Id of the segment that gives the known frames; -1 for the first segment, which knows none."""

@final
class Plan:
    """The diffusions that generate a video of N frames: a pruned tree, or a chain of windows.

    The tree keeps the global diffusion and the locals whose first frame lies before N - 1, which generate, or lead
    to, a frame of the video: 1 + 5 + 69 segments for N = 1024, L = 16, m = 3.
    Segment ids are depth-major: all of depth 0, then all of depth 1, and so on. Takes the same memory
    whatever the number of segments, since all follows from a segment's id by arithmetic.
    """

    def __init__(self, frames: int, length: int, depth: int | None = None) -> None:
        """Plan `frames` = N frames by diffusions of `length` = L frames, in a tree of `depth` = m levels.

        Without `depth`, the smallest whose tree spans N frames. Raises ValueError if frames < 1, length is not 3 to
        2 ** 20, depth < 1, or the tree spans fewer than N frames.
        """

    @staticmethod
    def autoregressive(frames: int, length: int, overlap: int) -> Plan:
        """The chain of windows that the tree is compared with ("Autoregressive over diffusion").

        Windows of `length` = L frames, each given the last `overlap` frames of the one before, as many as cover
        `frames` = N. All are of depth 0; window i waits for window i - 1. Raises ValueError if frames < 1,
        length is not 3 to 2 ** 20, or overlap is not between 1 and L - 1.
        """

    @property
    def kind(self) -> Literal["tree", "autoregressive"]: ...
    @staticmethod
    def span(length: int, depth: int) -> int:
        """Frames that a whole tree spans, (L - 1) ** m + 1. Raises ValueError if it is more than 2 ** 62."""

    @property
    def frames(self) -> int:
        """Frames asked for, N."""

    @property
    def length(self) -> int:
        """Frames a diffusion, L."""

    @property
    def depth(self) -> int:
        """Levels of the tree, m; 1 for a chain."""

    @property
    def counts(self) -> list[int]:
        """Segments at each depth, from the global diffusion down, which one frame takes alone, whatever the depth; for
        a chain the number of windows alone."""

    def __len__(self) -> int:
        """Segments in all."""

    def segment(self, id: int) -> Segment:
        """The segment of that id. Raises ValueError if there is none."""

    def frames_of(self, id: int) -> npt.NDArray[np.int64]:
        """Numbers of the segment's L frames, shape (L,). They may lie past the frames asked for."""

    def known(self, id: int) -> list[int]:
        """Positions, 0 to L - 1, of the segment's frames that its parent gives it.

        [] for the first segment, [0, L - 1] for a local diffusion, [0, ..., overlap - 1] for a window.
        """

    def children(self, id: int) -> list[int]:
        """Ids of the segments that wait for this one, at most L - 1."""

    def origin_of(self, frame: int) -> int:
        """Id of the segment that generates `frame`: the shallowest that holds it, deeper ones being given it.

        Raises ValueError if no segment of the pruned tree holds it.
        """

@final
class CostModel:
    """What a device takes for one denoising step, by batch size, as it was measured."""

    def __init__(self, batch_sizes: list[int], steps_s: list[float], decode_s: float = 0.0) -> None:
        """Measured seconds of a step at each of the increasing `batch_sizes`; of a decode window, 0 if unknown.

        Raises ValueError for sizes that do not increase, and for times that are not 1e-9 to 1e9 s (decode_s: 0 to 1e9).
        """

    @property
    def batch_sizes(self) -> list[int]: ...
    @property
    def steps_s(self) -> list[float]: ...
    @property
    def decode_s(self) -> float: ...
    def step_s(self, batch: int) -> float:
        """Seconds of one step of `batch` segments.

        Linear between the measured sizes, by the last slope beyond them, though never falling. With one measured
        size in proportion to the batch. Raises ValueError if batch < 1.
        """

    def best_batch(self, max_batch: int) -> int:
        """The batch size of 1 to `max_batch` with the cheapest step a segment; the smallest within 2 % of it.

        Raises ValueError if max_batch is not 1 to 2 ** 16.
        """

    def widest_batch(self, max_batch: int) -> int:
        """The largest batch size of 1 to `max_batch` whose step a segment is within 2 % of the cheapest.

        Raises ValueError if max_batch is not 1 to 2 ** 16.
        """

@final
class Work:
    """What a free device does next: denoise a batch of segments, or decode a window."""

    @property
    def id(self) -> int:
        """Counts from 0 in the order of handing out."""

    @property
    def kind(self) -> Literal["diffuse", "decode"]: ...
    @property
    def items(self) -> list[tuple[int, int]]:
        """(job, segment id) of each segment, best first; or (job, window number) of the one window."""

    @property
    def device(self) -> int:
        """The device it was handed to."""

@final
class Scheduler:
    """Hands out the work of many videos (jobs) to worker threads, one a device.

    A worker's life: `work = next(device)`; for segments, again and again one step of all that it holds, `advance`,
    `done` of those that are finished, and, while it still holds some, `join` for more; `next` when it holds nothing.
    Policies: "level" is the paper's, a barrier after every depth of a video, batches of one video, nobody joins.
    "eager" starts a segment when its parent is done, those with most steps waiting on them first, and mixes depths,
    steps and videos in a batch. "latency" is eager with what the earliest frames need first, decoding before all.
    Windows of a job are handed out in order, each once all its frames are there. A window that its consumer waits for
    goes before diffusion, others fill gaps.

    Every method may be called from any thread. Wrong use raises ValueError and changes nothing.
    """

    def __init__(self, *, policy: str, devices: list[CostModel], max_batch: int) -> None:
        """Schedule on the devices 0 to len(devices) - 1, each up to its cost model's best_batch(max_batch) segments.

        Raises ValueError without devices, and if max_batch is not 1 to 2 ** 16.
        """

    def add(
        self,
        plan: Plan,
        *,
        steps: int,
        decode_windows: list[tuple[int, int]] = [],
        decode_ahead: int = 1,
        finished: list[int] = [],
    ) -> int:
        """Add a video of `steps` denoising steps a segment; its job number, from 0. Waiting devices wake.

        decode_windows: (first, last) frame that each window reads, both included, in order, within the plan's
        frames. decode_ahead: the most windows that may be decoded or being decoded beyond the number consumed.
        finished: segments whose frames are there already, in rising order, each after its parent; nobody gets them.
        """

    def close(self) -> None:
        """No further videos will come, so that next() returns None once all are finished or failed."""

    def next(self, device: int) -> Work | None:
        """Work for `device`, which must hold nothing; waits for it without the GIL.

        None after stop(), for a lost device, and once all videos of a closed scheduler are finished or failed:
        not earlier, since what another device holds comes back if that device is lost.
        """

    def try_next(self, device: int) -> Work | None:
        """As next(), but also None, at once, when there is no work at this moment."""

    def join(self, device: int) -> list[tuple[int, int]]:
        """Between two steps of the segments that `device` holds: (job, segment id) of others to take in as well.

        They take part from the next step on, from their first. Never blocks. Raises ValueError if the device holds no
        segment.
        """

    def advance(self, device: int) -> None:
        """`device` did one step of all the segments that it holds.

        The scheduler counts their steps to know when devices become free; nothing else depends on it.
        """

    def done(self, device: int, items: list[tuple[int, int]]) -> None:
        """Some or all of the segments that `device` holds, or its window, are finished.

        Their children become ready, and windows decodable. Those of failed jobs are ignored.
        """

    def leave(self, device: int) -> None:
        """The decoding of the window that `device` holds was queued; its frames come to the host beside other work.

        The device holds it no more: try_next() may give it something else, while next() refuses until arrived(). The
        window is finished with arrived(), and goes to others if the device is lost() before. Raises ValueError if the
        device holds no window, or another is on its way.
        """

    def arrived(self, device: int) -> None:
        """The window that left `device` is finished."""

    def lost(self, device: int) -> None:
        """The device is gone: what it held is ready again, for others, and it gets no more.

        Its next() returns None from now on, its other calls raise ValueError, since it holds nothing. Of no effect a
        second time. When the last device is lost, the scheduler is stopped.
        """

    def fail(self, job: int) -> None:
        """Abandon a video: nothing of it is handed out any more, and what is held of it is ignored when done().

        Of no effect once it is finished.
        """

    def consumed(self, job: int, window: int) -> None:
        """The window's clip was taken, which makes room for decoding another one."""

    def stop(self) -> None:
        """Make next() return None from now on and wake every worker waiting in it.

        Running work may still be reported done().
        """

    @property
    def stopped(self) -> bool:
        """Whether stop() was called, or all devices are lost."""

    @property
    def finished(self) -> bool:
        """Whether the scheduler is closed, all videos are finished or failed, and no device holds anything."""

    def job_finished(self, job: int) -> bool:
        """Whether all segments and windows of the video are done. False for a failed one."""

    def failed(self, job: int) -> bool:
        """Whether the video was abandoned by fail()."""

    def held(self, device: int) -> list[tuple[int, int]]:
        """What the device holds: (job, segment id) of its segments in any order, or (job, window) of its window."""

@final
class Span:
    """What a device did in a simulation without a change: one denoising step, or one window."""

    @property
    def device(self) -> int: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...
    @property
    def kind(self) -> Literal["diffuse", "decode"]: ...
    @property
    def items(self) -> list[tuple[int, int]]:
        """(job, segment id) of each segment in the step; or (job, window number) of the one window."""

@final
class Simulation:
    """What a render takes on the virtual clock. Times are seconds from its start."""

    @property
    def makespan_s(self) -> float:
        """Until all is done."""

    @property
    def diffusion_s(self) -> float:
        """Until the last segment is done."""

    @property
    def busy_s(self) -> list[float]:
        """Time in steps and in windows, by device."""

    @property
    def first_frames_s(self) -> list[float]:
        """By plan: until its first window is decoded; without windows, until its first L frames are there."""

    @property
    def batches(self) -> int:
        """Batches of segments that free devices took."""

    @property
    def joined(self) -> int:
        """Segments that joined a batch between two of its steps."""

    @property
    def steps(self) -> int:
        """Calls of the step graph, on all devices."""

    @property
    def mean_batch(self) -> float:
        """Segments in a step, on average."""

    @property
    def cpu_s(self) -> float:
        """Processor time that the process took meanwhile: no less than what the scheduler's decisions cost."""

    @property
    def spans(self) -> list[Span]:
        """All steps and windows in order of their start, if they were recorded."""

def simulate(
    plans: list[Plan],
    *,
    policy: str,
    devices: list[CostModel],
    max_batch: int,
    steps: int,
    decode_windows: list[list[tuple[int, int]]] | None = None,
    decode_ahead: int = 1,
    record: bool = False,
    joining: bool = True,
) -> Simulation:
    """Render `plans` on a virtual clock, by the scheduler that runs real renders. Gives up the GIL, and heeds signals.

    A step of b segments takes the device's step_s(b), a window decode_s, all else nothing; a clip is consumed when it
    is decoded. decode_windows: those of each plan; without them nothing is decoded. joining: whether devices take
    newcomers between steps. Raises ValueError as Scheduler does.
    """

def normal_noise(seed: int, depth: int, index: int, step: int, out: npt.NDArray[np.float32]) -> None:
    """Fill `out` with draws of N(0, 1), a function of the arguments alone.

    The same numbers come out whatever the batch slot, device or order. Philox4x32-10 (Salmon et al., SC 2011)
    with the seed as key and (block, step, index, depth) as counter, made normal by Box-Muller.
    seed: 0 to 2**64 - 1; depth, index, step: 0 to 2**32 - 1; out: C-contiguous float32 of any shape. Raises
    ValueError for anything else, TypeError for an `out` that cannot be written to.
    """

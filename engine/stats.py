"""What a render measured of itself, and how it reports progress."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Literal

from nuwaxl.engine.request import Request, Schedule

Phase = Literal["text", "diffuse", "decode"]


@dataclass(frozen=True)
class Progress:
    """How far a phase is.

    diffuse counts denoising steps of segments (segments x steps), decode counts decoded frames, text counts
    prompts.
    """

    phase: Phase
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class BatchRecord:
    """A stretch of time in which what one device works on did not change: a decode window, or some segments.

    A device that takes newcomers between two steps begins a new stretch, so a segment may be in several that follow
    each other.

    Attributes:
        depth: of the shallowest of the segments; -1 for decoding.
        segments: ids in the plan; the number of the window for decoding.
        start_s, end_s: seconds since the render began.
        jobs: for each entry of `segments`, the video it belongs to; empty where all belong to video 0.
        steps: denoising steps that each took; 0 for decoding.
    """

    kind: Literal["diffuse", "decode"]
    depth: int
    segments: list[int]
    device: str
    start_s: float
    end_s: float
    jobs: list[int] = field(default_factory=list)
    steps: int = 0

    @property
    def items(self) -> list[tuple[int, int]]:
        """(job, segment) of each entry of `segments`."""
        return list(zip(self.jobs or [0] * len(self.segments), self.segments, strict=True))


@dataclass(frozen=True)
class StepRecord:
    """One call of the step graph: how many segments it moved by one step, and milliseconds that it took.

    On a GPU, where steps are queued, this is the mean over a stretch (see BatchRecord), with a share of the time that
    preparing newcomers took. It is known only of stretches that, like the one before, ended with a segment's last step.
    """

    segments: int
    ms: float


def frames_made(frames: int, segments: int, restored: int) -> float:
    """Of a video's frames, the share of what a run made itself: all segments cost the same."""
    return frames * (segments - restored) / segments


@dataclass(frozen=True)
class RenderStats:
    """Measurements of a finished render.

    Attributes:
        frames, depths, steps, guidance, seed, policy, max_batch, sampler: what was rendered; `depths` is the
            number of segments at every depth, [1, 5, 69] for 1024 frames at L = 16.
        devices: names of the workers.
        wall_s: from the start of the render to its last clip, or to the end of the file when it was saved.
        phases_s: seconds of work by phase, text, diffuse, decode and encode (writing the video file). diffuse
            and decode are sums over the devices, so with several they may exceed wall_s.
        device_busy_s: seconds each device was running a batch.
        batches: every batch, in order of its end.
        steps_ms: every call of the step graph whose time is known.
        restored: segments that were not rendered, but taken from a journal.
    """

    frames: int
    depths: list[int]
    steps: int
    guidance: float
    seed: int
    policy: str
    max_batch: int
    sampler: str
    devices: list[str]
    wall_s: float
    phases_s: dict[str, float]
    device_busy_s: dict[str, float]
    batches: list[BatchRecord]
    steps_ms: list[StepRecord]
    restored: int = 0

    @property
    def segments(self) -> int:
        """Number of diffusions."""
        return sum(self.depths)

    @property
    def frames_per_s(self) -> float:
        """Frames by wall_s, without the share of those whose segments were restored."""
        return frames_made(self.frames, self.segments, self.restored) / self.wall_s

    @classmethod
    def of(
        cls, request: Request, schedule: Schedule, devices: list[str], recorder: "Recorder", restored: int
    ) -> "RenderStats":
        """The measurements of a render that has just finished."""
        return cls(
            frames=request.frames,
            depths=list(request.plan.counts),
            steps=request.steps,
            guidance=request.guidance,
            seed=request.seed,
            policy=schedule.policy,
            max_batch=schedule.max_batch,
            sampler=request.sampler,
            devices=devices,
            wall_s=recorder.now(),
            phases_s=recorder.phases_s(),
            device_busy_s=recorder.device_busy_s(devices),
            batches=list(recorder.batches),
            steps_ms=list(recorder.steps_ms),
            restored=restored,
        )

    def saved(self, wall_s: float, encode_s: float) -> "RenderStats":
        """The same render, written into a file."""
        return replace(self, wall_s=wall_s, phases_s={**self.phases_s, "encode": encode_s})


@dataclass
class Recorder:
    """Collects measurements from the workers; every method may be called from any thread.

    Attributes:
        keep: whether each batch and each step is kept. They take some memory a segment.
    """

    keep: bool = True
    started: float = field(default_factory=perf_counter)
    text_s: float = 0.0
    batches: list[BatchRecord] = field(default_factory=list)
    steps_ms: list[StepRecord] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        """Seconds since the render began."""
        return perf_counter() - self.started

    def text(self, seconds: float) -> None:
        """Note that prompts were encoded."""
        with self._lock:
            self.text_s += seconds

    def step(self, segments: int, seconds: float) -> None:
        """Note one call of the step graph."""
        if not self.keep:
            return
        with self._lock:
            self.steps_ms.append(StepRecord(segments, seconds * 1000))

    def batch(self, record: BatchRecord) -> None:
        """Note one batch."""
        if not self.keep:
            return
        with self._lock:
            self.batches.append(record)

    def phases_s(self) -> dict[str, float]:
        """Seconds of work by phase; nothing is encoded yet."""
        return {
            "text": self.text_s,
            "diffuse": self._busy("diffuse"),
            "decode": self._busy("decode"),
            "encode": 0.0,
        }

    def device_busy_s(self, devices: list[str]) -> dict[str, float]:
        """Seconds each device was running a batch."""
        return {
            name: sum(record.end_s - record.start_s for record in self.batches if record.device == name)
            for name in devices
        }

    def _busy(self, kind: str) -> float:
        return sum(record.end_s - record.start_s for record in self.batches if record.kind == kind)

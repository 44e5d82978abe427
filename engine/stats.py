"""What a render measured of itself, and how it reports progress."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

Phase = Literal["text", "diffuse", "decode", "encode"]


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
    """One batch on one device. Times are seconds since the render began; depth is -1 for decoding."""

    kind: Literal["diffuse", "decode"]
    depth: int
    segments: list[int]
    device: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class StepRecord:
    """One call of the step graph: how many segments it moved by one step, and how long it took."""

    segments: int
    ms: float


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
        steps_ms: every call of the step graph.
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

    @property
    def segments(self) -> int:
        """Number of diffusions."""
        return sum(self.depths)


@dataclass
class Recorder:
    """Collects measurements from the workers; every method may be called from any thread."""

    started: float = field(default_factory=perf_counter)
    text_s: float = 0.0
    batches: list[BatchRecord] = field(default_factory=list)
    steps_ms: list[StepRecord] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        """Seconds since the render began."""
        return perf_counter() - self.started

    def step(self, segments: int, seconds: float) -> None:
        """Note one call of the step graph."""
        with self._lock:
            self.steps_ms.append(StepRecord(segments, seconds * 1000))

    def batch(self, record: BatchRecord) -> None:
        """Note one batch."""
        with self._lock:
            self.batches.append(record)

    def phases_s(self, encode_s: float) -> dict[str, float]:
        """Seconds of work by phase."""
        return {
            "text": self.text_s,
            "diffuse": self._busy("diffuse"),
            "decode": self._busy("decode"),
            "encode": encode_s,
        }

    def device_busy_s(self, devices: list[str]) -> dict[str, float]:
        """Seconds each device was running a batch."""
        return {
            name: sum(record.end_s - record.start_s for record in self.batches if record.device == name)
            for name in devices
        }

    def _busy(self, kind: str) -> float:
        return sum(record.end_s - record.start_s for record in self.batches if record.kind == kind)

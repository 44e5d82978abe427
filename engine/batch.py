"""The batch of one device: segments of any video, depth and step, which come and go between two steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nuwaxl.engine.job import Job
from nuwaxl.engine.runners.base import Denoising, Float32, Runner, Segments
from nuwaxl.errors import RenderError

Item = tuple[int, int]  # (job, segment)


@dataclass
class _Slot:
    job: Job
    item: Item
    step: int = 0


@dataclass(frozen=True)
class Finished:
    """A segment that took its last step; `error` where its latents could not be used."""

    item: Item
    error: RenderError | None


class Batch:
    """Segments under way on one runner."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._slots: list[_Slot] = []
        self._denoising: Denoising | None = None

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def items(self) -> list[Item]:
        """What is under way, in the order of the slots."""
        return [slot.item for slot in self._slots]

    @property
    def depth(self) -> int:
        """Depth of the shallowest segment under way."""
        return min(slot.job.request.plan.segment(slot.item[1]).depth for slot in self._slots)

    def join(self, newcomers: Sequence[tuple[Job, Item]]) -> None:
        """Take segments, which are moved with the others from the next step on."""
        together = Segments.joined([job.begin(segment) for job, (_, segment) in newcomers])
        if self._denoising is None:
            self._denoising = self._runner.start(together)
        else:
            self._denoising.join(together)
        self._slots += [_Slot(job, item) for job, item in newcomers]

    def step(self) -> list[Finished]:
        """Move every segment by one step; those that took their last leave, their latents kept by their jobs."""
        assert self._denoising is not None
        tables = [(slot.job.request.table, slot.step) for slot in self._slots]
        self._denoising.step(
            np.array([table.timesteps[step] for table, step in tables]),
            np.stack([table.coefficients[step] for table, step in tables]).astype(np.float32),
            np.array([slot.job.request.guidance for slot in self._slots], dtype=np.float32),
            self._noise(),
        )
        for slot in self._slots:
            slot.step += 1
        return self._leave([n for n, slot in enumerate(self._slots) if slot.step == slot.job.request.steps])

    def drop(self, jobs: set[int]) -> None:
        """Abandon the segments of some jobs."""
        self._keep([n for n, slot in enumerate(self._slots) if slot.item[0] not in jobs])

    def _noise(self) -> Float32 | None:
        """The noise that this step adds, (b, L, c, h, w); None where no sampler adds any."""
        if not any(slot.job.request.table.coefficients[slot.step, 5] for slot in self._slots):
            return None
        return np.stack([slot.job.noise(slot.item[1], slot.step + 1) for slot in self._slots])

    def _leave(self, done: list[int]) -> list[Finished]:
        if not done:
            return []
        assert self._denoising is not None
        finished = []
        for number, latents in zip(done, self._denoising.latents(done), strict=True):
            slot, error = self._slots[number], None
            try:
                slot.job.finish(slot.item[1], latents)
            except RenderError as failure:
                error = failure
            finished.append(Finished(slot.item, error))
        self._keep([n for n in range(len(self._slots)) if n not in done])
        return finished

    def _keep(self, numbers: list[int]) -> None:
        if len(numbers) == len(self._slots):
            return
        self._slots = [self._slots[n] for n in numbers]
        if not self._slots:
            self._denoising = None
        elif self._denoising is not None:
            self._denoising.keep(numbers)

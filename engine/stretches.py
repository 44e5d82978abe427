"""What one device denoises, as it is recorded: stretch after stretch, in each of which the segments under way stay."""

from nuwaxl.engine.batch import Item
from nuwaxl.engine.stats import BatchRecord, Recorder


class Stretches:
    """The stretches of one device: `begin`, `called` for every step, `end`, and so on.

    Args:
        device: its name.
        queued: whether a call of the step returns before the device has done it (see DecodesLater).
    """

    def __init__(self, recorder: Recorder, device: str, queued: bool) -> None:
        self._recorder = recorder
        self._device = device
        self._queued = queued
        self._start = 0.0
        self._calls: list[float] = []
        self._idle = True  # whether the device was done with the stretch before when this one began

    def begin(self) -> None:
        """One begins now: segments join, or until now the device was at something else."""
        self._start = self._recorder.now()
        self._calls = []

    def called(self, seconds: float) -> None:
        """A call of the step returned after so long."""
        self._calls.append(seconds)

    def end(self, items: list[Item], depth: int, *, finished: bool) -> None:
        """One of these segments ends now, `depth` that of the shallowest.

        Where one of them has `finished`, its latents were waited for, and so for all that was queued. Only so, and
        after a stretch that ended so, the steps of a device that queues them are known: they share the time equally.
        """
        end, steps = self._recorder.now(), len(self._calls)
        if self._queued:
            self._calls = [(end - self._start) / steps] * steps if self._idle and finished else []
        self._idle = finished
        for seconds in self._calls:
            self._recorder.step(len(items), seconds)
        jobs, segments = [job for job, _ in items], [segment for _, segment in items]
        self._recorder.batch(BatchRecord("diffuse", depth, segments, self._device, self._start, end, jobs, steps))

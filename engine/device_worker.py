"""One device at work: a thread that runs what the scheduler hands out for it."""

from dataclasses import dataclass

from nuwaxl.engine._core import CostModel, Scheduler
from nuwaxl.engine.arriving import Arriving
from nuwaxl.engine.batch import Batch, Item
from nuwaxl.engine.job import Clip, Job
from nuwaxl.engine.ledger import Ledger
from nuwaxl.engine.runners.base import Runner, goes_on
from nuwaxl.engine.stats import BatchRecord, Recorder
from nuwaxl.engine.stretches import Stretches
from nuwaxl.errors import DeviceLost, RenderCancelled


@dataclass(frozen=True)
class Device:
    """A runner as the render sees it: what statistics call it, and how long its steps take."""

    name: str
    runner: Runner
    cost: CostModel


class DeviceWorker:
    """What one thread works with: its device, its number at the scheduler, and what is under way there.

    Only its thread knows it, so that the memory of what is under way is free as soon as that ends.
    """

    def __init__(self, number: int, device: Device, scheduler: Scheduler, ledger: Ledger, recorder: Recorder) -> None:
        self._number = number
        self._name = device.name
        self._runner = device.runner
        self._scheduler = scheduler
        self._ledger = ledger
        self._recorder = recorder
        self._batch = Batch(device.runner)
        self._arriving = Arriving()
        self._stretches = Stretches(recorder, device.name, goes_on(device.runner))

    def work(self) -> None:
        """The thread's target, which leaves nobody waiting for it, however it ends."""
        try:
            self._run()
        except DeviceLost as error:
            self._ledger.lose(self._number, self._name, error)
        except BaseException as error:  # a fault of ours, which Python shows
            self._ledger.lose(self._number, self._name, error)
            raise

    def _run(self) -> None:
        """Run what the scheduler hands out until there is no more, or somebody stops it.

        Raises:
            DeviceLost: by the worker's device.
        """
        # A batch is left where it is when the render stops.
        while not self._batch:
            arriving = bool(self._arriving)
            work = self._scheduler.try_next(self._number) if arriving else self._scheduler.next(self._number)
            if work is None and not arriving:
                break
            try:
                if work is None:
                    self._take_arriving()
                elif work.kind == "decode":
                    self._decode(work.items[0])
                else:
                    self._diffuse(list(work.items))
            except DeviceLost:
                raise
            except BaseException as error:
                held = self._scheduler.held(self._number)  # newcomers with it, whether they are in the batch yet or not
                what = "" if work is None else f", {work.kind} {[item for _, item in held]}"
                self._ledger.blame(error, f"{self._name}{what}", {job for job, _ in held})
                self._batch.drop({job for job, _ in held})
                self._scheduler.done(self._number, held)

    def _decode(self, item: Item) -> None:
        job = self._ledger.wanted(item[0])
        if job is None:
            self._scheduler.done(self._number, [item])
            return
        start = self._recorder.now()
        clip = job.decode(item[1], self._runner)
        if goes_on(self._runner):
            # The device is at it: this thread goes on with what the scheduler has for it next.
            if self._arriving:
                self._take_arriving()
                start = self._recorder.now()
            self._scheduler.leave(self._number)
            self._arriving.begin(item, clip, start)
        else:
            self._decoded(item, clip(), start)
            self._scheduler.done(self._number, [item])

    def _take_arriving(self) -> None:
        """Wait for the clip that comes to the host while the device goes on (see DecodesLater), if there is one."""
        self._arriving.wait(came=self._came, failed=self._did_not_come)

    def _came(self, item: Item, clip: Clip, start: float) -> None:
        self._decoded(item, clip, start)
        self._scheduler.arrived(self._number)

    def _did_not_come(self, item: Item, error: BaseException) -> None:
        self._ledger.blame(error, f"{self._name}, decode [{item[1]}]", {item[0]})
        self._scheduler.arrived(self._number)

    def _decoded(self, item: Item, clip: Clip, start: float) -> None:
        self._recorder.batch(BatchRecord("decode", -1, [item[1]], self._name, start, self._recorder.now(), [item[0]]))
        self._ledger.decoded(item, clip)

    def _diffuse(self, newcomers: list[Item]) -> None:
        """Denoise until the device has nothing left under way, taking newcomers between the steps."""
        batch = self._batch
        self._join(newcomers)
        while batch and not self._scheduler.stopped:
            under_way, depth, began = batch.items, batch.depth, self._recorder.now()
            finished = batch.step()
            seconds = self._recorder.now() - began
            if self._arriving:  # the step is queued behind the decoding: the clip comes while the device is at it
                self._take_arriving()
                self._stretches.begin()
            self._stretches.called(seconds)
            self._ledger.count(steps=len(under_way))
            failed = self._ledger.failed()
            for one in finished:
                if one.error is not None:
                    self._ledger.blame(one.error, self._name, {one.item[0]})
            dropped = [item for item in batch.items if item[0] in failed]
            batch.drop(failed)
            self._scheduler.advance(self._number)
            self._scheduler.done(self._number, [*(one.item for one in finished), *dropped])
            newcomers = self._scheduler.join(self._number) if batch else []
            if finished or dropped or newcomers:
                self._stretches.end(under_way, depth, finished=bool(finished))
                self._join(newcomers)

    def _join(self, newcomers: list[Item]) -> None:
        """Take newcomers into the batch, with which a stretch begins; those of a job that failed meanwhile go back."""
        jobs = {item: self._ledger.wanted(item[0]) for item in newcomers}
        gone = [item for item, job in jobs.items() if job is None]
        if gone:
            self._scheduler.done(self._number, gone)
        wanted = [(job, item) for item, job in jobs.items() if job is not None and self._encode_text(job, item)]
        self._stretches.begin()
        if wanted:
            self._batch.join(wanted)

    def _encode_text(self, job: Job, item: Item) -> bool:
        """Encode the job's prompts, unless that was done; False if it cannot be, for which no other job is to blame."""
        began = self._recorder.now()
        try:
            if job.encode_text(self._runner, self._check_going_on):
                self._recorder.text(self._recorder.now() - began)
                self._ledger.count(texts=job.texts)
        except (DeviceLost, RenderCancelled):
            raise
        except Exception as error:
            self._ledger.blame(error, f"{self._name}, text", {item[0]})
            self._scheduler.done(self._number, [item])
            return False
        return True

    def _check_going_on(self) -> None:
        if self._scheduler.stopped:
            raise RenderCancelled("expected the render to go on; found it stopped; render again")

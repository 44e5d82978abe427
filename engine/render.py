"""A render of one or many stories: workers run what the scheduler hands out, the caller's thread takes the clips."""

import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial

from nuwaxl.engine._core import Scheduler
from nuwaxl.engine.bundle_schema import Manifest
from nuwaxl.engine.device_worker import Device, DeviceWorker
from nuwaxl.engine.events import Ended, Taken
from nuwaxl.engine.job import Clip, Job
from nuwaxl.engine.ledger import Counts, Ledger
from nuwaxl.engine.process import HomeProcess, under_way
from nuwaxl.engine.request import Request, Schedule, Task
from nuwaxl.engine.resumption import open_journal
from nuwaxl.engine.stats import Phase, Progress, ProgressCallback, Recorder
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.errors import InputError, RenderError

# Renders that a forked process inherited: the locks of their schedulers may be held by threads that it has not, so that
# even freeing them would wait for ever.
_INHERITED: list["Render"] = []


@dataclass
class _Awaited:
    """An open job as the thread that takes the events sees it."""

    windows: int
    start_s: float
    restored: int  # segments that its journal had
    taken: int = 0  # windows


class Render:
    """Runs once: iterate over events().

    Workers (device_worker.py) share the scheduler and the ledger with the thread that takes the events, in which all of
    this runs but fail() and cancel(). The scheduler keeps the number of decoded clips that nobody has taken small, and
    only so many jobs are open as keep the devices full, so memory grows neither with the number of frames beyond the
    latents nor with the number of jobs. `progress` is called in the thread that takes the events.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: PromptTokenizer,
        devices: Sequence[Device],
        tasks: Sequence[tuple[Task, Request]],
        schedule: Schedule,
        progress: ProgressCallback | None = None,
        keep_records: bool = True,
    ) -> None:
        """`keep_records`: whether somebody will ask for every batch and step."""
        self.recorder = Recorder(keep=keep_records)
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._devices = devices
        self._tasks = tasks
        self._progress = progress
        costs = [device.cost for device in devices]
        # Larger batches than were measured gain nothing, as far as is known, and take memory.
        max_batch = min(schedule.max_batch, max(cost.batch_sizes[-1] for cost in costs))
        self._scheduler = Scheduler(policy=schedule.policy, devices=costs, max_batch=max_batch)
        self._ledger = Ledger(self._scheduler)
        # Every job starts with one segment alone, so as many jobs as segments under way keep all devices full.
        self._most_open = 1 + sum(cost.best_batch(max_batch) for cost in costs)
        self._threads: list[threading.Thread] = []
        self._process = HomeProcess()
        self._admitted = 0
        self._awaited: dict[int, _Awaited] = {}  # by job, those of which clips are awaited
        self._steps_total = sum(len(request.plan) * request.steps for _, request in tasks)
        self._told = Counts()
        self._frames_total = sum(request.frames for _, request in tasks)

    def events(self) -> Generator[Taken | Ended, None, None]:
        """The clips of every job in order, those of different jobs as they come, and the end of every job.

        Leaving the iteration early stops and joins the workers.

        Raises:
            InputError: this process was forked from that of the render.
            RenderCancelled: cancel() was called.
        """
        under_way.add(self)
        self._threads = [self._thread(number, device) for number, device in enumerate(self._devices)]
        frames_done = 0
        try:
            with self._ledger.lock:
                self._ledger.check_cancelled()
                for thread in self._threads:
                    thread.start()
            self._admit()
            while self._awaited:
                number = self._wait()
                job = self._awaited[number]
                while (clip := self._take(number, job.taken)) is not None:
                    frames_done += len(clip.frames)
                    self._report("decode", frames_done, self._frames_total)
                    self._scheduler.consumed(number, job.taken)
                    job.taken += 1
                    yield Taken(number, clip)
                    del clip
                if job.taken == job.windows or number in self._ledger.failed():
                    self._report_work(self._ledger.counts())  # of the last steps, if nobody waited since
                    yield self._end(number)
                    self._admit()
        finally:
            if self._process.here:
                self._scheduler.stop()
                try:
                    self.join()
                except KeyboardInterrupt:  # pressed twice; what was promised of the first still holds
                    self.join()
                    raise
                finally:
                    self._ledger.close_all()
            else:
                _INHERITED.append(self)
            under_way.discard(self)

    def join(self) -> None:
        """Wait until the workers of a cancelled render have ended."""
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()
                while thread in threading.enumerate():  # CPython 3.11 takes it for ended once a join was interrupted
                    time.sleep(0.01)

    def fail(self, number: int, error: RenderError) -> None:
        """Give a job up, whose clips nobody can use: events() goes on with the others. From any thread."""
        self._ledger.fail(number, error)

    def cancel(self) -> None:
        """Stop, from any thread: events() raises RenderCancelled within one denoising step."""
        if self._process.here:
            self._ledger.cancel()

    def _thread(self, number: int, device: Device) -> threading.Thread:
        worker = DeviceWorker(number, device, self._scheduler, self._ledger, self.recorder)
        # Daemons: an iteration that is left open must not keep the interpreter from exiting, which stops it.
        return threading.Thread(target=worker.work, name=f"nuwaxl {device.name}", daemon=True)

    def _admit(self) -> None:
        """Open jobs until enough are."""
        while self._admitted < len(self._tasks) and len(self._awaited) < self._most_open:
            task, request = self._tasks[self._admitted]
            job, failure = self._begin(task, request)
            self._awaited[self._admitted] = _Awaited(len(job.windows), self.recorder.now(), len(job.finished))
            self._ledger.open(self._admitted, job, decode_ahead=2 * len(self._devices))
            if failure is not None:
                self.fail(self._admitted, failure)
            self._admitted += 1
        if self._admitted == len(self._tasks):
            self._scheduler.close()

    def _begin(self, task: Task, request: Request) -> tuple[Job, RenderError | None]:
        """A job, with what its journal has; without it where that cannot be used any more, and why."""
        of = partial(Job, self._manifest.network, self._tokenizer, task.story, request)
        try:
            journal = open_journal(self._manifest, task.story, request)
            try:
                return of(journal, self._ledger.check), None
            except BaseException:  # Ctrl-C as well: a traceback that is kept would keep the journal from others
                if journal is not None:
                    journal.close()
                raise
        except InputError as error:  # it was checked before; others may have changed it since
            return of(), RenderError(str(error))

    def _end(self, number: int) -> Ended:
        error, job = self._ledger.close(number), self._awaited.pop(number)
        return Ended(number, error, job.start_s, self.recorder.now(), job.restored)

    def _wait(self) -> int:
        """Wait for news of an open job, reporting steps and prompts meanwhile."""
        while True:
            self._process.check()
            number, counts = self._ledger.news()
            told = self._report_work(counts)
            if number is not None and number in self._awaited:
                return number
            if number is None and not told:
                self._ledger.wait()

    def _report_work(self, counts: Counts) -> bool:
        """Tell of prompts and steps; whether there are more than were told of."""
        before, self._told = self._told, counts
        if counts.texts != before.texts:
            self._report("text", counts.texts, counts.texts)
        if counts.steps != before.steps:
            self._report("diffuse", counts.steps, self._steps_total)
        return counts != before

    def _take(self, number: int, window: int) -> Clip | None:
        self._process.check()
        return self._ledger.take(number, window)

    def _report(self, phase: Phase, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(Progress(phase, done, total))

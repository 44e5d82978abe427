"""A render of one or many stories: workers run what the scheduler hands out, the caller's thread takes the clips."""

import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from nuwaxl.engine._core import CostModel, Scheduler
from nuwaxl.engine.arriving import Arriving
from nuwaxl.engine.batch import Batch, Item
from nuwaxl.engine.bundle_schema import Manifest
from nuwaxl.engine.events import Ended, Taken
from nuwaxl.engine.job import Clip, Job
from nuwaxl.engine.process import HomeProcess, under_way
from nuwaxl.engine.request import Request, Schedule, Task
from nuwaxl.engine.resumption import open_journal
from nuwaxl.engine.runners.base import Runner, goes_on
from nuwaxl.engine.stats import BatchRecord, Phase, Progress, ProgressCallback, Recorder
from nuwaxl.engine.stretches import Stretches
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.errors import DeviceLost, InputError, RenderCancelled, RenderError

# Renders that a forked process inherited: the locks of their schedulers may be held by threads that it has not, so that
# even freeing them would wait for ever.
_INHERITED: list["Render"] = []


@dataclass(frozen=True)
class Device:
    """A runner as the render sees it: what statistics call it, and how long its steps take."""

    name: str
    runner: Runner
    cost: CostModel


@dataclass(frozen=True)
class _Worker:
    """What one thread works with: its number at the scheduler, its device, and what is under way there."""

    number: int
    device: Device
    batch: Batch
    arriving: Arriving
    stretches: Stretches


class Render:
    """Runs once: iterate over events().

    Workers share the scheduler and the jobs. The scheduler keeps the number of decoded clips that nobody has taken
    small, and only so many jobs are open as keep the devices full, so memory grows neither with the number of frames
    beyond the latents nor with the number of jobs. `progress` is called in the thread that takes the events.
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
        # Every job starts with one segment alone, so as many jobs as segments under way keep all devices full.
        self._most_open = 1 + sum(cost.best_batch(max_batch) for cost in costs)
        self._threads: list[threading.Thread] = []
        self._process = HomeProcess()
        self._admitted = 0
        self._open: dict[int, float] = {}  # jobs of which clips are awaited: when they were admitted
        self._steps_total = sum(len(request.plan) * request.steps for _, request in tasks)
        self._frames_total = sum(request.frames for _, request in tasks)
        # Put something in when a step, a clip or a failure is there. No condition variable: Ctrl-C inside of its Python
        # code can leave its lock taken for ever, which cannot happen to a queue and a lock made in C.
        self._wake: SimpleQueue[None] = SimpleQueue()
        # Guards those below.
        self._lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._clips: dict[tuple[int, int], Clip] = {}  # by job and window
        self._news: deque[int] = deque()  # jobs of which a clip was decoded, or that failed
        self._failures: dict[int, RenderError] = {}
        self._steps_done = 0
        self._texts_done = 0
        self._cancelled = False
        self._devices_lost: RenderError | None = None  # all of them

    def events(self) -> Generator[Taken | Ended, None, None]:
        """The clips of every job in order, those of different jobs as they come, and the end of every job.

        Leaving the iteration early stops and joins the workers.

        Raises:
            InputError: this process was forked from that of the render.
            RenderCancelled: cancel() was called.
        """
        under_way.add(self)
        self._threads = [
            # Daemons: an iteration that is left open must not keep the interpreter from exiting, which stops it.
            threading.Thread(target=self._work, args=(number,), name=f"nuwaxl {device.name}", daemon=True)
            for number, device in enumerate(self._devices)
        ]
        taken: dict[int, int] = {}  # windows, by job
        frames_done = 0
        try:
            with self._lock:
                self._check_cancelled()
                for thread in self._threads:
                    thread.start()
            self._admit()
            while self._open:
                job = self._wait()
                windows = self._jobs[job].windows
                while (clip := self._take(job, taken.get(job, 0))) is not None:
                    frames_done += len(clip.frames)
                    self._report("decode", frames_done, self._frames_total)
                    self._scheduler.consumed(job, taken.get(job, 0))
                    taken[job] = taken.get(job, 0) + 1
                    yield Taken(job, clip)
                    del clip
                if job in self._failures or taken.get(job, 0) == len(windows):
                    yield self._end(job)
                    self._admit()
        finally:
            under_way.discard(self)
            if self._process.here:
                self._scheduler.stop()
                self.join()
                for rest in self._jobs.values():
                    rest.close()
            else:
                _INHERITED.append(self)

    def join(self) -> None:
        """Wait until the workers of a cancelled render have ended."""
        for thread in self._threads:
            if thread.ident is not None and thread is not threading.current_thread():
                thread.join()

    def fail(self, job: int, error: RenderError) -> None:
        """Give a job up, whose clips nobody can use: events() goes on with the others."""
        with self._lock:
            if job not in self._failures and job in self._jobs:
                self._failures[job] = error
                self._news.append(job)
                self._scheduler.fail(job)
            self._notify()

    def cancel(self) -> None:
        """Stop, from any thread: events() raises RenderCancelled within one denoising step."""
        if not self._process.here:
            return
        with self._lock:
            self._cancelled = True
            self._notify()
            self._scheduler.stop()

    def _admit(self) -> None:
        """Open jobs until enough are."""
        while self._admitted < len(self._tasks) and len(self._open) < self._most_open:
            task, request = self._tasks[self._admitted]
            job, failure = self._begin(task, request)
            with self._lock:
                self._jobs[self._admitted] = job
                self._open[self._admitted] = self.recorder.now()
                self._check_cancelled()
                self._steps_done += len(job.finished) * request.steps
                if self._devices_lost is not None:
                    self._failures[self._admitted] = self._devices_lost
                    self._news.append(self._admitted)
                else:
                    # Numbers jobs from 0 in the order they are added, as we do.
                    self._scheduler.add(
                        request.plan,
                        steps=request.steps,
                        decode_windows=[window.needs for window in job.windows],
                        decode_ahead=2 * len(self._devices),
                        finished=job.finished,
                    )
                    if failure is not None:
                        self.fail(self._admitted, failure)
            self._admitted += 1
        if self._admitted == len(self._tasks):
            self._scheduler.close()

    def _begin(self, task: Task, request: Request) -> tuple[Job, RenderError | None]:
        """A job, with what its journal has; without it where that cannot be used any more, and why."""
        of = partial(Job, self._manifest.network, self._tokenizer, task.story, request)
        try:
            return of(open_journal(self._manifest, task.story, request)), None
        except InputError as error:  # it was checked before; others may have changed it since
            return of(), RenderError(str(error))

    def _end(self, job: int) -> Ended:
        with self._lock:
            self._jobs.pop(job).close()
            for key in [key for key in self._clips if key[0] == job]:
                del self._clips[key]
            error = self._failures.get(job)
        return Ended(job, error, self._open.pop(job), self.recorder.now())

    def _wait(self) -> int:
        """Wait for news of an open job, reporting steps and prompts meanwhile."""
        reported = (0, 0)
        while True:
            self._process.check()
            with self._lock:
                self._check_cancelled()
                texts, steps = self._texts_done, self._steps_done
                job = self._news.popleft() if self._news else None
            if texts != reported[0]:
                self._report("text", texts, texts)
            if steps != reported[1]:
                self._report("diffuse", steps, self._steps_total)
            if job is not None and job in self._open:
                return job
            if job is None and (texts, steps) == reported:
                self._wake.get()
            reported = (texts, steps)

    def _notify(self) -> None:
        """Wake the thread that takes the events; whoever calls this has made its change before."""
        if self._wake.empty():
            self._wake.put(None)

    def _take(self, job: int, window: int) -> Clip | None:
        self._process.check()
        with self._lock:
            self._check_cancelled()
            return self._clips.pop((job, window), None)

    def _check_cancelled(self) -> None:
        if self._cancelled:
            raise RenderCancelled("expected the render to go on; found it cancelled; render again")

    def _work(self, number: int) -> None:
        """A worker's thread, which leaves nobody waiting for it, however it ends."""
        try:
            self._run(number)
        except DeviceLost as error:
            self._lose(number, error)
        except BaseException as error:  # a fault of ours, which Python shows
            self._lose(number, error)
            raise

    def _run(self, number: int) -> None:
        """Run what the scheduler hands out until there is no more, or somebody stops it.

        Raises:
            DeviceLost: by the worker's device.
        """
        device = self._devices[number]
        batch, arriving = Batch(device.runner), self._arriving(number)
        stretches = Stretches(self.recorder, device.name, goes_on(device.runner))
        worker = _Worker(number, device, batch, arriving, stretches)
        # A batch is left where it is when the render stops.
        while not batch:
            work = self._scheduler.try_next(number) if arriving else self._scheduler.next(number)
            if work is None and not arriving:
                break
            try:
                if work is None:
                    arriving.wait()
                elif work.kind == "decode":
                    self._decode(worker, work.items[0])
                else:
                    self._diffuse(worker, list(work.items))
            except DeviceLost:
                raise
            except BaseException as error:
                held = self._scheduler.held(number)  # newcomers with it, whether they are in the batch yet or not
                what = "" if work is None else f", {work.kind} {[item for _, item in held]}"
                self._blame(error, f"{device.name}{what}", {job for job, _ in held})
                batch.drop({job for job, _ in held})
                self._scheduler.done(number, held)

    def _arriving(self, number: int) -> Arriving:
        """For the clips that come to the host while the device goes on (see DecodesLater)."""
        name = self._devices[number].name

        def came(item: Item, clip: Clip, start: float) -> None:
            self._decoded(name, item, clip, start)
            self._scheduler.arrived(number)

        def failed(item: Item, error: BaseException) -> None:
            self._blame(error, f"{name}, decode [{item[1]}]", {item[0]})
            self._scheduler.arrived(number)

        return Arriving(came, failed)

    def _decode(self, worker: _Worker, item: Item) -> None:
        job = self._job(item[0])
        if job is None:
            self._scheduler.done(worker.number, [item])
            return
        start = self.recorder.now()
        clip = job.decode(item[1], worker.device.runner)
        if goes_on(worker.device.runner):
            # The device is at it: this thread goes on with what the scheduler has for it next.
            if worker.arriving:
                worker.arriving.wait()
                start = self.recorder.now()
            self._scheduler.leave(worker.number)
            worker.arriving.begin(item, clip, start)
        else:
            self._decoded(worker.device.name, item, clip(), start)
            self._scheduler.done(worker.number, [item])

    def _decoded(self, device: str, item: Item, clip: Clip, start: float) -> None:
        """A clip is there, for the thread that takes the events."""
        self.recorder.batch(BatchRecord("decode", -1, [item[1]], device, start, self.recorder.now(), [item[0]]))
        with self._lock:
            if item[0] in self._jobs:  # it may have failed meanwhile
                self._clips[item] = clip
                self._news.append(item[0])
                self._notify()

    def _diffuse(self, worker: _Worker, newcomers: list[Item]) -> None:
        """Denoise until the device has nothing left under way, taking newcomers between the steps."""
        number, batch, stretches = worker.number, worker.batch, worker.stretches
        self._join(worker, newcomers)
        while batch and not self._scheduler.stopped:
            under_way, began = batch.items, self.recorder.now()
            finished = batch.step()
            seconds = self.recorder.now() - began
            if worker.arriving:  # the step is queued behind the decoding: the clip comes while the device is at it
                worker.arriving.wait()
                stretches.begin()
            stretches.called(seconds)
            with self._lock:
                self._steps_done += len(under_way)
                self._notify()
                failed = set(self._failures)
            for one in finished:
                if one.error is not None:
                    self._blame(one.error, worker.device.name, {one.item[0]})
            dropped = [item for item in batch.items if item[0] in failed]
            batch.drop(failed)
            self._scheduler.advance(number)
            self._scheduler.done(number, [*(one.item for one in finished), *dropped])
            newcomers = self._scheduler.join(number) if batch else []
            if finished or dropped or newcomers:
                stretches.end(under_way, self._depth(under_way), finished=bool(finished))
                self._join(worker, newcomers)

    def _join(self, worker: _Worker, newcomers: list[Item]) -> None:
        """Take newcomers into the batch, with which a stretch begins; those of a job that failed meanwhile go back."""
        jobs = {item: self._job(item[0]) for item in newcomers}
        gone = [item for item, job in jobs.items() if job is None]
        if gone:
            self._scheduler.done(worker.number, gone)
        wanted = [(job, item) for item, job in jobs.items() if job is not None and self._encode_text(worker, job, item)]
        worker.stretches.begin()
        if wanted:
            worker.batch.join(wanted)

    def _encode_text(self, worker: _Worker, job: Job, item: Item) -> bool:
        """Encode the job's prompts, unless that was done; False if it cannot be, for which no other job is to blame."""
        began = self.recorder.now()
        try:
            if job.encode_text(worker.device.runner, self._check_going_on):
                self.recorder.text(self.recorder.now() - began)
                with self._lock:
                    self._texts_done += job.texts
                    self._notify()
        except (DeviceLost, RenderCancelled):
            raise
        except Exception as error:
            self._blame(error, f"{worker.device.name}, text", {item[0]})
            self._scheduler.done(worker.number, [item])
            return False
        return True

    def _depth(self, items: list[Item]) -> int:
        """Of the shallowest of these segments."""
        with self._lock:
            plans = {job: self._jobs[job].request.plan for job, _ in items if job in self._jobs}
        return min((plans[job].segment(segment).depth for job, segment in items if job in plans), default=0)

    def _job(self, number: int) -> Job | None:
        """A job that is still wanted."""
        with self._lock:
            return None if number in self._failures else self._jobs.get(number)

    def _check_going_on(self) -> None:
        if self._scheduler.stopped:
            raise RenderCancelled("expected the render to go on; found it stopped; render again")

    def _blame(self, error: BaseException, where: str, jobs: set[int]) -> RenderError:
        detail = " ".join(str(error).split())
        failure = RenderError(f"the render failed on {where}: {type(error).__name__}: {detail}")
        failure.__cause__ = error
        for job in jobs:
            self.fail(job, failure)
        return failure

    def _lose(self, number: int, error: BaseException) -> None:
        """The other devices take over what this one had under way; without others, all jobs fail."""
        with self._lock:
            self._scheduler.lost(number)
            if self._scheduler.stopped:
                self._devices_lost = self._blame(error, self._devices[number].name, set(self._open))

    def _report(self, phase: Phase, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(Progress(phase, done, total))

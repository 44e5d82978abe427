"""What became of the jobs of a render: the workers write it down, the thread that takes the events reads it."""

import threading
import traceback
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue

from nuwaxl.engine._core import Scheduler
from nuwaxl.engine.batch import Item
from nuwaxl.engine.job import Clip, Job
from nuwaxl.errors import RenderCancelled, RenderError, one_line


@dataclass(frozen=True)
class Counts:
    """Of the whole render so far: prompts encoded, and denoising steps of segments."""

    texts: int = 0
    steps: int = 0


class Ledger:
    """The open jobs, their clips that nobody has taken, their failures, and what was done for all of them.

    The scheduler learns of jobs and failures under the same lock, so that the two agree on what is wanted.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        # Put something in when a step, a clip or a failure is there. No condition variable: Ctrl-C inside of its Python
        # code can leave its lock taken for ever, which cannot happen to a queue and a lock made in C.
        self._wake: SimpleQueue[None] = SimpleQueue()
        # Guards those below; nobody cancels the render while another thread holds it. It is taken by `with` alone, not
        # by a context manager of ours, for the same reason.
        self.lock = threading.RLock()
        self._jobs: dict[int, Job] = {}
        self._clips: dict[tuple[int, int], Clip] = {}  # by job and window
        self._news: deque[int] = deque()  # jobs of which a clip was decoded, or that failed
        self._failures: dict[int, RenderError] = {}
        self._counts = Counts()
        self._cancelled = False
        self._devices_lost: RenderError | None = None  # all of them

    # For the thread that takes the events.

    def open(self, number: int, job: Job, decode_ahead: int) -> None:
        """Have a job rendered; the first is number 0, as it is for the scheduler.

        Raises:
            RenderCancelled: cancel() was called.
        """
        with self.lock:
            self._jobs[number] = job
            self.check_cancelled()
            if job.finished:
                self.count(steps=len(job.finished) * job.request.steps)
            if self._devices_lost is not None:
                self._failures[number] = self._devices_lost
                self._news.append(number)
            else:
                self._scheduler.add(
                    job.request.plan,
                    steps=job.request.steps,
                    decode_windows=[window.needs for window in job.windows],
                    decode_ahead=decode_ahead,
                    finished=job.finished,
                )

    def check(self) -> None:
        """Where nothing is awaited, but time passes.

        Raises:
            RenderCancelled: cancel() was called.
        """
        with self.lock:
            self.check_cancelled()

    def close(self, number: int) -> RenderError | None:
        """Forget a job; why it failed, if it did."""
        with self.lock:
            self._jobs.pop(number).close()
            for key in [key for key in self._clips if key[0] == number]:
                del self._clips[key]
            return self._failures.get(number)

    def close_all(self) -> None:
        """Let go of what jobs have that are open still; nobody works at them any more."""
        with self.lock:
            for job in self._jobs.values():
                job.close()

    def news(self) -> tuple[int | None, Counts]:
        """A job that has a clip or failed, if there is one that was not told before, and what was done so far.

        Raises:
            RenderCancelled: cancel() was called.
        """
        with self.lock:
            self.check_cancelled()
            return self._news.popleft() if self._news else None, self._counts

    def counts(self) -> Counts:
        """What was done so far."""
        with self.lock:
            return self._counts

    def wait(self) -> None:
        """Wait until news() may say something else; a signal may interrupt."""
        self._wake.get()

    def take(self, number: int, window: int) -> Clip | None:
        """A clip, once.

        Raises:
            RenderCancelled: cancel() was called.
        """
        with self.lock:
            self.check_cancelled()
            return self._clips.pop((number, window), None)

    def check_cancelled(self) -> None:
        """For who holds the lock.

        Raises:
            RenderCancelled: cancel() was called.
        """
        if self._cancelled:
            raise RenderCancelled("expected the render to go on; found it cancelled; render again")

    # For any thread.

    def cancel(self) -> None:
        """Stop the scheduler; what the thread that takes the events asks next raises RenderCancelled."""
        with self.lock:
            self._cancelled = True
            self._notify()
            self._scheduler.stop()

    def fail(self, number: int, error: RenderError) -> None:
        """Give a job up, if it is open and the first failure of it."""
        with self.lock:
            if number not in self._failures and number in self._jobs:
                self._failures[number] = error
                self._news.append(number)
                self._scheduler.fail(number)
            self._notify()

    def failed(self) -> set[int]:
        """The jobs that failed so far."""
        with self.lock:
            return set(self._failures)

    def wanted(self, number: int) -> Job | None:
        """A job that is open and has not failed."""
        with self.lock:
            return None if number in self._failures else self._jobs.get(number)

    # For the workers.

    def blame(self, error: BaseException, where: str, numbers: set[int]) -> RenderError:
        """Fail jobs because of what a worker met; gives the failure that they are told."""
        failure = RenderError(f"the render failed on {where}: {type(error).__name__}: {one_line(error)}")
        failure.__cause__ = error
        # Whoever keeps the failure must not keep the batch, and its memory on a device, that the frames speak of.
        for each in (error, error.__cause__, error.__context__):
            if each is not None:
                traceback.clear_frames(each.__traceback__)
        for number in numbers:
            self.fail(number, failure)
        return failure

    def lose(self, device: int, name: str, error: BaseException) -> None:
        """The other devices take over what this one had under way; without others all jobs fail, later ones too."""
        with self.lock:
            self._scheduler.lost(device)
            if self._scheduler.stopped:
                self._devices_lost = self.blame(error, name, set(self._jobs))

    def decoded(self, item: Item, clip: Clip) -> None:
        """A clip of a job and window is there."""
        with self.lock:
            if item[0] in self._jobs:  # it may have failed meanwhile
                self._clips[item] = clip
                self._news.append(item[0])
                self._notify()

    def count(self, texts: int = 0, steps: int = 0) -> None:
        """So many more were done."""
        with self.lock:
            self._counts = Counts(self._counts.texts + texts, self._counts.steps + steps)
            self._notify()

    def _notify(self) -> None:
        """Wake the thread that takes the events; whoever calls this has made its change before."""
        if self._wake.empty():
            self._wake.put(None)

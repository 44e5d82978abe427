"""One render: workers run batches from the scheduler, the caller's thread takes the clips in order."""

import threading
from collections.abc import Generator, Sequence

import numpy as np

from nuwaxl.engine._core import Scheduler, Work
from nuwaxl.engine.bundle_schema import Network
from nuwaxl.engine.frames import FrameStore
from nuwaxl.engine.request import Request
from nuwaxl.engine.runners.base import Runner
from nuwaxl.engine.stats import BatchRecord, Phase, Progress, ProgressCallback, Recorder, RenderStats
from nuwaxl.engine.story import Story
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.engine.windows import decode_windows
from nuwaxl.engine.work import Clip, Prompts, decode, diffuse
from nuwaxl.errors import RenderError

_TEXT_BATCH = 16


class Render:
    """Runs once: iterate over clips(), then ask for stats().

    Workers share the scheduler, the frame store and a dictionary of finished clips. The scheduler hands out
    work and keeps the number of decoded clips that nobody has taken small, so memory does not grow with the
    number of frames beyond the latents. `progress` is called in the thread that takes the clips.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: PromptTokenizer,
        runners: Sequence[tuple[str, Runner]],
        story: Story,
        request: Request,
        progress: ProgressCallback | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._runners = runners
        self._story = story
        self._request = request
        self._progress = progress
        self._recorder = Recorder()
        self._store = FrameStore(request.plan, network)
        self._windows = decode_windows(request.frames, network.length, network.decode_overlap)
        self._scheduler = Scheduler(
            request.plan,
            policy=request.policy,
            devices=len(runners),
            max_batch=request.max_batch,
            decode_windows=[window.needs for window in self._windows],
            decode_ahead=2 * len(runners),
        )
        # Guards the four below; notified when a step, a clip or a failure is there.
        self._changed = threading.Condition()
        self._clips: dict[int, Clip] = {}
        self._steps_done = 0
        self._failure: BaseException | None = None
        self._failed_at = ""

    def clips(self) -> Generator[Clip, None, None]:
        """The video's clips in order. Leaving the iteration early, however, stops and joins the workers.

        Raises:
            RenderError: a worker failed; its exception is the cause.
        """
        prompts = self._encode_text()
        threads = [
            # Daemons: an iteration that is abandoned but never closed must not keep the interpreter from
            # exiting.
            threading.Thread(target=self._work, args=(number, prompts), name=f"nuwaxl {name}", daemon=True)
            for number, (name, _) in enumerate(self._runners)
        ]
        try:
            for thread in threads:
                thread.start()
            for number, window in enumerate(self._windows):
                clip = self._wait_for(number)
                self._report("decode", window.first + window.count, self._request.frames)
                self._scheduler.consumed(number)
                yield clip
        finally:
            self._scheduler.stop()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def stats(self) -> RenderStats:
        """Measurements, once the last clip has been taken."""
        request, names = self._request, [name for name, _ in self._runners]
        return RenderStats(
            frames=request.frames,
            depths=list(request.plan.counts),
            steps=request.steps,
            guidance=request.guidance,
            seed=request.seed,
            policy=request.policy,
            max_batch=request.max_batch,
            sampler=request.sampler,
            devices=names,
            wall_s=self._recorder.now(),
            phases_s=self._recorder.phases_s(encode_s=0.0),
            device_busy_s=self._recorder.device_busy_s(names),
            batches=list(self._recorder.batches),
            steps_ms=list(self._recorder.steps_ms),
        )

    def _encode_text(self) -> Prompts:
        """Encode every different prompt once, and the negative prompt, on the first runner.

        The upper depths of the tree reach past the frames asked for, into what the story tells next.
        """
        prompts = self._story.prompts(self._store.last_frame)
        texts = [*prompts, self._request.negative_prompt]
        tokens = self._tokenizer(texts)
        runner = self._runners[0][1]
        parts = []
        for first in range(0, len(texts), _TEXT_BATCH):
            parts.append(runner.encode_text(tokens[first : first + _TEXT_BATCH]))
            self._report("text", min(first + _TEXT_BATCH, len(texts)), len(texts))
        embeddings = np.concatenate(parts)
        self._recorder.text_s = self._recorder.now()
        return Prompts(self._story, dict(zip(prompts, embeddings[:-1], strict=True)), embeddings[-1])

    def _work(self, number: int, prompts: Prompts) -> None:
        """A worker's thread: run what the scheduler hands out until there is no more, or somebody stops
        it."""
        name, runner = self._runners[number]
        work: Work | None = None
        try:
            while (work := self._scheduler.next(number)) is not None:
                started = self._recorder.now()
                if not self._run(work, runner, prompts):
                    return
                self._recorder.batch(
                    BatchRecord(work.kind, work.depth, list(work.items), name, started, self._recorder.now())
                )
                self._scheduler.done(work)
        except BaseException as error:
            with self._changed:
                if self._failure is None:
                    self._failure = error
                    self._failed_at = f"{name}, {work.kind} {list(work.items)}" if work else name
                self._changed.notify_all()
            self._scheduler.stop()

    def _run(self, work: Work, runner: Runner, prompts: Prompts) -> bool:
        """Run one piece of work; False if it was abandoned because the render was stopped."""
        items = list(work.items)
        if work.kind == "diffuse":
            return diffuse(runner, items, self._request, prompts, self._store, self._after_step)
        clip = decode(runner, self._windows[items[0]], self._store)
        with self._changed:
            self._clips[items[0]] = clip
            self._changed.notify_all()
        return True

    def _after_step(self, segments: int, seconds: float) -> bool:
        self._recorder.step(segments, seconds)
        with self._changed:
            self._steps_done += segments
            self._changed.notify_all()
        return not self._scheduler.stopped

    def _wait_for(self, window: int) -> Clip:
        """Wait for a window's clip, reporting steps meanwhile."""
        reported = 0
        total = len(self._request.plan) * self._request.steps
        while True:
            with self._changed:
                while window not in self._clips and self._failure is None and self._steps_done == reported:
                    self._changed.wait()
                reported = self._steps_done
                failure, clip = self._failure, self._clips.pop(window, None)
            if failure is not None:
                detail = " ".join(str(failure).split())
                raise RenderError(
                    f"the render failed on {self._failed_at}: {type(failure).__name__}: {detail}"
                ) from failure
            self._report("diffuse", reported, total)
            if clip is not None:
                return clip

    def _report(self, phase: Phase, done: int, total: int) -> None:
        if self._progress is not None:
            self._progress(Progress(phase, done, total))

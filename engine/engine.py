"""The engine: a bundle opened on a list of devices."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from nuwaxl.engine._core import CostModel
from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.engine.bundle_schema import SamplerName
from nuwaxl.engine.cancellation import Attempt
from nuwaxl.engine.costs import device_costs, kept_costs, largest_batch
from nuwaxl.engine.device_worker import Device
from nuwaxl.engine.devices import Worker, check_tf32, parse_devices, parse_ray
from nuwaxl.engine.process import HomeProcess
from nuwaxl.engine.render import Render
from nuwaxl.engine.request import Method, Policy, Request, Schedule, Task, resolve, resolve_schedule
from nuwaxl.engine.resumption import check_resumable, made_of
from nuwaxl.engine.runners.base import Runner
from nuwaxl.engine.runners.opening import open_local
from nuwaxl.engine.stats import ProgressCallback
from nuwaxl.engine.story import Story
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.engine.video import Video
from nuwaxl.engine.videos import Videos
from nuwaxl.errors import InputError, RenderCancelled, RenderError


class Engine:
    """Renders stories, one render at a time. Use Engine.open; a `with` block closes it.

    Every method may be called from any thread of the process that opened it. Several engines may live in one process.

    Attributes:
        bundle: the model.
        workers: one for each worker thread of a render.
    """

    def __init__(self, bundle: Bundle, workers: tuple[Worker, ...], runners: tuple[Runner, ...]) -> None:
        """An engine over runners that are open already, one a worker."""
        network = bundle.manifest.network
        self.bundle = bundle
        self.workers = workers
        self._runners = runners
        self._tokenizer = PromptTokenizer(bundle.tokenizer, network.prompt_tokens)
        self._process = HomeProcess()
        self._closed = False
        # Held while the runners change hands, and while costs are measured.
        self._runners_lock = threading.Lock()
        self._costs: tuple[int, list[CostModel]] = (0, [])  # and the largest batch of interest when they were measured
        self._render: Render | None = None

    @classmethod
    def open(
        cls, bundle: str | os.PathLike[str] | Bundle | None = None, devices: str = "cpu", *, tf32: bool = False
    ) -> "Engine":
        """Verify a bundle and load it on devices.

        Args:
            bundle: a bundle's directory, a Bundle, or None for the demo bundle that ships in the package.
            devices: "cpu" is one worker with all cores, "cpu:2" two that share them; "cuda:0,cuda:1" two GPUs
                (docs/cuda.md); "tensorrt:0" and "tensorrt-rtx:0" a GPU with the bundle's plans (docs/tensorrt.md);
                "torch:cuda:0" and "torch:cpu" one through PyTorch, "torch:cuda:0/float16" in that type (docs/gpu.md);
                "ray" is every device of a running Ray cluster, "ray:2" two of them (docs/ray.md).
            tf32: let cuda:I round the factors of float32 products to 10 bits of mantissa, which is faster; refused with
                other devices than those and cpu.

        Raises:
            InputError: a bundle that is damaged or too new, an unknown device, one that this machine does not have,
                no inference runtime installed, or no Ray cluster with enough free CPUs.
        """
        actors = parse_ray(devices)
        workers = () if actors else parse_devices(devices)
        if tf32:
            check_tf32(devices, workers)
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(demo_bundle() if bundle is None else bundle)
        if actors is None:
            return cls(bundle, *open_local(bundle, workers, tf32=tf32))
        # Ray is an extra, and few need it.
        from nuwaxl.engine.runners.ray_cluster import open_runners

        return cls(bundle, *open_runners(bundle, actors))

    def render(
        self,
        story: Story,
        *,
        frames: int | None = None,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: SamplerName | None = None,
        policy: Policy = "eager",
        max_batch: int | None = None,
        negative_prompt: str = "",
        depth: int | None = None,
        method: Method = "tree",
        journal: str | os.PathLike[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> Video:
        """A video of the story. Arguments are checked now; the work is done when it is iterated or saved.

        The same story, bundle, frames, seed, steps, guidance, sampler, negative prompt and depth give the
        same video whatever the devices, the policy and max_batch are, to 1 of 255 in a pixel, as long as devices
        compute in the same precision.

        Args:
            frames: how many; None takes the story's.
            seed: of all the noise, 0 to 2^64 - 1; None takes the story's, else 0.
            steps: denoising steps a segment; None takes the bundle's.
            guidance: classifier-free guidance scale, 0 to 1000; 1 is none, 0 ignores the prompt; None takes the
                bundle's.
            sampler: "dpmpp_2m", "ddim" or "ddpm"; None takes the bundle's.
            policy: "eager" starts a segment when its parent is done, "level" when the whole depth above is
                (the paper); "latency" is eager with the first frames first.
            max_batch: most segments that one device denoises at once; the measured costs choose among those. None
                means 16.
            negative_prompt: prompt that guidance leads away from.
            depth: depth of the tree (the paper's m); None takes the bundle's, for which its model was trained, or the
                smallest that spans the frames where that is deeper.
            method: "tree" is Diffusion over Diffusion; "autoregressive" the baseline it is compared with, a window
                after another, each given the last frame of the one before.
            journal: a file that keeps what is finished until the video is complete. A render that ended early, for
                whatever reason, continues from it when the same is asked for again, on any devices.
            progress: called with Progress in the thread that iterates; what it raises ends the render, and is raised
                by the iteration.

        Raises:
            InputError: an argument of the wrong kind or out of its range, more frames than the tree spans, or a
                journal of another render.
        """
        task = Task(story, frames, seed, steps, guidance, sampler, negative_prompt, depth, method, journal)
        request, schedule = self.resolve(task), resolve_schedule(policy, max_batch)
        check_resumable(self.bundle.manifest, story, request)
        return Video(
            lambda attempt: self._begin(attempt, [(task, request)], schedule, progress),
            request=request,
            schedule=schedule,
            devices=[worker.name for worker in self.workers],
            height=self.bundle.manifest.network.height,
            width=self.bundle.manifest.network.width,
            fps=story.fps,
            content=made_of(self.bundle.manifest, story, request),
        )

    def render_many(
        self,
        stories: Sequence[Story | Task],
        *,
        policy: Policy = "eager",
        max_batch: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Videos:
        """Videos of several stories, rendered together: batches are filled across them.

        Args:
            stories: what to render; a Task says more than the story does.
            policy, max_batch, progress: as for render; progress counts over all videos.

        Raises:
            InputError: nothing to render, or an argument of the wrong kind or out of its range, with the number of
                its task.
        """
        tasks = [story if isinstance(story, Task) else Task(story) for story in stories]
        if not tasks:
            raise InputError(expected="at least one story", found="none", fix="give a story")
        resolved = []
        for number, task in enumerate(tasks):
            try:
                request = self.resolve(task)
                check_resumable(self.bundle.manifest, task.story, request)
                resolved.append((task, request))
            except InputError as error:
                raise InputError(
                    expected=f"in task {number}, {error.expected}", found=error.found, fix=error.fix
                ) from error
        schedule = resolve_schedule(policy, max_batch)
        return Videos(
            lambda attempt: self._begin(attempt, resolved, schedule, progress, keep_records=False),
            resolved,
            height=self.bundle.manifest.network.height,
            width=self.bundle.manifest.network.width,
            contents=[made_of(self.bundle.manifest, task.story, request) for task, request in resolved],
        )

    def resolve(self, task: Task) -> Request:
        """The task with every default filled in, checked; nothing is rendered.

        Raises:
            InputError: a value of the wrong kind or out of its range, or a closed engine.
        """
        self._check_open()
        own = self.bundle.manifest.precision
        precision = " and ".join(sorted({worker.precision or own for worker in self.workers}))
        return resolve(self.bundle.manifest, task, precision)

    def costs(self, max_batch: int | None = None) -> list[CostModel]:
        """Seconds of a denoising step by batch size, one model a worker: kept from before, or measured now, up to
        max_batch at least.

        Raises:
            InputError: max_batch is not a number of at least 1, or a closed engine.
            RenderError: they must be measured, and that failed or the engine is rendering.
        """
        self._check_open()
        largest = resolve_schedule(max_batch=max_batch).max_batch
        with self._runners_lock:
            if largest > self._costs[0]:
                self._check_idle()
            return list(self._known_costs(largest, self._check_open))

    def knows_costs(self, segments: int, max_batch: int | None = None) -> bool:
        """Whether a render of so many segments begins at once: else costs are measured, which may take a minute."""
        largest = largest_batch(resolve_schedule(max_batch=max_batch).max_batch, segments)
        descriptions = [worker.description for worker in self.workers]
        return largest <= self._costs[0] or kept_costs(self.bundle, descriptions, largest) is not None

    def _known_costs(self, largest: int, check: Callable[[], None]) -> list[CostModel]:
        if largest > self._costs[0]:
            descriptions = [worker.description for worker in self.workers]
            self._costs = (largest, device_costs(self.bundle, self._runners, descriptions, largest, check))
        return self._costs[1]

    @contextmanager
    def _begin(
        self,
        attempt: Attempt,
        tasks: Sequence[tuple[Task, Request]],
        schedule: Schedule,
        progress: ProgressCallback | None,
        keep_records: bool = True,
    ) -> Iterator[Render]:
        """One render, which has the engine until it is over."""

        def check() -> None:
            attempt.check()
            if self._closed:
                raise RenderCancelled("expected an open engine; found it closed; open it again and render again")

        largest = largest_batch(schedule.max_batch, sum(len(request.plan) for _, request in tasks))
        self._check_open()
        with self._runners_lock:
            self._check_open()
            self._check_idle()
            costs = self._known_costs(largest, check)
            devices = [
                Device(worker.name, runner, cost)
                for worker, runner, cost in zip(self.workers, self._runners, costs, strict=True)
            ]
            render = Render(self.bundle.manifest, self._tokenizer, devices, tasks, schedule, progress, keep_records)
            self._render = render
        try:
            yield render
        finally:
            self._render = None

    def _check_idle(self) -> None:
        if self._render is not None:
            raise RenderError(
                "expected an idle engine; found one that is rendering; finish or close the other one first"
            )

    def _check_open(self) -> None:
        self._process.check()
        if self._closed:
            raise InputError(expected="an open engine", found="a closed one", fix="open it again with Engine.open")

    def close(self) -> None:
        """Free the runners, from any thread. A render under way is cancelled, within one denoising step; its iteration
        raises RenderCancelled. Does nothing a second time, nor in a forked process."""
        if not self._process.here:
            return
        self._closed = True
        with self._runners_lock:
            if (render := self._render) is not None:
                render.cancel()
                render.join()
            for runner in self._runners:
                runner.close()

    def __reduce__(self) -> NoReturn:
        raise InputError(
            expected="an engine to stay in the process that opened it",
            found="one that is pickled, or sent to another process",
            fix="send the bundle's path and the devices, and call Engine.open there",
        )

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

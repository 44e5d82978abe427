"""The engine: a bundle opened on a list of devices."""

import os
import threading
from types import TracebackType
from typing import Literal

from nuwaxl.engine.bundle import Bundle, demo_bundle
from nuwaxl.engine.bundle_schema import SamplerName
from nuwaxl.engine.devices import Worker, parse_devices
from nuwaxl.engine.render import Render
from nuwaxl.engine.request import resolve
from nuwaxl.engine.runners.base import Runner
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner
from nuwaxl.engine.stats import ProgressCallback
from nuwaxl.engine.story import Story
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.engine.video import Video
from nuwaxl.errors import InputError


class Engine:
    """Renders stories. Use Engine.open; a `with` block closes it.

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
        self._rendering = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, bundle: str | os.PathLike[str] | Bundle | None = None, devices: str = "cpu") -> "Engine":
        """Verify a bundle and load it on devices.

        Args:
            bundle: a bundle's directory, a Bundle, or None for the demo bundle that ships in the package.
            devices: "cpu" is one worker with all cores, "cpu:2" two that share them.

        Raises:
            InputError: a bundle that is damaged or too new, an unknown device, or no inference runtime
                installed.
        """
        workers = parse_devices(devices)
        if not isinstance(bundle, Bundle):
            bundle = Bundle.open(demo_bundle() if bundle is None else bundle)
        runners = tuple(OnnxRuntimeRunner(bundle, worker) for worker in workers)
        return cls(bundle, workers, runners)

    def render(
        self,
        story: Story,
        *,
        frames: int | None = None,
        seed: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        sampler: SamplerName | None = None,
        policy: Literal["level", "eager"] = "eager",
        max_batch: int | None = None,
        negative_prompt: str = "",
        depth: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Video:
        """A video of the story. Arguments are checked now; the work is done when it is iterated or saved.

        The same story, bundle, frames, seed, steps, guidance, sampler, negative prompt and depth give the
        same video whatever the devices, the policy and max_batch are, to 1 of 255 in a pixel.

        Args:
            frames: how many; None takes the story's.
            seed: of all the noise, 0 to 2^64 - 1; None takes the story's, else 0.
            steps: denoising steps a segment; None takes the bundle's.
            guidance: classifier-free guidance scale; 1 is none, 0 ignores the prompt; None takes the
                bundle's.
            sampler: "dpmpp_2m" or "ddim"; None takes the bundle's.
            policy: "eager" starts a segment when its parent is done, "level" when the whole depth above is
                (the paper).
            max_batch: most segments that one device denoises at once; None means 2.
            negative_prompt: what to be guided away from.
            depth: depth of the tree (the paper's m); None takes the smallest that spans the frames.
            progress: called with Progress in the thread that iterates.

        Raises:
            InputError: an argument of the wrong kind or out of its range, or more frames than the tree spans.
        """
        if self._closed:
            raise InputError(expected="an open engine", found="a closed one", fix="open it again with Engine.open")
        if not isinstance(story, Story):
            raise InputError(
                expected="a Story", found=type(story).__name__, fix="use Story.load(path) or Story(scenes)"
            )
        manifest = self.bundle.manifest
        request = resolve(
            manifest,
            story,
            frames=frames,
            seed=seed,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            policy=policy,
            max_batch=max_batch,
            negative_prompt=negative_prompt,
            depth=depth,
        )
        names = [worker.name for worker in self.workers]
        runners = list(zip(names, self._runners, strict=True))

        def begin() -> Render:
            return Render(manifest.network, self._tokenizer, runners, story, request, progress)

        return Video(
            begin,
            self._rendering,
            frames=request.frames,
            height=manifest.network.height,
            width=manifest.network.width,
            fps=story.fps,
        )

    def close(self) -> None:
        """Free the runners. A render that has begun must be finished or closed before."""
        self._closed = True
        for runner in self._runners:
            runner.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

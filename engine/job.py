"""One story on its way to a video: its latents, its prompts, its decode windows."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine._core import normal_noise
from nuwaxl.engine.bundle_schema import Network
from nuwaxl.engine.frames import FrameStore, Latents
from nuwaxl.engine.journal import Journal
from nuwaxl.engine.request import Request
from nuwaxl.engine.runners.base import Float32, Runner, Segments, UInt8, goes_on
from nuwaxl.engine.story import Story
from nuwaxl.engine.text import PromptTokenizer
from nuwaxl.engine.windows import decode_windows
from nuwaxl.errors import RenderError

_TEXT_BATCH = 16


@dataclass(frozen=True)
class Clip:
    """Decoded frames of the video: `frames` is uint8 (n, H, W, 3), RGB, and starts at frame `first_frame`."""

    first_frame: int
    frames: NDArray[np.uint8]


class Job:
    """A story and its request, while workers render it.

    Segments write to different frames, and are read only after the scheduler has published them; the prompts are
    encoded by the worker that takes the first segment, before anybody else needs them.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: PromptTokenizer,
        story: Story,
        request: Request,
        journal: Journal | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """What is in `journal` is taken from there, and every segment that is finished is added. `check` is called
        before each that is taken, which may be gigabytes; what it raises ends that.

        Attributes:
            finished: segments that were in the journal, in rising order.
        """
        self.request = request
        self.windows = decode_windows(request.frames, network.length, network.decode_overlap)
        self._tokenizer = tokenizer
        self._story = story
        self._store = FrameStore(request.plan, network)
        self._embeddings: dict[str, Float32] = {}
        self._negative: Float32 | None = None
        self._encoding = threading.Lock()
        self._journal = journal
        self.finished: list[int] = []
        if journal is not None:
            for segment, latents in journal.read(request.plan):
                check()
                self._store.put(segment, latents)
                self.finished.append(segment)
            self.finished.sort()

    def close(self) -> None:
        """Let others have the journal."""
        if self._journal is not None:
            self._journal.close()

    def encode_text(self, runner: Runner, check: Callable[[], None]) -> bool:
        """Encode every different prompt once, and the negative prompt; False if that was done before.

        The upper depths of the tree reach past the frames asked for, into what the story tells next. `check` is called
        before every batch of prompts; what it raises ends the encoding.
        """
        with self._encoding:
            if self._negative is not None:
                return False
            prompts = self._story.prompts(self._store.last_frame)
            tokens = self._tokenizer([*prompts, self.request.negative_prompt])
            parts = []
            for first in range(0, len(tokens), _TEXT_BATCH):
                check()
                parts.append(runner.encode_text(tokens[first : first + _TEXT_BATCH]))
            embeddings = np.concatenate(parts)
            self._embeddings = dict(zip(prompts, embeddings[:-1], strict=True))
            self._negative = embeddings[-1]
            return True

    @property
    def texts(self) -> int:
        """Number of prompts that were encoded, the negative one among them."""
        return len(self._embeddings) + 1

    def begin(self, segment: int) -> Segments:
        """What the denoising of a segment starts from, as a batch of one."""
        condition, mask = self._store.condition(segment)
        x = self.noise(segment, 0)
        frames = self.request.plan.frames_of(segment)
        prompts = [self._embeddings[self._story.prompt_at(int(frame))] for frame in frames]
        assert self._negative is not None
        return Segments(x[None], np.stack(prompts)[None], self._negative[None], condition[None], mask[None])

    def noise(self, segment: int, step: int) -> Latents:
        """The noise of a segment, (L, c, h, w): what it starts from at step 0, what its n-th step adds at step n."""
        place = self.request.plan.segment(segment)
        noise = np.empty(self._store.shape_of(self.request.plan.length), dtype=np.float32)
        normal_noise(self.request.seed, place.depth, place.index, step, noise)
        return noise

    def finish(self, segment: int, latents: Latents) -> None:
        """Keep the latents (L, c, h, w) of a segment.

        Raises:
            RenderError: they are not finite.
        """
        if not np.isfinite(latents).all():
            raise RenderError(
                f"expected finite latents; found NaN or infinity in segment {segment}; "
                f"lower the guidance ({self.request.guidance:g}) or take more steps ({self.request.steps})"
            )
        self._store.put(segment, latents)
        if self._journal is not None:
            self._journal.add(segment, latents)

    def decode(self, number: int, runner: Runner) -> Callable[[], Clip]:
        """Decode a window, or begin to where the runner can go on meanwhile: a call waits for the clip.

        What the window has in context is dropped.
        """
        window = self.windows[number]
        latents = self._store.gather(window.frames)[None]
        if goes_on(runner):
            video = runner.begin_decode(latents)
        else:
            decoded = runner.decode(latents)

            def video() -> UInt8:
                return decoded

        def clip() -> Clip:
            # A copy, so that a clip does not keep the dropped context in memory.
            return Clip(window.first, video()[0, window.offset : window.offset + window.count].copy())

        return clip

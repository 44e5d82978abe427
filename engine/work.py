"""What a worker does with a batch: denoise segments, decode a window."""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine._core import normal_noise
from nuwaxl.engine.frames import FrameStore
from nuwaxl.engine.request import Request
from nuwaxl.engine.runners.base import Float32, Runner
from nuwaxl.engine.story import Story
from nuwaxl.engine.windows import Window
from nuwaxl.errors import RenderError


@dataclass(frozen=True)
class Clip:
    """Decoded frames of the video: `frames` is uint8 (n, H, W, 3), RGB, and starts at frame `first_frame`."""

    first_frame: int
    frames: NDArray[np.uint8]


class Prompts:
    """Prompt embeddings, one for each different prompt, found by frame."""

    def __init__(self, story: Story, embeddings: dict[str, Float32], negative: Float32) -> None:
        """The embeddings (l_p, d_p) of the story's prompts, and of the negative prompt."""
        self._story = story
        self._embeddings = embeddings
        self._negative = negative

    def of_frames(self, frames: NDArray[np.int64]) -> Float32:
        """The prompt of every frame, (n, l_p, d_p)."""
        return np.stack([self._embeddings[self._story.prompt_at(int(frame))] for frame in frames])

    def negative(self, count: int) -> Float32:
        """The negative prompt for `count` segments, (count, l_p, d_p)."""
        return np.repeat(self._negative[None], count, axis=0)


def diffuse(
    runner: Runner,
    segments: list[int],
    request: Request,
    prompts: Prompts,
    store: FrameStore,
    after_step: Callable[[int, float], bool],
) -> bool:
    """Denoise a batch of segments and put them into the store.

    Args:
        after_step: called after every step with the number of segments and the seconds it took; False
            abandons the batch.

    Returns:
        Whether the batch was finished.

    Raises:
        RenderError: the latents are not finite.
    """
    plan, table, count = request.plan, request.table, len(segments)
    condition, mask = store.condition(segments)
    x = np.empty_like(condition)
    for slot, segment in enumerate(segments):
        place = plan.segment(segment)
        normal_noise(request.seed, place.depth, place.index, 0, x[slot])
    prompt = np.stack([prompts.of_frames(plan.frames_of(segment)) for segment in segments])
    denoising = runner.start(x, prompt, prompts.negative(count), condition, mask)
    guidance = np.full(count, request.guidance, dtype=np.float32)
    for timestep, row in zip(table.timesteps, table.coefficients.astype(np.float32), strict=True):
        started = perf_counter()
        denoising.step(np.repeat(timestep, count), np.tile(row, (count, 1)), guidance, None)
        if not after_step(count, perf_counter() - started):
            return False
    latents = denoising.latents()
    if not np.isfinite(latents).all():
        raise RenderError(
            f"expected finite latents; found NaN or infinity in segments {segments}; "
            f"lower the guidance ({request.guidance:g}) or take more steps ({request.steps})"
        )
    store.put(segments, latents)
    return True


def decode(runner: Runner, window: Window, store: FrameStore) -> Clip:
    """Decode one window and drop its context."""
    video = runner.decode(store.gather(window.frames)[None])[0]
    # A copy, so that a clip does not keep the dropped context in memory.
    return Clip(window.first, video[window.offset : window.offset + window.count].copy())

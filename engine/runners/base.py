"""The shape of a runner: what the render loop asks of an inference runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
UInt8 = NDArray[np.uint8]

FEEDBACK = {"x_next": "x", "x0": "history"}  # outputs of one call of the step graph that are inputs of the next


@dataclass(frozen=True)
class Segments:
    """What the denoising of b segments starts from.

    Attributes:
        x: (b, L, c, h, w) the noise.
        prompt: (b, L, l_p, d_p) the prompt of every frame.
        negative: (b, l_p, d_p) the prompt to be guided away from.
        condition: (b, L, c, h, w) x_0^c, the known frames' latents.
        mask: (b, L, 1, h, w) x_0^m, 1 on the known frames.
    """

    x: Float32
    prompt: Float32
    negative: Float32
    condition: Float32
    mask: Float32

    @property
    def given(self) -> dict[str, Float32]:
        """All but the noise: the inputs of the prepare graph, by name and in its order."""
        return {"prompt": self.prompt, "negative": self.negative, "condition": self.condition, "mask": self.mask}

    def part(self, rows: slice | list[int]) -> "Segments":
        """Some of the segments."""
        return Segments(self.x[rows], **{name: array[rows] for name, array in self.given.items()})

    @staticmethod
    def joined(parts: "Sequence[Segments]") -> "Segments":
        """The segments of all parts, in order."""
        given = {name: np.concatenate([part.given[name] for part in parts]) for name in parts[0].given}
        return Segments(np.concatenate([part.x for part in parts]), **given)


class Denoising(Protocol):
    """A batch of segments under way, one a slot, each at a step of its own. Its latents and its state tensors
    stay with the runner, on the device."""

    def step(
        self, timestep: NDArray[np.int64], coefficients: Float32, guidance: Float32, noise: Float32 | None
    ) -> None:
        """Move every segment by one denoising step.

        Args:
            timestep: (b,) index into the training schedule.
            coefficients: (b, 6) rows of a sampler's table.
            guidance: (b,) classifier-free guidance scales.
            noise: (b, L, c, h, w), or None where the sampler adds none.
        """

    def latents(self, slots: Sequence[int]) -> Float32:
        """The latents of some slots as they are now, (len(slots), L, c, h, w)."""

    def join(self, segments: Segments) -> None:
        """Take more segments, into new slots after the present ones."""

    def keep(self, slots: Sequence[int]) -> None:
        """Drop all slots but these, which become slots 0, 1, ... in this order; at least one stays."""


class Runner(Protocol):
    """One inference runtime on one device. A runner is used by one worker thread at a time."""

    def encode_text(self, tokens: NDArray[np.int64]) -> Float32:
        """Tokens (n, l_p) to prompt embeddings (n, l_p, d_p)."""

    def start(self, segments: Segments) -> Denoising:
        """Begin a batch: run what does not depend on the timestep, once."""

    def decode(self, latents: Float32) -> UInt8:
        """Latents (b, L, c, h, w) to video (b, L, H, W, 3)."""

    def encode(self, video: UInt8) -> Float32:
        """Video (b, L, H, W, 3) to latents (b, L, c, h, w)."""

    def close(self) -> None:
        """Free what the runner holds. It cannot be used afterwards."""


@runtime_checkable
class Padded(Protocol):
    """A runner with programs for some batch sizes only, which fills a smaller batch up to the next of them."""

    def rows(self, count: int) -> int:
        """Segments whose time a step of a batch of `count` takes."""


@runtime_checkable
class DecodesLater(Protocol):
    """A runner whose device goes on while the host does something else: frames come to the host by themselves.

    Attributes:
        later: whether the device does. Its steps are queued then, too, and return before they have ended; else what
            `begin_decode` returns has the video already.
    """

    later: bool

    def begin_decode(self, latents: Float32) -> Callable[[], UInt8]:
        """Queue the decoding of latents, as Runner.decode; a call of what it returns waits for the video.

        It may be called once, by any thread, after other work of the runner was queued; or be dropped.
        """


def goes_on(runner: Runner) -> TypeGuard[DecodesLater]:
    """Whether the runner's device is at it while the host goes on."""
    return isinstance(runner, DecodesLater) and runner.later

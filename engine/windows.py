"""Decode windows: how a long video of latents is cut into pieces of L frames for the decoder."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Window:
    """One call of the decoder.

    Attributes:
        frames: (L,) frame numbers that go in; a video shorter than L repeats its last frame.
        first: first frame of the video that this window gives.
        count: how many it gives, from `first` on; the rest of the L frames are context and are dropped.
    """

    frames: NDArray[np.int64]
    first: int
    count: int

    @property
    def needs(self) -> tuple[int, int]:
        """First and last frame that must be final before this window can be decoded."""
        return int(self.frames[0]), int(self.frames[-1])

    @property
    def offset(self) -> int:
        """Position of `first` among the L frames."""
        return self.first - int(self.frames[0])


def decode_windows(frames: int, length: int, overlap: int) -> list[Window]:
    """Windows of `length` consecutive frames whose kept parts tile the video's `frames`, in order.

    The temporal layers of the decoder see their neighbours, so `overlap` frames of context are decoded on
    each side and dropped; at the two ends of the video there is no context, and the frames are kept. The last
    window is moved back so that it ends with the video.
    """
    windows: list[Window] = []
    done = 0
    while done < frames:
        start = max(0, min(done - overlap, frames - length))
        numbers = np.minimum(np.arange(start, start + length, dtype=np.int64), frames - 1)
        end = frames if start + length >= frames else start + length - overlap
        windows.append(Window(frames=numbers, first=done, count=end - done))
        done = end
    return windows

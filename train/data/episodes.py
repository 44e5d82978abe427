"""A folder of long captioned videos, and the sampling of training segments from it (paper section 3.3)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nuwaxl.errors import InputError
from nuwaxl.train.data.captions import Captions
from nuwaxl.train.data.index import video_index
from nuwaxl.train.data.videos import VideoFile, list_videos
from nuwaxl.train.progress import Progress

OPEN_FILES = 128  # opening a long video costs more than reading a few frames of it, so readers are kept


@dataclass(frozen=True)
class Episode:
    """One long video; its captions are in the file of the same name with suffix .jsonl."""

    video: Path
    frames: int
    height: int
    width: int
    fps: float
    captions: Captions


@dataclass(frozen=True)
class TrainingSegment:
    """L frames of one episode as the diffusion of depth `depth` sees them.

    `frames` int64 (L,) are frame numbers at `stride` s_d; `mask` float32 (L,) is x_0^m by frame: 1 where the
    frame is given (first and last for depth > 0), 0 where it is to be generated.
    """

    episode: int
    depth: int
    stride: int
    frames: np.ndarray
    mask: np.ndarray


class EpisodeFolder:
    """All videos of a folder, in order of name. Raises InputError, naming the file, if one cannot be used."""

    def __init__(self, folder: str | Path, limit: int = 0, show_progress: bool = False) -> None:
        """Open the folder's videos, or the first `limit` of them if that is not 0."""
        self.folder = Path(folder)
        videos = list_videos(self.folder)
        videos = videos[:limit] if limit else videos
        self.episodes: list[Episode] = []
        with Progress("opening video", len(videos), show_progress) as progress:
            for video in videos:
                self.episodes.append(_open_episode(video))
                progress.advance()
        self._open: OrderedDict[int, VideoFile] = OrderedDict()

    def size(self) -> tuple[int, int]:
        """Height and width of the videos, in pixels. Raises InputError if they are not all of one size."""
        first = self.episodes[0]
        for other in self.episodes:
            if (other.height, other.width) != (first.height, first.width):
                raise InputError(
                    expected=f"videos of one size in {self.folder}",
                    found=f"{first.width} x {first.height} in {first.video.name}, "
                    f"{other.width} x {other.height} in {other.video.name}",
                    fix="scale them to one size",
                )
        return first.height, first.width

    def read(self, episode: int, frames: Sequence[int] | np.ndarray) -> np.ndarray:
        """Frames of one episode by number, uint8 (n, H, W, 3)."""
        if episode not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            video = self.episodes[episode].video
            self._open[episode] = VideoFile(video, video_index(video))
        self._open.move_to_end(episode)
        return self._open[episode].read(frames)

    def __len__(self) -> int:
        return len(self.episodes)

    def texts(self, segment: TrainingSegment) -> list[str]:
        """The L captions of a segment's frames."""
        captions = self.episodes[segment.episode].captions
        return [captions.text_at(int(frame)) for frame in segment.frames]

    def sample_segment(
        self,
        rng: np.random.Generator,
        length: int,
        depth: int,
        depth_probabilities: Sequence[float] | None = None,
    ) -> TrainingSegment:
        """A segment of `length` = L frames for a tree of `depth` = m levels, anywhere in any episode.

        The level d is drawn from `depth_probabilities` (m numbers, uniform if not given), the stride is
        s_d = (L-1)^(m-1-d). Raises InputError if no episode is long enough for the level drawn.
        """
        d = int(rng.choice(depth, p=depth_probabilities))
        stride = (length - 1) ** (depth - 1 - d)
        usable, span = self._usable(length, depth, d)
        episode = int(rng.choice(usable))
        start = int(rng.integers(self.episodes[episode].frames - span + 1))
        mask = np.zeros(length, np.float32)
        if d > 0:
            mask[[0, -1]] = 1.0
        return TrainingSegment(episode, d, stride, start + stride * np.arange(length, dtype=np.int64), mask)

    def check_lengths(self, length: int, depth: int, depth_probabilities: Sequence[float] | None = None) -> None:
        """Raise InputError if no episode is long enough for a level that `sample_segment` may draw."""
        for d in range(depth):
            if depth_probabilities is None or depth_probabilities[d] > 0:
                self._usable(length, depth, d)

    def _usable(self, length: int, depth: int, d: int) -> tuple[list[int], int]:
        """The episodes that hold a segment of level d, and the frames from its first to its last."""
        span = (length - 1) ** (depth - d) + 1
        usable = [number for number, episode in enumerate(self.episodes) if episode.frames >= span]
        if not usable:
            raise InputError(
                expected=f"a video of at least {span} frames in {self.folder} (L = {length}, m = {depth}, d = {d})",
                found=f"{max(episode.frames for episode in self.episodes)} frames at most",
                fix="add longer videos, or train a smaller depth",
            )
        return usable, span


def _open_episode(video: Path) -> Episode:
    index = video_index(video)
    frames = len(index.times)
    captions = Captions.load(video.with_suffix(".jsonl"))
    if captions.frames[-1] >= frames:
        raise InputError(
            expected=f"captions of frames 0 to {frames - 1} in {video.with_suffix('.jsonl')}",
            found=f"frame {captions.frames[-1]}",
            fix="pair the captions with their own video",
        )
    return Episode(video, frames, index.height, index.width, index.fps, captions)

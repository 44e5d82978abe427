"""Reading any video file by frame number."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from nuwaxl.errors import InputError
from nuwaxl.train.data.index import VideoIndex, open_container, unusable

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm")


def list_videos(folder: Path) -> list[Path]:
    """The videos of a folder in order of name. Raises InputError if it has none, or two that share a caption file."""
    if not folder.is_dir():
        raise InputError(expected=f"a folder at {folder}", found="none", fix="name the folder that holds the videos")
    videos = sorted(path for path in folder.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise InputError(
            expected=f"videos ({', '.join(VIDEO_SUFFIXES)}) in {folder}",
            found="none",
            fix="name the folder that holds the videos",
        )
    by_stem = {video.stem: video for video in videos}
    for video in videos:
        if by_stem[video.stem] != video:
            raise InputError(
                expected=f"videos of different names in {folder}, each with its own .jsonl",
                found=f"{video.name} and {by_stem[video.stem].name}",
                fix="rename or remove one",
            )
    return videos


class VideoFile:
    """A video opened for frame-accurate reading at random.

    Without an `index`, opening walks over the packets once, and decodes one, to learn every frame's time stamp and
    which of them are keyframes; a frame is then reached by decoding from the keyframe before it. `decoded_frames`
    counts the frames decoded so far. Raises InputError, naming the file, if it is missing, no video, or damaged.

    `codec` is its name, `fps` the mean rate, `duration` in seconds. Frames are numbered in order of presentation,
    those that an edit list cuts away not counted.
    """

    def __init__(self, path: str | Path, index: VideoIndex | None = None) -> None:
        self.path = Path(path)
        self.decoded_frames = 0
        self._to_rgb = VideoReformatter()  # kept: making one costs several times what a small frame does
        self._container = open_container(self.path)
        try:
            index = index or VideoIndex.read(self._container, self.path)
            if not self._container.streams.video:
                raise self._unusable("no video stream")
        except BaseException:
            self.close()
            raise
        self._stream = self._container.streams.video[0]
        self.width, self.height, self.fps = index.width, index.height, index.fps
        self.codec, self.duration = index.codec, index.duration
        self._times, self._keys, self._start = index.times, index.keys, index.start

    def _unusable(self, found: str) -> InputError:
        return unusable(self.path, found)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self._times)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    def read(self, frame_indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """The frames of these numbers, in the order asked for, repeats allowed: uint8 RGB (n, H, W, 3).

        Raises InputError for a number outside the video and for a frame that cannot be decoded.
        """
        wanted = [int(index) for index in frame_indices]
        for index in wanted:
            if not 0 <= index < len(self):
                raise InputError(
                    expected=f"frame numbers from 0 to {len(self) - 1} for {self.path}",
                    found=str(index),
                    fix="ask for frames within the video",
                )
        frames = np.empty((len(wanted), self.height, self.width, 3), np.uint8)
        slots: dict[int, list[int]] = {}
        for slot, index in enumerate(wanted):
            slots.setdefault(index, []).append(slot)
        for index, frame in self._decode(sorted(slots)):
            frames[slots[index]] = self._pixels(frame)
        return frames

    def iterate(self, frame_indices: Sequence[int]) -> Iterator[np.ndarray]:
        """The frames of these ascending numbers within the video, one at a time: uint8 RGB (H, W, 3)."""
        for _, frame in self._decode(frame_indices):
            yield self._pixels(frame)

    def verify(self, on_frame: Callable[[], object]) -> None:
        """Decode the whole video once, on all cores, calling `on_frame` for each frame.

        Raises InputError for the first frame that is damaged, missing, or of another size. What a codec does not
        notice itself stays unseen: VP9 and AV1 carry no checksums.
        """
        reached = 0
        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                for frame in container.decode(stream):
                    if reached >= len(self) or frame.pts != self._times[reached]:
                        break
                    if frame.is_corrupt:
                        raise self._unusable(f"frame {reached} is damaged")
                    self._check_size(frame)
                    reached += 1
                    on_frame()
        except av.FFmpegError as error:
            raise self._unusable(f"{error.strerror} when decoding, after {reached} frames") from error
        if reached < len(self):
            raise self._unusable(f"frame {reached} cannot be decoded")

    def _pixels(self, frame: VideoFrame) -> np.ndarray:
        self._check_size(frame)
        return self._to_rgb.reformat(frame, format="rgb24").to_ndarray()

    def _check_size(self, frame: VideoFrame) -> None:
        if (frame.width, frame.height) != (self.width, self.height):
            raise self._unusable(f"a frame of {frame.width} x {frame.height} within {self.width} x {self.height}")

    def _decode(self, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames of these ascending numbers; decodes on from the last one if no keyframe lies in between."""
        stream: Iterator[VideoFrame] | None = None
        reached_key = -1
        for index in indices:
            key = bisect_right(self._keys, self._times[index]) - 1
            if stream is None or key > reached_key:
                stream, reached_key = self._seek(key), max(key, 0)
            time, frame = self._advance(stream, self._keys[reached_key], self._times[index])
            # Containers seek by decoding time, so a seek may land past the frame: start one keyframe earlier.
            while time > self._times[index] and reached_key > 0:
                reached_key -= 1
                stream = self._seek(reached_key)
                time, frame = self._advance(stream, self._keys[reached_key], self._times[index])
            if time != self._times[index]:
                raise self._unusable(f"frame {index} cannot be decoded")
            yield index, frame

    def _seek(self, key: int) -> Iterator[VideoFrame]:
        """Decoded frames from this keyframe (by its place in the list of keyframes) on."""
        try:
            target = self._keys[key] if key > 0 else self._start
            self._container.seek(target, stream=self._stream, backward=True)
        except av.FFmpegError as error:
            raise self._unusable(f"{error.strerror} when seeking") from error
        return iter(self._container.decode(self._stream))

    def _advance(self, stream: Iterator[VideoFrame], key: int, time: int) -> tuple[int, VideoFrame]:
        """The first frame at or after this time stamp, and its own; `key` is that of the keyframe decoding is from."""
        try:
            for frame in stream:
                self.decoded_frames += 1
                # Frames that a keyframe leads in may refer to what comes before it; all others build on each other.
                if frame.is_corrupt and frame.pts is not None and frame.pts >= key:
                    raise self._unusable(f"a damaged frame {bisect_left(self._times, frame.pts)}")
                if frame.pts is not None and frame.pts >= time:
                    return frame.pts, frame
        except av.FFmpegError as error:
            raise self._unusable(f"{error.strerror} when decoding") from error
        raise self._unusable(f"{self.decoded_frames} decoded frames, where {len(self)} are announced")


def to_network(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (b, L, H, W, 3) -> float32 (b, L, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0

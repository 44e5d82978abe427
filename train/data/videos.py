"""Reading any video file by frame number."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from nuwaxl.errors import InputError


class VideoFile:
    """A video opened for frame-accurate reading at random.

    Opening walks over the packets once, without decoding, to learn every frame's time stamp and which of them
    are keyframes; a frame is then reached by decoding from the keyframe before it. `decoded_frames` counts
    the frames decoded so far. Raises InputError, naming the file, if it is missing, no video, or damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.decoded_frames = 0
        self._to_rgb = VideoReformatter()  # kept: making one costs several times what a small frame does
        try:
            self._container: InputContainer = av.open(str(self.path))
        except (av.FFmpegError, OSError) as error:
            raise self._unusable(str(error)) from error
        try:
            self._index()
        except BaseException:
            self.close()
            raise

    def _index(self) -> None:
        if not self._container.streams.video:
            raise self._unusable("no video stream")
        self._stream = self._container.streams.video[0]
        self.width, self.height = self._stream.codec_context.width, self._stream.codec_context.height
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.fps = float(rate) if rate else 0.0
        times: list[int] = []
        keys: list[int] = []
        try:
            for packet in self._container.demux(self._stream):
                if packet.size == 0 or packet.is_discard:  # the empty packet at the end; frames edited away
                    continue
                if packet.is_corrupt:
                    raise self._unusable(f"a damaged packet after {len(times)} frames")
                if packet.pts is None:
                    raise self._unusable(f"a frame without a time stamp after {len(times)} frames")
                times.append(packet.pts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
        except av.FFmpegError as error:
            raise self._unusable(f"{error} after {len(times)} frames") from error
        self._times, self._keys = sorted(times), sorted(keys)
        if not self._times or not self._keys:
            raise self._unusable("no frames")
        if not self.width or not self.height:
            raise self._unusable(f"frames of {self.width} x {self.height} pixels")

    def _unusable(self, found: str) -> InputError:
        return InputError(
            expected=f"a readable video at {self.path}", found=found, fix="check the file, or write it again"
        )

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

    def read_all(self) -> Iterator[np.ndarray]:
        """All frames in order, one at a time: uint8 RGB (H, W, 3)."""
        for _, frame in self._decode(range(len(self))):
            yield self._pixels(frame)

    def _pixels(self, frame: VideoFrame) -> np.ndarray:
        pixels = self._to_rgb.reformat(frame, format="rgb24").to_ndarray()
        if pixels.shape != (self.height, self.width, 3):
            raise self._unusable(
                f"a frame of {pixels.shape[1]} x {pixels.shape[0]} within {self.width} x {self.height}"
            )
        return pixels

    def _decode(self, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames of these ascending numbers; decodes on from the last one if no keyframe lies in between."""
        stream: Iterator[VideoFrame] | None = None
        reached_key = -1
        for index in indices:
            key = bisect_right(self._keys, self._times[index]) - 1
            if stream is None or key > reached_key:
                stream, reached_key = self._seek(key), max(key, 0)
            time, frame = self._advance(stream, self._times[index])
            # Containers seek by decoding time, so a seek may land past the frame: start one keyframe earlier.
            while time > self._times[index] and reached_key > 0:
                reached_key -= 1
                stream = self._seek(reached_key)
                time, frame = self._advance(stream, self._times[index])
            if time != self._times[index]:
                raise self._unusable(f"frame {index} cannot be decoded")
            yield index, frame

    def _seek(self, key: int) -> Iterator[VideoFrame]:
        """Decoded frames from this keyframe (by its place in the list of keyframes) on."""
        target = self._keys[key] if key > 0 else min(self._keys[0], self._times[0])
        try:
            self._container.seek(target, stream=self._stream, backward=True)
        except av.FFmpegError as error:
            raise self._unusable(f"{error} when seeking") from error
        return iter(self._container.decode(self._stream))

    def _advance(self, stream: Iterator[VideoFrame], time: int) -> tuple[int, VideoFrame]:
        """The first frame at or after this time stamp, and its own."""
        try:
            for frame in stream:
                self.decoded_frames += 1
                if frame.pts is not None and frame.pts >= time:
                    return frame.pts, frame
        except av.FFmpegError as error:
            raise self._unusable(f"{error} when decoding") from error
        raise self._unusable(f"{self.decoded_frames} decoded frames, where {len(self)} are announced")


def to_network(frames: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (b, L, H, W, 3) -> float32 (b, L, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0

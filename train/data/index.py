"""Where the frames of a video are: learned from all its packets once, and kept beside it for the next start."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import av
from av.container import InputContainer

from nuwaxl.errors import InputError, reason
from nuwaxl.train.data.kept import kept
from nuwaxl.train.data.libav import matroska_errors

# What another release of ours or of libavformat learned may be something else.
_LEARNED_BY: list[Any] = ["index", 3, *av.library_versions["libavformat"]]


@dataclass(frozen=True)
class VideoIndex:
    """Time stamps of the frames, and of the keyframes among them, ascending; `start` is where decoding begins.

    `duration` is in seconds, `fps` the mean rate, `codec` its name.
    """

    width: int
    height: int
    fps: float
    codec: str
    duration: float
    start: int
    times: list[int]
    keys: list[int]

    @classmethod
    def read(cls, container: InputContainer, path: Path) -> Self:
        """Walk over all packets, and decode one. Raises InputError, naming `path`, for no whole video, and
        for one that players do not show as it is stored."""
        if not container.streams.video:
            raise unusable(path, "no video stream")
        stream = container.streams.video[0]
        times: list[int] = []
        keys: list[int] = []
        starts: list[int] = []
        end = 0
        try:
            # A Matroska reader passes over what is damaged in silence, and the frames after it would be misnumbered.
            with matroska_errors(container) as first_error:
                for packet in container.demux(stream):
                    if packet.size == 0:  # the empty one at the end
                        continue
                    starts += [time for time in (packet.pts, packet.dts) if time is not None and len(times) == 0]
                    if packet.is_discard:  # a frame edited away
                        continue
                    if packet.is_corrupt:
                        raise unusable(path, f"a damaged packet after {len(times)} frames")
                    if packet.pts is None:
                        raise unusable(path, f"a frame without a time stamp after {len(times)} frames")
                    times.append(packet.pts)
                    end = max(end, packet.pts + (packet.duration or 0))
                    if packet.is_keyframe:
                        keys.append(packet.pts)
                if first_error():
                    raise unusable(path, f"{first_error()}, {len(times)} frames")
        except av.FFmpegError as error:
            raise unusable(path, f"{error.strerror} after {len(times)} frames") from error
        if not times or not keys:
            raise unusable(path, "no frames")
        if len(set(times)) != len(times):
            raise unusable(path, f"{len(times)} frames at {len(set(times))} different times")
        rotation = _rotation(container, min(starts))
        if rotation:
            raise unusable(path, f"pictures to be turned by {rotation} degrees", "write them upright (ffmpeg does)")
        width, height = stream.codec_context.width, stream.codec_context.height
        if not width or not height:
            raise unusable(path, f"frames of {width} x {height} pixels")
        shown = round(width * (stream.sample_aspect_ratio or 1))  # players stretch them so; decoders do not
        if shown != width:
            raise unusable(
                path,
                f"pixels that are not square: {width} x {height} that players show as {shown} x {height}",
                'write square ones (ffmpeg -vf "scale=2*trunc(iw*sar/2):ih,setsar=1" does)',
            )
        rate = stream.average_rate or stream.guessed_rate
        return cls(
            width,
            height,
            fps=float(rate) if rate else 0.0,
            codec=stream.codec_context.codec.canonical_name,
            duration=float((end - min(times)) * stream.time_base),
            # The first frame may build on a keyframe that an edit list cuts away, and is decoded before it is shown.
            start=min(starts),
            times=sorted(times),
            keys=sorted(keys),
        )


def video_index(video: Path) -> VideoIndex:
    """The index of a video, kept from an earlier time or read now.

    Raises InputError, naming the file, if it is missing, no video, or damaged.
    """

    def read() -> dict[str, Any]:
        with open_container(video) as container:
            return asdict(VideoIndex.read(container, video))

    return VideoIndex(**kept(video, _LEARNED_BY, read))


def open_container(video: Path) -> InputContainer:
    """Raises InputError, naming the file, if it is missing or nothing that libavformat knows."""
    try:
        return av.open(str(video))
    except (av.FFmpegError, OSError) as error:
        raise unusable(video, reason(error)) from error


def unusable(video: Path, found: str, fix: str = "check the file, or write it again") -> InputError:
    return InputError(expected=f"a readable video at {video}", found=found, fix=fix)


def _rotation(container: InputContainer, start: int) -> int:
    """Degrees by which players turn the pictures, as those of phones: decoders do not do it."""
    stream = container.streams.video[0]
    try:
        container.seek(start, stream=stream, backward=True)
        return next(iter(container.decode(stream))).rotation
    except (av.FFmpegError, StopIteration):
        return 0  # a damaged picture is told of by who reads it

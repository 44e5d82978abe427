"""Small videos of many kinds, written by PyAV: every frame differs from every other."""

import struct
from collections.abc import Collection, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

HEIGHT, WIDTH = 64, 96  # no smaller: the AV1 encoder takes 64 x 64 at least
FRAMES = 160
GROUP = 12  # frames from one keyframe to the next

CODECS = {
    "h264": ("libx264", {"bf": "3", "preset": "fast"}),
    "open": ("libx264", {"bf": "3", "x264-params": "open-gop=1"}),  # frames shown before the keyframe they follow
    "scenes": ("libx264", {"bf": "3", "x264-params": "scenecut=400:min-keyint=1"}),
    "close": ("libx264", {"bf": "3", "x264-params": "open-gop=1:min-keyint=1:b-adapt=0"}),  # keyframes side by side
    "mpeg4": ("mpeg4", {}),
    # Frames that are never shown (alternate references) need the encoder to look ahead.
    "vp9": ("libvpx-vp9", {"cpu-used": "8", "deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "16"}),
    "av1": ("libsvtav1", {"preset": "12", "crf": "40"}),
}


def image(number: int) -> np.ndarray:
    """A ball that crosses a background whose brightness says the frame number, uint8 (H, W, 3)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.full((HEIGHT, WIDTH, 3), 30 + number % 200, np.uint8)
    pixels[(rows - 24 - number // 200 * 3) ** 2 + (columns - number % WIDTH) ** 2 < 100] = (220, 40, 60)
    return pixels


def write_video(
    path: Path,
    codec: str = "h264",
    frames: int = FRAMES,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    group: int = GROUP,
    keyframes: Collection[int] = (),
    pixel_aspect: Fraction | None = None,
) -> None:
    """`times` are the frames' own in milliseconds, 25 a second if not given; `options` the container's; `keyframes`
    those wanted besides one a group; `pixel_aspect` a pixel's width over its height, as the file says it."""
    encoder, encoder_options = CODECS[codec]
    if encoder not in av.codecs_available:
        pytest.skip(f"PyAV was built without {encoder}")
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(encoder, rate=25, options=encoder_options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", group
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(image(number), format="rgb24")
            if number in keyframes:
                frame.pict_type = PictureType.I
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def copy_packets(source: Path, out: Path, shift: Fraction, options: dict[str, str] | None = None) -> None:
    """The same packets in another container, `shift` seconds later."""
    with av.open(str(source)) as read, av.open(str(out), "w", options=options or {}) as write:
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            packet.pts += round(shift / packet.time_base)
            packet.dts += round(shift / packet.time_base)
            packet.stream = stream
            write.mux(packet)


def turn(path: Path, degrees: int) -> None:
    """Make an mp4's only track one that players turn: the matrix in its header (ISO/IEC 14496-12, tkhd)."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    cos, sin = {90: (0, 1), 180: (-1, 0)}[degrees]
    rows = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    assert content[matrix : matrix + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[matrix : matrix + 36] = rows
    path.write_bytes(content)


def edit_list(path: Path, first: int, frames: int) -> None:
    """Make an mp4's only edit show `frames` frames from the one numbered `first` on (25 frames a second)."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12
    assert int.from_bytes(content[entry - 4 : entry], "big") == 1, "one edit"
    seconds_of_movie, seconds_of_media = (content.index(name) + 16 for name in (b"mvhd", b"mdhd"))
    movie_rate = int.from_bytes(content[seconds_of_movie : seconds_of_movie + 4], "big")
    media_rate = int.from_bytes(content[seconds_of_media : seconds_of_media + 4], "big")
    start = int.from_bytes(content[entry + 4 : entry + 8], "big") + first * media_rate // 25
    content[entry : entry + 4] = (frames * movie_rate // 25).to_bytes(4, "big")
    content[entry + 4 : entry + 8] = start.to_bytes(4, "big")
    path.write_bytes(content)


def decode_everything(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])

"""The video reader: frame-accurate at random, decoding little, and clear about bad files."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from nuwaxl.errors import InputError
from nuwaxl.train.data.videos import VideoFile

FRAMES = 160
HEIGHT, WIDTH = 48, 80

# Containers and codecs that differ in what makes seeking hard: B-frames, open groups of pictures, time bases.
FORMATS = {
    "h264.mp4": ("libx264", {"bf": "3", "x264-params": "open-gop=1"}),
    "h264.mkv": ("libx264", {"bf": "2", "b_strategy": "0"}),
    "scenecuts.mp4": ("libx264", {"bf": "3", "x264-params": "scenecut=400:min-keyint=1"}),
    "mpeg4.mp4": ("mpeg4", {}),
    "vp9.webm": ("libvpx-vp9", {"cpu-used": "8", "deadline": "realtime"}),
}


def write_video(
    path: Path, codec: str = "libx264", options: dict[str, str] | None = None, frames: int = FRAMES
) -> None:
    """A ball that crosses a background whose brightness says the frame number."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", 12
        stream.bit_rate = 2_000_000
        stream.options = options or {}
        for number in range(frames):
            image = np.full((HEIGHT, WIDTH, 3), 30 + number, np.uint8)
            image[(rows - 24) ** 2 + (columns - number % WIDTH) ** 2 < 100] = (220, 40, 60)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def decode_everything(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module", params=FORMATS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    codec, options = FORMATS[request.param]
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV was built without {codec}")
    path = tmp_path_factory.mktemp("videos") / request.param
    write_video(path, codec, options)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    write_video(path)
    return path


def test_every_frame_read_alone_equals_the_full_decode(video: Path) -> None:
    everything = decode_everything(video)
    assert len({image.tobytes() for image in everything}) == FRAMES, "all frames differ, so a wrong one would show"
    with VideoFile(video) as file:
        assert (len(file), file.height, file.width, file.fps) == (FRAMES, HEIGHT, WIDTH, 25.0)
        for number in np.random.default_rng(0).permutation(FRAMES):
            np.testing.assert_array_equal(file.read([number])[0], everything[number])


def test_frames_come_in_the_order_asked_for_with_repeats(video: Path) -> None:
    everything = decode_everything(video)
    numbers = np.array([90, 3, 3, 159, 0, 91, 90, 40])
    with VideoFile(video) as file:
        frames = file.read(numbers)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, everything[numbers])
        assert file.read([]).shape == (0, HEIGHT, WIDTH, 3)


def test_reading_all_gives_the_full_decode_also_after_reading_at_random(video: Path) -> None:
    with VideoFile(video) as file:
        file.read([FRAMES - 1])
        np.testing.assert_array_equal(np.stack(list(file.read_all())), decode_everything(video))


def test_far_apart_frames_are_reached_without_decoding_what_lies_between(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, frames=220)
    with VideoFile(path) as file:
        file.read([0, 73, 146, 219])
        assert file.decoded_frames <= 4 * 12


def test_neighbouring_frames_are_decoded_once(plain: Path) -> None:
    with VideoFile(plain) as file:
        file.read(range(50, 66))
        assert file.decoded_frames <= 12 + 16


@pytest.mark.parametrize("number", [-1, FRAMES])
def test_a_frame_outside_the_video_is_refused(plain: Path, number: int) -> None:
    with VideoFile(plain) as file, pytest.raises(InputError, match=rf"0 to 159 .*plain\.mp4.*{number}"):
        file.read([0, number])


def damage_nothing_there(path: Path) -> None:
    path.unlink()


def damage_text(path: Path) -> None:
    path.write_text("this is no video")


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def damage_audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    "damage", [damage_nothing_there, damage_text, damage_empty, damage_truncated, damage_audio_only]
)
def test_an_unreadable_file_is_refused_by_name(plain: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "broken.mp4"
    path.write_bytes(plain.read_bytes())
    with VideoFile(path) as file:
        assert len(file) == FRAMES
    damage(path)
    with pytest.raises(InputError, match=r"broken\.mp4"):
        VideoFile(path)


def test_frames_lost_from_the_middle_are_refused_by_name_when_they_are_read(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.mp4"
    content = plain.read_bytes()
    start, size = content.index(b"mdat") + 4, len(content)
    path.write_bytes(content[:start] + bytes((size - start) // 2) + content[start + (size - start) // 2 :])
    with pytest.raises(InputError, match=r"broken\.mp4"), VideoFile(path) as file:
        list(file.read_all())

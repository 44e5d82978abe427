"""The video reader: frame-accurate at random, decoding little, and clear about bad files."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from nuwaxl.errors import InputError
from nuwaxl.train.data.videos import VideoFile, list_videos
from tests.train.data.films import (
    CODECS,
    FRAMES,
    GROUP,
    HEIGHT,
    WIDTH,
    copy_packets,
    decode_everything,
    edit_list,
    turn,
    write_video,
)

VARIABLE = np.cumsum(np.random.default_rng(0).choice([20, 33, 40, 50, 120, 400], FRAMES)).tolist()  # ms
CLOSE = sorted({*range(3, FRAMES, 7), *range(4, FRAMES, 7)})
LATE = [5000 + 40 * number for number in range(FRAMES)]

# What makes seeking hard: B-frames, open groups of pictures, hidden frames, time bases, containers without an index.
KINDS = {
    **{
        f"{codec}.{suffix}": {"codec": codec, "keyframes": CLOSE if codec == "close" else ()}
        for codec in CODECS
        for suffix in ("mp4", "mkv", "webm")
        if suffix != "webm" or codec in ("vp9", "av1")
    },
    **{f"variable_{codec}.{suffix}": {"codec": codec, "times": VARIABLE}
       for codec, suffix in (("h264", "mp4"), ("open", "mkv"), ("vp9", "webm"), ("av1", "mp4"))},
    **{f"late_{codec}.{suffix}": {"codec": codec, "times": LATE}
       for codec, suffix in (("h264", "mp4"), ("h264", "mkv"), ("vp9", "webm"), ("av1", "mkv"))},
    "unindexed_h264.mkv": {"codec": "h264", "options": {"live": "1"}},
    "unindexed_vp9.webm": {"codec": "vp9", "options": {"live": "1"}},
    "fragments_h264.mp4": {"codec": "h264", "options": {"movflags": "frag_keyframe+empty_moov"}},
    # A seek by decoding time lands past the frame here.
    "fragments_close.mp4": {
        "codec": "close", "keyframes": CLOSE, "options": {"movflags": "frag_keyframe+empty_moov"}
    },
    "fragments_av1.mp4": {"codec": "av1", "options": {"movflags": "frag_keyframe+empty_moov"}},
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / request.param
    write_video(path, **KINDS[request.param])
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "plain.mp4"
    write_video(path)
    return path


def assert_reads_as_decoded(path: Path, numbers: np.ndarray | None = None) -> None:
    """Frames read alone, in random order, are those of a full decode, which all differ."""
    everything = decode_everything(path)
    assert len({image.tobytes() for image in everything}) >= 0.95 * len(everything), "a wrong frame would show"
    with VideoFile(path) as file:
        assert (len(file), file.height, file.width) == (len(everything), HEIGHT, WIDTH)
        counted: list[None] = []
        file.verify(lambda: counted.append(None))
        assert len(counted) == len(file)
        for number in np.random.default_rng(0).permutation(len(file) if numbers is None else numbers):
            np.testing.assert_array_equal(file.read([number])[0], everything[number], f"frame {number}")


def test_every_frame_read_alone_equals_the_full_decode(video: Path) -> None:
    assert_reads_as_decoded(video)


def test_the_reader_knows_codec_rate_and_duration(plain: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "variable.mkv", "vp9", times=VARIABLE)
    with VideoFile(plain) as file, VideoFile(tmp_path / "variable.mkv") as variable:
        assert (file.codec, file.fps, file.duration) == ("h264", 25.0, FRAMES / 25)
        assert variable.codec == "vp9"
        assert variable.duration == pytest.approx((VARIABLE[-1] - VARIABLE[0]) / 1000, abs=0.1)


@pytest.mark.parametrize("codec", ["h264", "open", "vp9", "av1"])
@pytest.mark.parametrize(("first", "frames"), [(30, 70), (GROUP * 2, 100), (0, 50)])
def test_frames_that_an_edit_list_cuts_away_are_not_counted(
    tmp_path: Path, codec: str, first: int, frames: int
) -> None:
    whole, path = tmp_path / "whole.mp4", tmp_path / "edited.mp4"
    write_video(whole, codec)
    path.write_bytes(whole.read_bytes())
    edit_list(path, first, frames)
    np.testing.assert_array_equal(decode_everything(path), decode_everything(whole)[first : first + frames])
    assert_reads_as_decoded(path)


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_cut_and_a_delay_written_by_the_muxer_are_read_as_decoded(tmp_path: Path, codec: str) -> None:
    write_video(tmp_path / "whole.mp4", codec)
    copy_packets(tmp_path / "whole.mp4", tmp_path / "cut.mp4", Fraction(-1), {"avoid_negative_ts": "disabled"})
    copy_packets(tmp_path / "whole.mp4", tmp_path / "delayed.mp4", Fraction(3))
    with VideoFile(tmp_path / "cut.mp4") as cut, VideoFile(tmp_path / "delayed.mp4") as delayed:
        assert (len(cut), len(delayed)) == (FRAMES - 25, FRAMES)
    assert_reads_as_decoded(tmp_path / "cut.mp4")
    assert_reads_as_decoded(tmp_path / "delayed.mp4")


@pytest.mark.parametrize("name", ["h264.mp4", "open.mkv", "vp9.webm", "av1.mp4"])
def test_16_frames_at_stride_225_decode_their_own_groups_of_pictures_only(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_video(path, path.stem, frames=15 * 225 + 2, group=25)
    everything = decode_everything(path)
    with VideoFile(path) as file:
        frames = file.read(1 + 225 * np.arange(16))
        assert file.decoded_frames <= 16 * 2 * 25, f"{file.decoded_frames} of {len(file)}"
    np.testing.assert_array_equal(frames, everything[1::225])


def test_frames_come_in_the_order_asked_for_with_repeats(plain: Path) -> None:
    everything = decode_everything(plain)
    numbers = np.array([90, 3, 3, 159, 0, 91, 90, 40])
    with VideoFile(plain) as file:
        frames = file.read(numbers)
        assert frames.dtype == np.uint8
        np.testing.assert_array_equal(frames, everything[numbers])
        assert file.read([]).shape == (0, HEIGHT, WIDTH, 3)


def test_reading_all_gives_the_full_decode_also_after_reading_at_random(video: Path) -> None:
    with VideoFile(video) as file:
        file.read([FRAMES - 1])
        np.testing.assert_array_equal(np.stack(list(file.iterate(range(FRAMES)))), decode_everything(video))


def test_neighbouring_frames_are_decoded_once(plain: Path) -> None:
    with VideoFile(plain) as file:
        file.read(range(50, 66))
        assert file.decoded_frames <= GROUP + 16


def test_a_seek_that_lands_past_the_frame_is_made_again_from_a_keyframe_earlier(
    plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers seek by decoding time; here the first seek is made to go astray, as no film here needs it."""
    everything, seek, keys = decode_everything(plain), VideoFile._seek, []

    def astray(file: VideoFile, key: int) -> Iterator[VideoFrame]:
        keys.append(key)
        return seek(file, key + 1 if len(keys) == 1 else key)

    monkeypatch.setattr(VideoFile, "_seek", astray)
    with VideoFile(plain) as file:
        np.testing.assert_array_equal(file.read([GROUP + 5])[0], everything[GROUP + 5])
    assert len(keys) == 2
    assert keys[1] == keys[0] - 1


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


def hurt(source: Path, path: Path, how: str) -> None:
    """Write `source` again with a tenth of it in the middle damaged."""
    content = bytearray(source.read_bytes())
    first, last = int(len(content) * 0.45), int(len(content) * 0.55)
    if how == "zeros":
        content[first:last] = bytes(last - first)
    elif how == "noise":
        content[first:last] = np.random.default_rng(0).bytes(last - first)
    elif how == "cut":
        del content[first:last]
    else:
        del content[first:]
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["zeros", "noise", "cut", "truncated"])
@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "vp9.mp4", "vp9.webm", "av1.mp4", "av1.mkv"])
def test_a_broken_middle_is_refused_by_name_when_opened_or_when_read(tmp_path: Path, name: str, how: str) -> None:
    source = tmp_path / name
    write_video(source, source.stem)
    with VideoFile(source) as file:
        file.verify(lambda: None)
    path = tmp_path / f"broken{source.suffix}"
    hurt(source, path, how)
    with pytest.raises(InputError, match=r"broken\.m|broken\.webm"), VideoFile(path) as file:
        file.verify(lambda: None)
    with pytest.raises(InputError, match=r"broken\.m|broken\.webm"), VideoFile(path) as file:
        list(file.iterate(range(FRAMES)))


def test_two_matroska_files_damaged_alike_are_both_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "whole.mkv")
    for number in range(2):
        hurt(tmp_path / "whole.mkv", tmp_path / f"{number}.mkv", "truncated")
        with pytest.raises(InputError, match=f"{number}\\.mkv.*ended prematurely"):
            VideoFile(tmp_path / f"{number}.mkv")
    assert av.logging.get_level() is None, "the log is off again"
    VideoFile(tmp_path / "whole.mkv").close()


def test_a_frame_that_the_decoder_had_to_patch_is_refused(plain: Path, tmp_path: Path) -> None:
    """Flipped bits leave h264 decodable: errors are concealed, and the frame says so."""
    content = bytearray(plain.read_bytes())
    start = content.index(b"mdat") + 4
    rng = np.random.default_rng(1)
    with av.open(str(plain)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size > 400]
    position, size = packets[len(packets) // 2]
    assert position >= start
    for at in rng.integers(position + size // 2, position + size, 12):
        content[at] ^= 1 << int(rng.integers(8))
    path = tmp_path / "bits.mp4"
    path.write_bytes(content)
    with VideoFile(path) as file:
        assert len(file) == FRAMES
        with pytest.raises(InputError, match=r"bits\.mp4.*damaged"):
            file.verify(lambda: None)
        with pytest.raises(InputError, match=r"bits\.mp4.*damaged"):
            list(file.iterate(range(FRAMES)))


def test_videos_that_share_a_caption_file_are_refused(plain: Path, tmp_path: Path) -> None:
    for name in ("b.mp4", "a.mkv", "notes.txt", "A.MP4"):
        (tmp_path / name).write_bytes(plain.read_bytes())
    assert [path.name for path in list_videos(tmp_path)] == ["A.MP4", "a.mkv", "b.mp4"]
    (tmp_path / "b.webm").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.mp4 and b\.webm"):
        list_videos(tmp_path)


@pytest.mark.parametrize("degrees", [90, 180])
def test_a_video_that_players_turn_is_refused_by_name(tmp_path: Path, degrees: int) -> None:
    path = tmp_path / "phone.mp4"
    write_video(path, frames=3)
    turn(path, degrees)
    with pytest.raises(InputError, match=rf"phone\.mp4; found pictures to be turned by -?{degrees} degrees"):
        VideoFile(path)


@pytest.mark.parametrize(("codec", "suffix"), [("h264", "mp4"), ("h264", "mkv"), ("vp9", "mp4"), ("av1", "mp4")])
def test_a_video_whose_pixels_are_not_square_is_refused_by_name(tmp_path: Path, codec: str, suffix: str) -> None:
    path = tmp_path / f"anamorphic.{suffix}"
    write_video(path, codec, frames=3, pixel_aspect=Fraction(4, 3))
    with pytest.raises(
        InputError,
        match=rf"anamorphic\.{suffix}; found pixels that are not square: 96 x 64 that players show as 128 x 64; ",
    ):
        VideoFile(path)


def test_pixels_whose_aspect_does_not_show_count_as_square(tmp_path: Path) -> None:
    """Scaling leaves such ratios behind: 255:256 makes 95.6 of 96 pixels."""
    path = tmp_path / "scaled.mp4"
    write_video(path, frames=3, pixel_aspect=Fraction(255, 256))
    with VideoFile(path) as file:
        assert (file.width, file.height) == (WIDTH, HEIGHT)

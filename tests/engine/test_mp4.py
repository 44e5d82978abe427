"""The mp4 file: what is in it, and that it appears only when it is complete."""

import fcntl
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nuwaxl.engine import CostModel, Engine, Story
from nuwaxl.engine.mp4 import Mp4Writer, check_output
from nuwaxl.errors import InputError, RenderError


def read_back(path: Path) -> tuple[np.ndarray, float]:
    """All frames of a video file, and its frame rate."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate is not None
        rate = float(stream.average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]), rate


def smooth_video(frames: int) -> np.ndarray:
    """A grey gradient that moves."""
    y, x = np.mgrid[0:32, 0:48]
    pictures = [np.repeat((2 * x + 3 * y + 2 * t)[..., None], 3, axis=2) for t in range(frames)]
    return np.stack(pictures).astype(np.uint8)


def test_every_frame_is_written_in_order_and_looks_the_same(tmp_path: Path) -> None:
    video = smooth_video(25)
    with Mp4Writer(tmp_path / "out.mp4", width=48, height=32, fps=12.5) as writer:
        for first in range(0, 25, 7):
            writer.write(video[first : first + 7])
    found, rate = read_back(tmp_path / "out.mp4")
    assert rate == 12.5
    assert found.shape == video.shape
    assert np.abs(found.astype(int) - video).mean() < 3
    brightness = found.mean(axis=(1, 2, 3))
    assert np.all(np.diff(brightness) > 1)


def test_the_file_has_the_permissions_of_a_new_file_and_replaces_an_old_one(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").write_text("old")
    (tmp_path / "other").touch()
    with Mp4Writer(tmp_path / "out.mp4", width=48, height=32, fps=16) as writer:
        writer.write(smooth_video(2))
        assert (tmp_path / "out.mp4").read_text() == "old"
    assert len(read_back(tmp_path / "out.mp4")[0]) == 2
    assert stat.S_IMODE(os.stat(tmp_path / "out.mp4").st_mode) == stat.S_IMODE(os.stat(tmp_path / "other").st_mode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RenderError])
def test_nothing_is_left_when_writing_stops_half_way(tmp_path: Path, error: type[BaseException]) -> None:
    def stop_half_way() -> None:
        with Mp4Writer(tmp_path / "out.mp4", width=48, height=32, fps=16) as writer:
            writer.write(smooth_video(3))
            assert len(list(tmp_path.iterdir())) == 1
            raise error

    with pytest.raises(error):
        stop_half_way()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    for path, said in [
        (tmp_path / "out.avi", r"ending in \.mp4"),
        (tmp_path / "out", r"ending in \.mp4"),
        (tmp_path / "absent" / "out.mp4", "existing folder"),
        (tmp_path / "folder.mp4", "a directory"),
        (tmp_path / "pipe.mp4", "not a regular file"),
        (Path("/proc/out.mp4"), "can be written"),
    ]:
        with pytest.raises(InputError, match=said):
            check_output(path)
    for name in ("", "a\0b.mp4", "half a pair: \ud800.mp4"):
        with pytest.raises(InputError, match="a name for the output file"):
            check_output(name)
    check_output(tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.mp4", "pipe.mp4"]


def test_a_symbolic_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.mp4").symlink_to(tmp_path / "elsewhere" / "real.mp4")
    with Mp4Writer(tmp_path / "link.mp4", width=48, height=32, fps=16) as writer:
        writer.write(smooth_video(2))
    assert (tmp_path / "link.mp4").is_symlink()
    assert len(read_back(tmp_path / "elsewhere" / "real.mp4")[0]) == 2
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "absent" / "real.mp4")
    with pytest.raises(InputError, match="existing folder"):
        check_output(tmp_path / "lost.mp4")


def test_odd_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="even width"):
        Mp4Writer(tmp_path / "out.mp4", width=47, height=32, fps=16)


def test_a_saved_video_has_the_frames_of_the_render_and_counts_the_writing(tiny_bundle: Path, tmp_path: Path) -> None:
    story = Story([(0, "red sky"), (9, "blue sea")], fps=24)
    starts: list[int] = []
    with Engine.open(tiny_bundle, devices="cpu:2") as engine:
        video = engine.render(story, frames=30)
        video.save(tmp_path / "out.mp4", on_clip=lambda clip: starts.append(clip.first_frame))
        expected = np.concatenate([clip.frames for clip in engine.render(story, frames=30)])
    found, rate = read_back(tmp_path / "out.mp4")
    assert rate == 24
    assert found.shape == expected.shape
    # The tiny bundle paints noise, whose colours 4:2:0 halves; the brightness of the frames survives.
    difference = found.astype(int).mean(axis=3) - expected.mean(axis=3)
    assert np.abs(difference.mean(axis=(1, 2))).max() < 4
    assert starts == sorted(starts)
    assert video.stats.phases_s["encode"] > 0
    assert video.stats.wall_s > video.stats.phases_s["encode"]


def test_measuring_costs_is_not_in_the_time_of_a_saved_video(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> list[CostModel]:
        time.sleep(0.5)
        return [CostModel([1], [1.0])]

    monkeypatch.setattr("nuwaxl.engine.engine.device_costs", slow)
    with Engine.open(tiny_bundle) as engine:
        video = engine.render(Story([(0, "red sky")]), frames=9)
        began = time.perf_counter()
        video.save(tmp_path / "out.mp4")
        assert video.stats.wall_s < time.perf_counter() - began - 0.5


def test_a_bad_path_is_refused_before_the_render_begins(tiny_bundle: Path, tmp_path: Path) -> None:
    progressed: list[object] = []
    with Engine.open(tiny_bundle) as engine:
        video = engine.render(Story([(0, "red")]), frames=9, progress=progressed.append)
        with pytest.raises(InputError, match="existing folder"):
            video.save(tmp_path / "absent" / "out.mp4")
    assert progressed == []


def test_without_pyav_clips_can_be_had_and_a_file_is_refused(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with Engine.open(tiny_bundle) as engine:
        video = engine.render(Story([(0, "red")]), frames=4)
        with pytest.raises(InputError, match="the package av, to write an mp4 file"):
            video.save(tmp_path / "a.mp4")
        assert sum(len(clip.frames) for clip in video) == 4
    assert list(tmp_path.iterdir()) == []


def test_a_name_longer_than_the_file_system_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"):
        check_output(tmp_path / ("a" * 300 + ".mp4"))


def test_a_file_that_cannot_be_completed_can_be_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    writer = Mp4Writer(tmp_path / "a.mp4", width=16, height=16, fps=16).open()
    writer._container.close()
    monkeypatch.setattr(writer, "_container", Full())
    writer.abort()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_by_the_next_and_a_living_ones_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    killed = "import os, sys\nfrom nuwaxl.engine.mp4 import Mp4Writer\n" + (
        "Mp4Writer(sys.argv[1], width=16, height=16, fps=8).open()\nos._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", killed, str(path)], check=True)
    (left,) = tmp_path.iterdir()
    other = tmp_path / ".a.b.01234567.part"  # of a.b.mp4
    other.touch()
    with Mp4Writer(path, width=16, height=16, fps=8) as living:
        with Mp4Writer(path, width=16, height=16, fps=8) as writer:
            assert not left.exists()
            assert len(list(tmp_path.glob(".a.????????.part"))) == 2
            writer.write(np.zeros((1, 16, 16, 3), np.uint8))
        living.write(np.zeros((2, 16, 16, 3), np.uint8))
    assert len(read_back(path)[0]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == [other.name, "a.mp4"]


def test_one_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next writer of the same name, which has removed the first here, and is about to remove the second."""
    flock, taken = fcntl.flock, list[Path]()

    def late(file: Any, operation: int) -> None:
        if len(taken) < 2:
            taken.extend(tmp_path.glob(".a.*.part"))
            if len(taken) == 2:
                raise BlockingIOError
            taken[0].unlink()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with Mp4Writer(tmp_path / "a.mp4", width=16, height=16, fps=8) as writer:
        taken[1].unlink()
        writer.write(np.zeros((1, 16, 16, 3), np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]

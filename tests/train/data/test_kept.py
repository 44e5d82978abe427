"""What is kept beside training data: used while it is of the very file, and otherwise never."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nuwaxl.errors import InputError
from nuwaxl.train.data import index, kept
from nuwaxl.train.data.captions import Captions
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.index import VideoIndex
from nuwaxl.train.data.videos import VideoFile
from tests.train.data.films import FRAMES, write_video


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    write_video(folder / "a.mp4")
    (folder / "a.jsonl").write_text('{"frame": 0, "text": "a ball"}\n{"frame": 9, "text": "the ball"}\n')
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of the videos, with what a first look at them kept."""
    folder = tmp_path / "videos"
    shutil.copytree(original, folder)
    EpisodeFolder(folder)
    return folder


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read whole from now on."""
    names: list[str] = []
    read_video, read_captions = VideoIndex.read, Captions._read
    monkeypatch.setattr(VideoIndex, "read", lambda c, path: names.append(path.name) or read_video(c, path))
    monkeypatch.setattr(Captions, "_read", lambda path: names.append(path.name) or read_captions(path))
    return names


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def lengthen(path: Path) -> None:
    """Another size at the same time of change."""
    status = path.stat()
    with path.open("ab") as file:
        file.write(b"\n")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: Path) -> None:
    """Another file of the same size and time of change."""
    status, content = path.stat(), path.read_bytes()
    place = content.index(b"ball") if path.suffix == ".jsonl" else len(content) - 1
    path.unlink()
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_second_start_reads_no_file_whole_and_sees_the_same(folder: Path, learned: list[str]) -> None:
    places = sorted(path.name for path in (folder / kept.FOLDER).iterdir())
    assert places == ["a.jsonl.kept", "a.mp4.kept"]
    again = EpisodeFolder(folder)
    pixels = again.read(0, [FRAMES - 1, 0, 70])
    assert learned == []
    shutil.rmtree(folder / kept.FOLDER)
    first = EpisodeFolder(folder)
    assert sorted(learned) == ["a.jsonl", "a.mp4"]
    assert again.episodes == first.episodes
    assert index.video_index(folder / "a.mp4") == VideoIndex.read(index.open_container(folder / "a.mp4"), Path("a"))
    with VideoFile(folder / "a.mp4") as file:
        np.testing.assert_array_equal(pixels, file.read([FRAMES - 1, 0, 70]))


def test_what_was_kept_goes_with_a_folder_that_is_moved(folder: Path, learned: list[str]) -> None:
    moved = folder.rename(folder.with_name("moved"))
    assert EpisodeFolder(moved).episodes[0].video == moved / "a.mp4"
    assert learned == []


def test_what_was_kept_goes_with_a_folder_that_is_copied(folder: Path, learned: list[str]) -> None:
    EpisodeFolder(shutil.copytree(folder, folder.with_name("copied")))
    assert learned == []


@pytest.mark.parametrize("name", ["a.mp4", "a.jsonl"])
@pytest.mark.parametrize("change", [touch, lengthen, replace])
def test_a_changed_file_is_read_again_and_once(
    folder: Path, learned: list[str], name: str, change: Callable[[Path], None]
) -> None:
    change(folder / name)
    EpisodeFolder(folder)
    EpisodeFolder(folder)
    assert learned == [name]


def test_what_was_kept_of_another_file_is_not_taken_for_this_one(folder: Path, learned: list[str]) -> None:
    write_video(folder / "b.mp4", frames=30)
    shutil.copy2(folder / "a.jsonl", folder / "b.jsonl")
    shutil.copy2(folder / kept.FOLDER / "a.mp4.kept", folder / kept.FOLDER / "b.mp4.kept")
    assert [episode.frames for episode in EpisodeFolder(folder).episodes] == [FRAMES, 30]
    assert sorted(learned) == ["b.jsonl", "b.mp4"]


@pytest.mark.parametrize("damage", ["empty", "truncated", "bit", "no digest", "not ours", "folder"])
def test_what_is_damaged_is_not_trusted_and_made_again(folder: Path, learned: list[str], damage: str) -> None:
    place = folder / kept.FOLDER / "a.mp4.kept"
    content = place.read_bytes()
    middle = content.rindex(b"1")  # a digit of a time stamp: what it is then still reads as an index
    damaged = {
        "empty": b"",
        "truncated": content[: len(content) // 2],
        "bit": content[:middle] + b"3" + content[middle + 1 :],
        "no digest": content.split(b"\n", 1)[1],
        "not ours": kept._digest(b"3") + b"\n3",
        "folder": None,
    }[damage]
    place.unlink()
    if damaged is None:
        place.mkdir()
    else:
        place.write_bytes(damaged)
    assert EpisodeFolder(folder).episodes[0].frames == FRAMES
    assert learned == ["a.mp4"]
    if damaged is not None:
        assert place.read_bytes() == content
        assert sorted(path.name for path in place.parent.iterdir()) == ["a.jsonl.kept", "a.mp4.kept"]


def test_what_another_release_learned_is_learned_again(
    folder: Path, learned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_LEARNED_BY", [*index._LEARNED_BY[:-1], -1])
    EpisodeFolder(folder)
    assert learned == ["a.mp4"]


def test_a_sample_is_all_of_a_small_file_and_pieces_of_a_large_one(tmp_path: Path) -> None:
    small, large, file = 2**20, 2**24, tmp_path / "file"
    for size, places in ((small, range(0, small, 2**14 - 1)), (large, (0, large * 3 // 7, large - 1))):
        file.write_bytes(bytes(size))
        samples = {kept.sample(file)}
        for place in places:
            content = bytearray(size)
            content[place] = 1
            file.write_bytes(content)
            samples.add(kept.sample(file))
        assert len(samples) == 1 + len(places)
    file.write_bytes(b"")
    assert kept.sample(file) not in samples


def test_a_file_that_is_written_to_while_it_is_read_is_not_kept(folder: Path) -> None:
    file = folder / "c.txt"
    file.write_text("one")

    def learn() -> dict[str, int]:
        lengthen(file)
        return {"bytes": file.stat().st_size}

    for size in (4, 5):
        assert kept.kept(file, [1], learn) == {"bytes": size}
    assert not (folder / kept.FOLDER / "c.txt.kept").exists()


def test_where_nothing_can_be_kept_all_is_read_each_time(folder: Path, learned: list[str]) -> None:
    shutil.rmtree(folder / kept.FOLDER)
    (folder / kept.FOLDER).touch()
    for _ in range(2):
        assert EpisodeFolder(folder).episodes[0].frames == FRAMES
    assert learned == ["a.mp4", "a.jsonl"] * 2


def test_an_unusable_video_is_refused_each_time_and_nothing_kept_of_it(folder: Path) -> None:
    video = folder / "a.mp4"
    video.write_bytes(video.read_bytes()[:-2000])
    before = (folder / kept.FOLDER / "a.mp4.kept").read_bytes()
    for _ in range(2):
        with pytest.raises(InputError, match=r"a readable video at .*a\.mp4"):
            EpisodeFolder(folder)
    assert (folder / kept.FOLDER / "a.mp4.kept").read_bytes() == before
    assert json.loads(before.split(b"\n", 1)[1])[0][0][1] > video.stat().st_size, "it is of the whole video"

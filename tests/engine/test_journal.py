"""The journal: what is kept of a render that ended early, and read again, whatever became of the file."""

import os
import time
import warnings
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine import Engine, Plan, Story, Task
from nuwaxl.engine.journal import Journal, check_journal, discard_journal
from nuwaxl.errors import InputError

STORY = Story([(0, "red sky"), (9, "blue sea")])
PLAN = Plan(40, 4)  # 1 + 5 + 14 segments or so
SHAPE = (4, 3, 8, 8)
IDENTITY = {"model": 64 * "a", "frames": 40, "seed": 7}
HEADER = 8 + 4 + len('{"frames": 40, "model": "", "seed": 7}') + 64 + 4
RECORD = 12 + 4 * 4 * 3 * 8 * 8


def latents(segment: int) -> np.ndarray:
    """Another noise for every segment."""
    return np.random.default_rng(segment).standard_normal(SHAPE, np.float32)


def written(path: Path, segments: list[int]) -> None:
    """A journal of these."""
    journal = Journal(path, IDENTITY, SHAPE)
    assert list(journal.read(PLAN)) == []
    for segment in segments:
        journal.add(segment, latents(segment))
    journal.close()


def read(path: Path) -> list[int]:
    """Segments that are there, their latents compared."""
    journal = Journal(path, IDENTITY, SHAPE)
    found = dict(journal.read(PLAN))
    journal.close()
    for segment, values in found.items():
        np.testing.assert_array_equal(values, latents(segment))
    return list(found)


def test_what_was_added_is_read_again_and_more_can_be_added(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    written(path, [0, 2, 1])
    assert path.stat().st_size == HEADER + 3 * RECORD
    journal = Journal(path, IDENTITY, SHAPE)
    assert [segment for segment, _ in journal.read(PLAN)] == [0, 2, 1]
    journal.add(3, latents(3))
    journal.close()
    journal.add(4, latents(4))  # by a worker that comes too late
    assert read(path) == [0, 2, 1, 3]
    discard_journal(path)
    assert not path.exists()
    discard_journal(path)


@given(damage=st.integers(0, 3 * RECORD - 1), cut=st.booleans())
def test_of_a_damaged_file_the_records_that_are_whole_are_used(
    tmp_path_factory: pytest.TempPathFactory, damage: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.journal"
    written(path, [0, 2, 1])
    content = bytearray(path.read_bytes())
    if cut:
        del content[HEADER + damage :]
        whole = [0, 2, 1][: damage // RECORD]
    else:
        content[HEADER + damage] ^= 0x40
        whole = ([], [0, 1], [0, 2])[damage // RECORD]  # 0 is the parent of the others
    path.write_bytes(content)
    journal = Journal(path, IDENTITY, SHAPE)
    assert [segment for segment, _ in journal.read(PLAN)] == whole
    for segment in {0, 1, 2} - set(whole):
        journal.add(segment, latents(segment))
    journal.close()
    assert sorted(read(path)) == [0, 1, 2]


@pytest.mark.parametrize("segments", [[1], [0, 0], [0, len(PLAN)], [0, 2**40]])
def test_records_that_cannot_be_are_not_used(tmp_path: Path, segments: list[int]) -> None:
    path = tmp_path / "a.journal"
    written(path, segments)
    assert read(path) == segments[: len(segments) - 1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 8}, "seed 7 instead of 8"),
        ({"model": 64 * "b"}, "another model"),
        ({"seed": 8, "frames": 50}, "frames 40 instead of 50, seed 7 instead of 8"),
        ({"steps": 4}, "steps None instead of 4"),
    ],
)
def test_that_of_another_render_is_refused_and_stays(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = tmp_path / "a.journal"
    written(path, [0])
    for use in (lambda: Journal(path, IDENTITY | change, SHAPE), lambda: check_journal(path, IDENTITY | change)):
        with pytest.raises(InputError, match=f"found that of another: {said}; .*remove it"):
            use()
    with pytest.raises(InputError) as refused:
        check_journal(path, IDENTITY | change)
    assert "precision" not in str(refused.value)  # is not what differs
    assert read(path) == [0]


@pytest.mark.parametrize(
    "content", [b"notes", b"NUWAXLJ1", b"NUWAXLJ1\xff\xff\xff\xff{}", b"NUWAXLJ1\x02\0\0\0{}\0\0\0\0"]
)
def test_what_is_no_journal_is_refused_and_stays(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.journal"
    path.write_bytes(content)
    for use in (lambda: Journal(path, IDENTITY, SHAPE), lambda: check_journal(path, IDENTITY)):
        with pytest.raises(InputError, match=r"expected a journal of nuwaxl in .*; found something else"):
            use()
    if content == b"notes":
        with pytest.raises(InputError, match="found something else"):
            discard_journal(path)
    assert path.read_bytes() == content


def test_a_pipe_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    os.mkfifo(path)
    for use in (
        lambda: Journal(path, IDENTITY, SHAPE),
        lambda: check_journal(path, IDENTITY),
        lambda: discard_journal(path),
    ):
        with pytest.raises(InputError, match="found something else"):
            use()
    assert path.exists()


def test_one_that_is_in_use_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    journal = Journal(path, IDENTITY, SHAPE)
    for use in (lambda: Journal(path, IDENTITY, SHAPE), lambda: check_journal(path, IDENTITY)):
        with pytest.raises(InputError, match="found another render that uses it"):
            use()
    with pytest.raises(InputError, match="found another render that uses it"):
        discard_journal(path)
    journal.close()
    check_journal(path, IDENTITY)


def test_a_forked_process_does_not_keep_the_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "a.journal", IDENTITY, SHAPE)
    asked, answered = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        os.close(answered)
        os.read(asked, 1)
        os._exit(0)
    journal.close()
    Journal(tmp_path / "a.journal", IDENTITY, SHAPE).close()
    os.close(answered)
    os.waitpid(child, 0)


def test_where_none_can_be_kept_it_is_said_before_any_work(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "folder").mkdir()
    with Engine.open(tiny_bundle) as engine:
        for name, said in (("folder", "Is a directory"), ("absent/a.journal", "No such file"), ("", "file name")):
            journal = tmp_path / name if name else name
            with pytest.raises(InputError, match=said):
                engine.render(STORY, frames=9, journal=journal)
            with pytest.raises(InputError, match=f"in task 1, .*{said}"):
                engine.render_many([Task(STORY, frames=9), Task(STORY, frames=9, journal=journal)])
        with pytest.raises(InputError, match="found 7"):
            engine.render(STORY, frames=9, journal=7)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_one_without_a_segment_does_not_stay(tmp_path: Path) -> None:
    check_journal(tmp_path / "a.journal", IDENTITY)
    written(tmp_path / "a.journal", [])
    assert list(tmp_path.iterdir()) == []


def test_one_that_was_not_read_to_its_end_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    written(path, [0, 2])
    Journal(path, IDENTITY, SHAPE).close()
    journal = Journal(path, IDENTITY, SHAPE)
    next(journal.read(PLAN))
    journal.close()
    assert read(path) == [0, 2]


def test_what_others_began_in_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    journal = Journal(path, IDENTITY, SHAPE)
    path.unlink()
    written(path, [0])
    journal.close()
    assert read(path) == [0]


def test_one_that_cannot_be_removed_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    journal = Journal(tmp_path / "a.journal", IDENTITY, SHAPE)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refused)
        journal.close()
    assert read(tmp_path / "a.journal") == []


def test_a_link_stays_where_it_is_and_what_it_points_to_is_the_journal(tmp_path: Path) -> None:
    link, target = tmp_path / "a.journal", tmp_path / "elsewhere"
    link.symlink_to(target)
    check_journal(link, IDENTITY)
    assert (link.is_symlink(), target.exists()) == (True, False)
    written(link, [0])
    assert read(target) == [0]
    discard_journal(link)
    assert (link.is_symlink(), target.exists()) == (True, False)


def test_reading_takes_time_in_proportion_to_the_segments(tmp_path: Path) -> None:
    """A second or less; with all before looked at for each, it was a quarter of a minute."""
    plan, nothing = Plan(200_000, 4), np.zeros((4, 1, 1, 1), np.float32)
    journal = Journal(tmp_path / "a.journal", IDENTITY, nothing.shape)
    for segment in range(60_000):
        journal.add(segment, nothing)
    journal.close()
    journal = Journal(tmp_path / "a.journal", IDENTITY, nothing.shape)
    began = time.process_time()
    assert sum(1 for _ in journal.read(plan)) == 60_000
    assert time.process_time() - began < 5
    journal.close()


def test_where_there_is_no_room_for_a_header_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(FileIO):
        def write(self, content: Any) -> int:
            return super().write(content[:20])

    with monkeypatch.context() as patch:
        patch.setattr("nuwaxl.engine.journal.FileIO", Full)
        with pytest.raises(InputError, match="No space left on device"):
            Journal(tmp_path / "a.journal", IDENTITY, SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_warning_and_the_render_goes_on(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, content: bytes, at: int) -> int:
        return os.write(file, content[:100])  # as a disk that has no room for the rest

    with Engine.open(tiny_bundle) as engine:
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.warns(UserWarning, match="could not be resumed from here"):
            clips = list(engine.render(STORY, frames=30, journal=tmp_path / "a.journal"))
    assert sum(len(clip.frames) for clip in clips) == 30

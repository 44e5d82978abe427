"""The journal: what is kept of a render that ended early, and that the same render goes on from there and no other."""

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine import Engine, Plan, Progress, Story, Task
from nuwaxl.engine.journal import Journal, check_journal, discard_journal
from nuwaxl.engine.resumption import identity, made_of, open_journal
from nuwaxl.errors import InputError, RenderCancelled, RenderError

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


def interrupted(engine: Engine, task: Task, steps: int, **options: Any) -> None:
    """A render that somebody ends after so many steps of segments."""

    def leave(progress: Progress) -> None:
        if progress.phase == "diffuse" and progress.done >= steps:
            raise EOFError

    with pytest.raises(EOFError):
        list(engine.render_many([task], progress=leave, **options))


def frames_of(clips: Any) -> np.ndarray:
    return np.concatenate([clip.frames for clip in clips])


@pytest.mark.parametrize("policy", ["eager", "level", "latency"])
@pytest.mark.parametrize("method", ["tree", "autoregressive"])
@pytest.mark.parametrize("steps", [6, 30, 60])
def test_a_render_goes_on_where_it_was_interrupted(
    hooked_engine: Callable[..., Engine], tmp_path: Path, policy: Any, method: Any, steps: int
) -> None:
    """On other devices, by another policy and in other batches, more than once; nothing is denoised twice."""
    moved = 0

    def count() -> None:
        nonlocal moved
        moved += 1

    path = tmp_path / "a.journal"
    task = Task(STORY, frames=60, method=method, seed=3, steps=4)
    engine = hooked_engine("cpu:2")
    whole = frames_of(engine.render(STORY, frames=60, method=method, seed=3, steps=4))
    for _ in range(2):
        interrupted(engine, replace(task, journal=path), steps, policy=policy)
        steps += 10
    kept = (path.stat().st_size - path.read_bytes().index(b"}") - 5) // RECORD
    alone = hooked_engine("cpu:1", before_step=count)
    alone.costs(1)
    moved = 0
    seen: list[int] = []
    video = alone.render(
        STORY, frames=60, method=method, seed=3, steps=4, journal=path, max_batch=1,
        progress=lambda progress: seen.append(progress.done) if progress.phase == "diffuse" else None,
    )  # fmt: skip
    found = frames_of(video)
    segments = len(engine.resolve(task).plan)
    assert kept >= 1
    assert moved == 4 * (segments - kept)
    assert 4 * kept <= seen[0] <= 4 * kept + 4
    assert seen[-1] == 4 * segments
    assert np.abs(found.astype(int) - whole).max() <= 1
    assert not path.exists()


def test_what_is_whole_is_only_decoded(hooked_engine: Callable[..., Engine], tmp_path: Path) -> None:
    """As where the disk was full when the video was written."""
    path = tmp_path / "a.journal"
    calls: list[str] = []
    engine = hooked_engine("cpu:2", before_step=lambda: calls.append("step"))
    clips = iter(engine.render(STORY, frames=30, journal=path))
    whole = [next(clips)]
    while sum(len(clip.frames) for clip in whole) < 30:
        whole.append(next(clips))
    clips.close()  # before the end was asked for
    assert path.exists()
    calls.clear()
    np.testing.assert_array_equal(frames_of(engine.render(STORY, frames=30, journal=path)), frames_of(whole))
    assert calls == []
    assert not path.exists()


def test_frames_per_second_are_of_what_was_made_now(hooked_engine: Callable[..., Engine], tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    engine = hooked_engine("cpu:2")
    interrupted(engine, Task(STORY, frames=60, journal=path), 10)
    whole, again = engine.render(STORY, frames=60), engine.render(STORY, frames=60, journal=path)
    frames_of(whole)
    frames_of(again)
    assert (whole.stats.restored, whole.stats.frames_per_s) == (0, pytest.approx(60 / whole.stats.wall_s))
    restored, segments = again.stats.restored, again.stats.segments
    assert 0 < restored < segments
    made = {segment for batch in again.stats.batches if batch.kind == "diffuse" for segment in batch.segments}
    assert len(made) == segments - restored
    assert again.stats.frames_per_s == pytest.approx(60 * len(made) / segments / again.stats.wall_s)


def test_it_goes_only_when_the_video_is_written(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.journal"

    def broken(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with Engine.open(tiny_bundle) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", broken)
            with pytest.raises(RenderError, match="No space left"):
                engine.render(STORY, frames=30, journal=path).save(tmp_path / "a.mp4")
            videos = engine.render_many([Task(STORY, frames=30, journal=tmp_path / "b.journal"), Task(STORY, frames=9)])
            results = videos.save([tmp_path / "b.mp4", tmp_path / "c.mp4"])
        assert ["No space left" in str(result.error) for result in results] == [True, True]
        assert sorted(file.name for file in tmp_path.iterdir()) == ["a.journal", "b.journal"]
        engine.render(STORY, frames=30, journal=path).save(tmp_path / "a.mp4")
        videos.save([tmp_path / "b.mp4", tmp_path / "c.mp4"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "c.mp4"]


def test_that_of_a_render_that_took_over_meanwhile_is_not_removed(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last clip, after which the journal is nobody's, and the end of the file."""
    path, replace_file = tmp_path / "a.journal", Path.replace
    with Engine.open(tiny_bundle) as engine:
        request = engine.resolve(Task(STORY, frames=30, journal=path))
        others: list[Journal | None] = []

        def taken_over(file: Path, target: Path) -> Path:
            if target == tmp_path / "a.mp4":  # measured costs are kept in a file as well
                others.append(open_journal(engine.bundle.manifest, STORY, request))
            return replace_file(file, target)

        monkeypatch.setattr(Path, "replace", taken_over)
        for save in (
            lambda: engine.render(STORY, frames=30, journal=path).save(tmp_path / "a.mp4"),
            lambda: engine.render_many([Task(STORY, frames=30, journal=path)]).save([tmp_path / "a.mp4"]),
        ):
            save()
            assert path.exists()
            other = others.pop()
            assert other is not None
            other.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_a_journal_whose_reading_ends_early_is_let_go(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Though somebody keeps the traceback, as notebooks do; and a disk that fails costs that job alone."""
    path = tmp_path / "a.journal"

    def broken(*_: Any) -> None:
        raise error

    with Engine.open(tiny_bundle) as engine:
        clips = iter(engine.render(STORY, frames=30, journal=path))
        next(clips)
        clips.close()
        before = path.read_bytes()
        videos = engine.render_many([Task(STORY, frames=30, journal=path), Task(STORY, frames=9)])
        with monkeypatch.context() as patch:
            patch.setattr(Journal, "_next", broken)
            if isinstance(error, OSError):
                list(videos)
                first, second = (result.error for result in videos.results)
                assert "Input/output error" in str(first)
                assert second is None
            else:
                with pytest.raises(KeyboardInterrupt) as kept:
                    list(videos)
                assert kept.value is error
        assert path.read_bytes() == before
        list(engine.render(STORY, frames=30, journal=path))
    assert not path.exists()


def test_cancelling_while_a_journal_is_read_ends_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.journal"
    with Engine.open(tiny_bundle) as engine:
        clips = iter(engine.render(STORY, frames=30, journal=path))
        next(clips)
        clips.close()
        before = path.read_bytes()
        video = engine.render(STORY, frames=30, journal=path)
        read: list[int] = []
        read_next = Journal._next

        def cancelled(journal: Journal) -> Any:
            video.cancel()
            read.append(journal._at)
            return read_next(journal)

        with monkeypatch.context() as patch:
            patch.setattr(Journal, "_next", cancelled)
            with pytest.raises(RenderCancelled):
                next(iter(video))
        assert len(read) == 1
        assert path.read_bytes() == before
        list(engine.render(STORY, frames=30, journal=path))


def test_a_video_says_of_what_it_is_made(tiny_bundle: Path) -> None:
    """Of the decoder's windows as well, which a journal has nothing to do with; and numbers may be numpy's."""
    with Engine.open(tiny_bundle) as engine:
        manifest = engine.bundle.manifest
        request = engine.resolve(Task(STORY, frames=30))
        numpys = Story([(np.int64(scene.at), scene.prompt) for scene in STORY.scenes])  # type: ignore[misc]
    other = replace(manifest, network=replace(manifest.network, decode_overlap=0))
    assert made_of(manifest, STORY, request) == made_of(manifest, numpys, request)
    assert made_of(manifest, STORY, request) != made_of(other, STORY, request)
    assert identity(manifest, STORY, request) == identity(other, STORY, request)


def test_what_devices_compute_in_is_part_of_what_is_rendered(tiny_bundle: Path, tmp_path: Path) -> None:
    """What was begun in bfloat16 does not go on in float32 unsaid."""
    path = tmp_path / "a.journal"
    with Engine.open(tiny_bundle, "cpu:2") as engine:
        first, second = engine.workers
        engine.workers = (replace(first, precision="bf16"), replace(second, precision="bf16"))
        clips = iter(engine.render(STORY, frames=30, journal=path))
        next(clips)
        clips.close()
        engine.workers = (first, replace(second, precision="bf16"))
        with pytest.raises(InputError, match="precision 'bf16' instead of 'bf16 and fp32'"):
            engine.render(STORY, frames=30, journal=path)
    with Engine.open(tiny_bundle) as engine, pytest.raises(InputError, match="precision 'bf16' instead of 'fp32'"):
        engine.render(STORY, frames=30, journal=path)


def test_of_two_videos_with_one_journal_only_one_is_rendered(tiny_bundle: Path, tmp_path: Path) -> None:
    task = Task(STORY, frames=9, journal=tmp_path / "a.journal")
    with Engine.open(tiny_bundle) as engine:
        videos = engine.render_many([task, task])
        list(videos)
    first, second = (result.error for result in videos.results)
    assert first is None
    assert "another render that uses it" in str(second)

"""Renders that go on from a journal: on any devices, where they ended, and no other render than the same."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Engine, Progress, Story, Task
from nuwaxl.engine.journal import Journal
from nuwaxl.engine.resumption import identity, made_of, open_journal
from nuwaxl.errors import InputError, RenderCancelled, RenderError

STORY = Story([(0, "red sky"), (9, "blue sea")])
RECORD = 12 + 4 * 4 * 3 * 8 * 8  # bytes of a segment


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
    steps = 0

    def fail() -> None:  # ends the render by the steps that were taken, however late the consumer hears of them
        nonlocal steps
        steps += 1
        if steps == 4 * 5:
            raise MemoryError("no more")

    engine = hooked_engine("cpu:2", before_step=fail)
    with pytest.raises(RenderError, match="no more"):
        frames_of(engine.render(STORY, frames=60, steps=4, journal=path, max_batch=1))
    whole, again = (engine.render(STORY, frames=60, steps=4, journal=journal) for journal in (None, path))
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
    with Engine.open(tiny_bundle) as engine:
        with pytest.raises(InputError, match=r"precision 'bf16' instead of 'fp32'; .*torch:cuda:0/bfloat16") as refused:
            engine.render(STORY, frames=30, journal=path)
        assert "devices of two" in str(refused.value)
        with pytest.raises(InputError, match=r"found that of another: seed 0 instead of 1, precision .*torch:"):
            engine.render(STORY, frames=30, journal=path, seed=1)


def test_of_two_videos_with_one_journal_only_one_is_rendered(tiny_bundle: Path, tmp_path: Path) -> None:
    task = Task(STORY, frames=9, journal=tmp_path / "a.journal")
    with Engine.open(tiny_bundle) as engine:
        videos = engine.render_many([task, task])
        list(videos)
    first, second = (result.error for result in videos.results)
    assert first is None
    assert "another render that uses it" in str(second)

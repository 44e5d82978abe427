"""nuwaxl-render --jobs: many stories, one bad line fails alone, a summary says how each fared."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from nuwaxl.engine import Engine, Story
from nuwaxl.engine.cli import main
from nuwaxl.engine.jobs import Outcome, read_jobs, render_jobs

Line = dict[str, object] | str
Jobs = Callable[..., tuple[int, dict[str, Any], str]]  # exit status, summary.json, what was printed on stderr


@pytest.fixture
def jobs(tiny_bundle: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Jobs:
    """Runs the command on lines; gives its status, its summary, and what it printed on stderr."""

    def run(*lines: Line, options: tuple[str, ...] = ()) -> tuple[int, dict[str, Any], str]:
        file = tmp_path / "jobs.jsonl"
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        out = tmp_path / "videos"
        status = main(["--jobs", str(file), "--out-dir", str(out), "--bundle", str(tiny_bundle), *options])
        written = out / "summary.json"
        return status, json.loads(written.read_text()) if written.exists() else {}, capsys.readouterr().err

    return run


def frames_in(path: Path) -> int:
    """Number of frames of a video file."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_every_job_becomes_a_video(jobs: Jobs, tmp_path: Path) -> None:
    status, summary, error = jobs(
        {"story": "story.toml", "frames": 21, "out": "a.mp4"},
        "",
        {"story": "story.toml", "frames": 7, "out": "sub/b.mp4", "seed": 5, "steps": 2, "guidance": 1.5},
        options=("--devices", "cpu:2"),
    )
    assert (status, error) == (0, "")
    assert frames_in(tmp_path / "videos" / "a.mp4") == 21
    assert frames_in(tmp_path / "videos" / "sub" / "b.mp4") == 7
    assert (summary["schema"], summary["done"], summary["failed"], summary["frames"]) == ("nuwaxl-jobs/1", 2, 0, 28)
    assert [(result["line"], result["out"], result["error"]) for result in summary["results"]] == [
        (1, "a.mp4", None),
        (3, "sub/b.mp4", None),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "a JSON object"),
        ("[1]", "found list"),
        ('{"story": "story.toml", "frames": 5, "out": "b.mp4", "frames": 7}', "found the key 'frames' twice"),
        ({"story": "story.toml", "frames": 5, "out": "b.mp4/"}, "a file name as out"),
        ({"story": "story.toml", "frames": 5}, "a file name as out"),
        ({"frames": 5, "out": "b.mp4"}, "a file name as story"),
        ({"story": "absent.toml", "frames": 5, "out": "b.mp4"}, "absent.toml"),
        ({"story": "story.toml", "out": "b.mp4"}, "a number of frames"),
        ({"story": "story.toml", "frames": 2.5, "out": "b.mp4"}, "2.5"),
        ({"story": "story.toml", "frames": 5, "out": "../b.mp4"}, "relative name without"),
        ({"story": "story.toml", "frames": 5, "out": "/b.mp4"}, "relative name without"),
        ({"story": "story.toml", "frames": 5, "out": "b.gif"}, "ending in .mp4"),
        ({"story": "story.toml", "frames": 5, "out": "a.mp4"}, "an out of its own"),
        ({"story": "story.toml", "frames": 5, "out": "./sub/../a.mp4"}, "an out of its own"),
        ({"story": "story.toml", "frames": 5, "out": "a.mp4/b.mp4"}, "none as the folder of another's"),
        ({"story": "story.toml", "frames": 5, "out": "x/../../b.mp4"}, "relative name without"),
        ({"story": "story.toml", "frames": 5, "out": "outside/b.mp4"}, "a link leads out of it"),
        ({"story": "story.toml", "frames": 5, "out": "b\0.mp4"}, "a file name as out"),
        ({"story": "story\0.toml", "frames": 5, "out": "b.mp4"}, "a file name as story"),
        ('{"story": "story.toml", "frames": 5, "out": "\\ud800.mp4"}', "a file name as out"),
        ({"story": "story.toml", "frames": 5, "out": 300 * "b" + ".mp4"}, "too long"),
        ({"story": ".", "frames": 5, "out": "b.mp4"}, "a story in a .toml"),
        ({"story": "story.toml", "frames": 5, "out": "b.mp4", "speed": 3}, "speed"),
        ({"story": "story.toml", "frames": 5, "out": "b.mp4", "steps": 0}, "steps"),
        ({"story": "story.toml", "frames": 5, "out": "b.mp4", "guidance": "much"}, "guidance"),
        ('{"story": "story.toml", "frames": 5, "out": "b.mp4", "guidance": 1e300}', "from 0 to 1000; found 1e+300"),
        ('{"story": "story.toml", "frames": 5, "out": "b.mp4", "guidance": NaN}', "found nan"),
        ({"story": "story.toml", "frames": 5, "out": "b.mp4", "seed": -1}, "seed"),
        ({"story": "story.toml", "frames": 5, "out": "a\0b.mp4"}, "a file name as out"),
        ({"story": "a\0b.toml", "frames": 5, "out": "b.mp4"}, "a file name as story"),
        ({"story": "story.toml", "frames": 5, "out": "half a pair: \ud800.mp4"}, "a file name as out"),
        pytest.param("[" * 100_000, "nested too deeply", id="nested"),
    ],
)
def test_a_bad_line_fails_alone(jobs: Jobs, line: Line, said: str, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "outside").symlink_to(tmp_path)
    status, summary, error = jobs({"story": "story.toml", "frames": 5, "out": "a.mp4"}, line)
    assert status == 1
    assert sorted(path.name for path in tmp_path.glob("*.mp4")) == []
    assert frames_in(tmp_path / "videos" / "a.mp4") == 5
    good, bad = summary["results"]
    assert good["error"] is None
    assert (bad["line"], bad["wall_s"]) == (2, None)
    assert said in bad["error"]
    lines = error.splitlines()
    assert lines[0] == f"job on line 2 failed: {bad['error']}"
    assert "1 of 2 jobs failed" in lines[1]
    assert len(lines) == 2


def test_links_within_the_folder_are_followed_and_no_two_jobs_write_one_file(jobs: Jobs, tmp_path: Path) -> None:
    inner = tmp_path / "real" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "videos").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "to-inner").symlink_to(inner)
    (tmp_path / "real" / "a.mp4").symlink_to(tmp_path / "kept.mp4")
    (tmp_path / "kept.mp4").write_text("mine")
    status, summary, _ = jobs(
        {"story": "story.toml", "frames": 5, "out": "a.mp4"},  # would be written outside
        {"story": "story.toml", "frames": 6, "out": "to-inner/b.mp4"},
        {"story": "story.toml", "frames": 7, "out": "inner/b.mp4"},  # the same file
    )
    assert status == 1
    assert [result["error"] is None for result in summary["results"]] == [False, True, False]
    assert "a link leads out of it" in summary["results"][0]["error"]
    assert (tmp_path / "kept.mp4").read_text() == "mine"
    assert frames_in(inner / "b.mp4") == 6


def test_a_folder_that_goes_away_meanwhile_fails_its_jobs_alone(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nuwaxl.engine import videos

    class Leaving(videos.Render):
        def events(self) -> Any:
            (tmp_path / "videos" / "sub").rmdir()
            return super().events()

    monkeypatch.setattr("nuwaxl.engine.engine.Render", Leaving)
    status, summary, _ = jobs(
        {"story": "story.toml", "frames": 5, "out": "sub/a.mp4"}, {"story": "story.toml", "frames": 5, "out": "b.mp4"}
    )
    assert status == 1
    assert [result["error"] is None for result in summary["results"]] == [False, True]
    assert "sub" in summary["results"][0]["error"]


def test_a_name_that_a_bad_job_asked_for_is_free_for_a_good_one(jobs: Jobs, tmp_path: Path) -> None:
    status, summary, _ = jobs(
        {"story": "story.toml", "frames": 5, "out": "."},
        {"story": "story.toml", "frames": 5, "out": ""},
        {"story": "absent.toml", "frames": 5, "out": "a.mp4"},
        {"story": "story.toml", "frames": 5, "out": "a.mp4"},
    )
    assert (status, [result["error"] is None for result in summary["results"]]) == (1, [False, False, False, True])
    assert "an out below" in summary["results"][0]["error"]
    assert frames_in(tmp_path / "videos" / "a.mp4") == 5


def test_a_file_without_jobs_is_refused(jobs: Jobs, tmp_path: Path) -> None:
    status, summary, error = jobs("", "")
    assert (status, summary) == (2, {})
    assert "at least one job" in error
    assert main(["--jobs", str(tmp_path / "absent"), "--out-dir", str(tmp_path)]) == 2


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_no_name_for_the_folder_is_refused(
    name: str, story_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As from a variable of a script that is not set: the videos would be in the folder one happens to be in."""
    monkeypatch.chdir(tmp_path)
    Path("jobs.jsonl").write_text(json.dumps({"story": story_file.name, "frames": 3, "out": "a.mp4"}))
    assert main(["--jobs", "jobs.jsonl", "--out-dir", name]) == 2
    assert f"expected a name as --out-dir; found {name!r}" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"jobs.jsonl", story_file.name}


def test_a_disk_that_is_full_leaves_the_summary_of_before(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        written = write_bytes(path, content)
        if "summary" in path.name:
            os.truncate(path, 0)
            raise OSError(28, "No space left on device")
        return written

    monkeypatch.setattr(Path, "write_bytes", full)
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: full(path, text.encode()))
    (tmp_path / "videos").mkdir()
    write_bytes(tmp_path / "videos" / "summary.json", b'"of before"')
    status, summary, error = jobs({"story": "story.toml", "frames": 3, "out": "a.mp4"})
    assert (status, summary) == (1, "of before")
    assert "summary.json failed: No space left on device" in error
    assert frames_in(tmp_path / "videos" / "a.mp4") == 3


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["some notes", "", "of mine"], r"with a JSON object on line 1; found .* \(other bad lines: 1\); correct"),
        ([{"story": "absent.toml", "frames": 5, "out": "a.mp4"}], "with a readable story at .* on line 1; found No"),
        ([{"story": "story.toml", "frames": 0, "out": "a.mp4"}], "with frames: a whole number .* on line 1; found 0;"),
    ],
)
def test_where_no_job_is_good_the_input_is_bad_and_the_summary_of_before_stays(
    jobs: Jobs, tmp_path: Path, lines: list[Line], said: str
) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "summary.json").write_text('"of before"')
    status, summary, error = jobs(*lines)
    assert (status, summary) == (2, "of before")
    assert re.search(f"^nuwaxl-render: error: expected a job that can be rendered, {said}", error)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--jobs", "j"], "--out-dir DIR with --jobs"),
        (["--jobs", "j", "--out-dir", "d", "s.toml"], "STORY"),
        (["--jobs", "j", "--out-dir", "d", "--frames", "3"], "--frames"),
        (["--jobs", "j", "--out-dir", "d", "--negative-prompt", "x"], "--negative-prompt"),
        ([], "a STORY and --out FILE, or --jobs FILE and --out-dir DIR; found no STORY"),
        (["s.toml"], "found no --out"),
        (["s.toml", "--out", "a.mp4", "--out-dir", "d"], "found --out-dir, no --jobs"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_summary_that_cannot_be_written_is_one_line_and_status_1(
    tiny_bundle: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "videos"
    (out / "summary.json").mkdir(parents=True)
    file = tmp_path / "jobs.jsonl"
    file.write_text(json.dumps({"story": story_file.name, "frames": 3, "out": "a.mp4"}))
    assert main(["--jobs", str(file), "--out-dir", str(out), "--bundle", str(tiny_bundle)]) == 1
    error = capsys.readouterr().err
    assert "summary.json failed" in error
    assert error.count("\n") == 1
    assert frames_in(out / "a.mp4") == 3


def test_a_second_run_renders_what_the_first_left(jobs: Jobs, tmp_path: Path) -> None:
    lines: list[Line] = [
        {"story": "story.toml", "frames": 21, "out": "a.mp4"},
        {"story": "story.toml", "frames": 9, "out": "b.mp4"},
        {"story": "story.toml", "frames": 9, "out": "c.mp4", "seed": 1},
    ]
    status, first, _ = jobs(*lines)
    assert (status, first["done"], first["there"], first["frames"]) == (0, 3, 0, 39)
    videos = tmp_path / "videos"
    before = {name: (videos / name).stat().st_mtime_ns for name in ("a.mp4", "b.mp4", "c.mp4")}
    (videos / "b.mp4").write_bytes(b"no video")
    lines[2] = {"story": "story.toml", "frames": 9, "out": "c.mp4", "seed": 2}
    status, again, _ = jobs(*lines)
    assert (status, again["done"], again["there"], again["frames"]) == (0, 3, 1, 18)
    assert [(result["there"], result["wall_s"] is None) for result in again["results"]] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    after = {name: (videos / name).stat().st_mtime_ns for name in before}
    assert [after[name] == before[name] for name in before] == [True, False, False]
    assert frames_in(videos / "b.mp4") == 9
    status, fresh, _ = jobs(*lines, options=("--fresh",))
    assert (status, fresh["done"], fresh["there"], fresh["frames"]) == (0, 3, 0, 39)


def test_what_a_journal_had_is_told_and_is_not_in_the_frames_per_second(
    jobs: Jobs, tiny_bundle: Path, story_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    journal = tmp_path / "videos" / "a.mp4.journal"
    with Engine.open(tiny_bundle) as engine:
        clips = iter(engine.render(Story.load(story_file), frames=60, journal=journal))
        next(clips)  # of several segments; all of them may be finished by now
        clips.close()
    os.truncate(journal, journal.stat().st_size - 1)  # the last is not whole
    lines: list[Line] = [
        {"story": "story.toml", "frames": frames, "out": f"{name}.mp4"} for name, frames in (("a", 60), ("b", 20))
    ]
    status, summary, _ = jobs(*lines)
    first, second = summary["results"]
    assert 0 < first["restored"] < first["segments"]
    assert second["restored"] == 0
    assert (status, summary["frames"], summary["restored"]) == (0, 80, first["restored"])
    made = 60 * (1 - first["restored"] / first["segments"]) + 20
    assert summary["frames_per_s"] == pytest.approx(made / summary["wall_s"], rel=1e-4)


def test_a_journal_of_another_video_fails_its_job_alone(jobs: Jobs, tmp_path: Path) -> None:
    line = {"story": "story.toml", "frames": 9, "out": "a.mp4"}
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4.journal").write_text("mine")
    status, summary, error = jobs(line, {**line, "out": "b.mp4"})
    assert (status, summary["done"], summary["failed"]) == (1, 1, 1)
    assert "expected a journal of nuwaxl" in error
    assert (tmp_path / "videos" / "a.mp4.journal").read_text() == "mine"


def test_every_outcome_is_told_and_no_journal_stays_beside_a_complete_video(tiny_bundle: Path, tmp_path: Path) -> None:
    """A run that is killed after it gave a video its name leaves the journal."""
    (tmp_path / "story.toml").write_text('[[scene]]\nat = 0\nprompt = "red sky"\n')
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"story": "story.toml", "frames": 9, "out": "a.mp4"}\n{}')
    journal = tmp_path / "a.mp4.journal"
    with Engine.open(tiny_bundle) as engine:
        jobs = read_jobs(file, tmp_path)
        begun: list[int] = []
        render_jobs(engine, jobs, on_begin=begun.append)
        assert jobs[0].task is not None
        clips = iter(engine.render(jobs[0].task.story, frames=9, journal=journal))
        next(clips)
        clips.close()
        assert journal.exists()
        told: list[Outcome] = []
        outcomes = render_jobs(engine, jobs, on_begin=begun.append, on_end=told.append)
        assert begun == [len(engine.resolve(jobs[0].task).plan)]
    assert [outcome.there for outcome in outcomes] == [True, False]
    assert sorted(told, key=lambda outcome: outcome.line) == outcomes
    assert not journal.exists()

"""nuwaxl-render: exit status, one-line errors, and the file it leaves."""

import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import av
import pytest

from nuwaxl.engine import Engine, Progress, Story
from nuwaxl.engine.cli import main
from nuwaxl.engine.jobs import journal_of
from nuwaxl.engine.progress_bars import ProgressBars


def run(*argv: object) -> int:
    """Exit status of the command, run in this process."""
    try:
        return main([str(argument) for argument in argv])
    except SystemExit as stop:  # argparse's way out
        return int(stop.code or 0)


def frames_in(path: Path) -> int:
    """Number of frames of a video file."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("options", [[], ["--devices", "cpu:2", "--steps", 3, "--policy", "level", "--seed", 9]])
def test_a_story_becomes_an_mp4_file(
    tiny_bundle: Path,
    story_file: Path,
    tmp_path: Path,
    options: list[object],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.mp4"
    assert run(story_file, "--frames", 21, "--out", out, "--bundle", tiny_bundle, *options) == 0
    assert frames_in(out) == 21
    printed = capsys.readouterr()
    assert "21 frames" in printed.out
    assert printed.err == ""


def test_help_shows_every_option_and_a_story(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    options = "frames out bundle devices seed steps guidance policy max-batch sampler depth negative-prompt"
    for word in [*(f"--{option}" for option in options.split()), "[[scene]]", "exit status"]:
        assert word in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--frames", "0"], "--frames: expected a whole number of at least 1; found 0"),
        (["--frames", "-5"], "found -5"),
        (["--frames", "2.5"], "found '2.5'"),
        (["--frames", "many"], "found 'many'"),
        (["--frames", "9" * 30], "at least 1"),
        (["--frames", "2000000"], "from 1 to 1048576; found 2000000"),
        (["--frames", "29", "--depth", "3"], "at most 28 frames"),
        (["--devices", "gpu9"], '"gpu9"'),
        (["--devices", "cuda,cuda:0"], "every GPU once"),
        (["--seed", "-1"], "--seed"),
        (["--steps", "0"], "--steps"),
        (["--steps", "101"], "from 1 to 100"),
        (["--guidance", "nan"], "--guidance: expected a finite number"),
        (["--guidance", "-1"], "at least 0"),
        (["--guidance", "1e300"], "guidance: a finite number from 0 to 1000; found 1e+300"),
        (["--policy", "lazy"], "lazy"),
        (["--max-batch", "0"], "--max-batch"),
        (["--out", "out.gif"], "ending in .mp4"),
        (["--out", "/absent/out.mp4"], "existing folder"),
        (["--bundle", "/absent"], "nothing there"),
        (["--fames", "3"], "--fames"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(
    tiny_bundle: Path,
    story_file: Path,
    tmp_path: Path,
    options: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = ["--frames", "5", "--out", tmp_path / "out.mp4", "--bundle", tiny_bundle]
    assert run(story_file, *good, *options) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert printed.err.startswith("nuwaxl-render: error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file"),
        ('[[scene]]\nat = 3\nprompt = "a"', "first scene at frame 0"),
        ("= 3", "expected in"),
    ],
)
def test_a_bad_story_is_one_line_and_status_2(
    tiny_bundle: Path, tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    story = tmp_path / "bad.toml"
    story.write_text(text)
    assert run(story, "--frames", 5, "--out", tmp_path / "out.mp4", "--bundle", tiny_bundle) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(story) in error
    assert error.count("\n") == 1


def test_damaged_bundles_are_one_line_and_status_2(
    own_bundle: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error() -> str:
        assert run(story_file, "--frames", 5, "--out", tmp_path / "out.mp4", "--bundle", own_bundle) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1
        return text

    manifest = own_bundle / "manifest.json"
    original = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(original), "format_version": 99}))
    assert "upgrade nuwaxl" in error()
    manifest.write_text(original)
    graph = own_bundle / "decode.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "has changed" in error()
    graph.unlink()
    assert "decode.onnx" in error()


def test_a_missing_frame_count_is_refused_and_the_storys_is_taken(
    tiny_bundle: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.mp4"
    assert run(story_file, "--out", out, "--bundle", tiny_bundle) == 2
    assert "give frames (--frames N)" in capsys.readouterr().err
    story_file.write_text("frames = 6\n" + story_file.read_text())
    assert run(story_file, "--out", out, "--bundle", tiny_bundle) == 0
    assert frames_in(out) == 6


def test_a_prompt_that_is_cut_is_a_one_line_warning(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    story = tmp_path / "story.toml"
    story.write_text('[[scene]]\nat = 0\nprompt = "red green blue sky"')
    assert run(story, "--frames", 2, "--out", tmp_path / "out.mp4", "--bundle", tiny_bundle) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: prompt cut to 3 of its 4 tokens")
    assert error.count("\n") == 1
    story.write_text(f'[[scene]]\nat = 0\nprompt = "{"red " * 1000}"')
    assert run(story, "--frames", 2, "--out", tmp_path / "out.mp4", "--bundle", tiny_bundle) == 0
    assert len(capsys.readouterr().err) < 200


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_sigterm_end_with_their_status_and_no_file_but_the_journal(
    tiny_bundle: Path, story_file: Path, tmp_path: Path, number: signal.Signals, status: int, said: str
) -> None:
    arguments = [
        "--frames",
        "200000",
        "--out",
        tmp_path / "out.mp4",
        "--bundle",
        tiny_bundle,
        "--steps",
        "100",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "nuwaxl.engine.cli", story_file, *arguments], stderr=subprocess.PIPE, text=True
    )
    journal = tmp_path / "out.mp4.journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 10_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate(timeout=20)
    kept = f"what is finished is in {journal}: the same command goes on from there\n"
    assert (process.returncode, error) == (status, f"{kept}nuwaxl-render: {said}\n")
    assert list(tmp_path.glob("*out*")) == [journal]


def test_what_was_killed_goes_on_with_the_same_command(
    tiny_bundle: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "out.mp4", tmp_path / "out.mp4.journal"
    arguments = [str(story_file), "--out", str(out), "--bundle", str(tiny_bundle), "--frames", "3000", "--steps", "20"]
    process = subprocess.Popen([sys.executable, "-m", "nuwaxl.engine.cli", *arguments], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert journal.stat().st_size > 100_000
    assert main([*arguments, "--seed", "1"]) == 2
    assert "seed 0 instead of 1" in capsys.readouterr().err
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.err == f"going on with what is finished in {journal}\n"
    assert re.search(r"3000 frames in .*; \d+ of 1505 segments were there before", said.out)
    assert not journal.exists()
    (whole,) = tmp_path.glob("*out.mp4")  # the unfinished file of the killed one is no .mp4
    assert whole == out


def test_fresh_begins_anew(tiny_bundle: Path, story_file: Path, tmp_path: Path) -> None:
    out, journal = tmp_path / "out.mp4", tmp_path / "out.mp4.journal"
    arguments = [str(story_file), "--out", str(out), "--bundle", str(tiny_bundle), "--frames", "20"]
    with Engine.open(tiny_bundle) as engine:
        clips = iter(engine.render(Story.load(story_file), frames=20, seed=5, journal=journal))
        next(clips)
        clips.close()
    assert main(arguments) == 2
    assert main([*arguments, "--fresh"]) == 0
    assert not journal.exists()
    assert out.exists()


def test_fresh_costs_no_journal_where_nothing_can_be_rendered(
    tiny_bundle: Path, story_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, journal = tmp_path / "out.mp4", tmp_path / "out.mp4.journal"
    with Engine.open(tiny_bundle) as engine:
        clips = iter(engine.render(Story.load(story_file), frames=20, journal=journal))
        next(clips)
        clips.close()
    before = journal.read_bytes()
    for wrong in (["--depth", "1"], ["--bundle", str(tmp_path)], ["--devices", "abacus"]):
        arguments = [str(story_file), "--out", str(out), "--bundle", str(tiny_bundle), "--frames", "20", *wrong]
        assert main([*arguments, "--fresh"]) == 2
        assert main(arguments) == 2
        assert "going on" not in capsys.readouterr().err
    assert journal.read_bytes() == before


def test_what_began_anew_goes_on_without_fresh(
    tiny_bundle: Path,
    story_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nuwaxl.engine.mp4.Mp4Writer.finish", interrupted)
    out = tmp_path / "out.mp4"
    arguments = [str(story_file), "--out", str(out), "--bundle", str(tiny_bundle), "--frames", "20"]
    assert main([*arguments, "--fresh"]) == 130
    assert "the same command without --fresh goes on from there" in capsys.readouterr().err
    assert main(arguments) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_the_journal_lies_beside_the_file_that_is_written(tiny_bundle: Path, story_file: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "out.mp4").symlink_to(tmp_path / "real" / "video.mp4")
    assert journal_of(tmp_path / "out.mp4") == tmp_path / "real" / "video.mp4.journal"


def test_progress_bars_are_drawn_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with ProgressBars() as bars:
            bars(Progress("text", 1, 1))
            bars(Progress("diffuse", 3, 10))
            bars(Progress("decode", 2, 4))
        drawn = capsys.readouterr().err
        assert bool(drawn) == terminal
    assert "3/10" in drawn
    assert "2/4" in drawn


def test_progress_is_readable_on_a_terminal_that_does_not_know_its_width(
    tiny_bundle: Path, story_file: Path, tmp_path: Path
) -> None:
    first, again = (drawn_by_a_render(tiny_bundle, story_file, tmp_path / "cache") for _ in range(2))
    for drawn in (first, again):
        assert b"diffuse:" in drawn
        assert b"9/9" in drawn
    assert b"measuring what a step takes" in first
    assert b"measuring" not in again


def drawn_by_a_render(tiny_bundle: Path, story_file: Path, cache: Path) -> bytes:
    """What a terminal shows."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 0, 0, 0, 0))
    command = [sys.executable, "-m", "nuwaxl.engine.cli", story_file, "--frames", "9", "--bundle", tiny_bundle]
    with subprocess.Popen(
        [*command, "--out", story_file.with_suffix(".mp4")],
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "NUWAXL_CACHE": str(cache)},
    ) as process:
        os.close(theirs)
        drawn = b""
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    drawn += os.read(ours, 65536)
                except OSError:  # the terminal is gone with its last user
                    break
    os.close(ours)
    assert process.returncode == 0
    return drawn

"""What a training says on stderr where that is no terminal."""

import json
import re
import sys
from pathlib import Path

import pytest

from nuwaxl import terminal
from nuwaxl.train import progress
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.loop import train
from nuwaxl.train.progress import Progress
from tests.train.regression import Regression, config
from tests.train.small import mtd_task, run_config, write_tklvae


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, for a test to set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_comes_after_a_while_and_then_once_a_minute(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("step", 1000, shown=True, done=400) as steps:
        for _ in range(100):
            now[0] += 2.5
            steps.advance(figures={"loss": 0.125})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "nuwaxl-train: step 404 of 1000: loss 0.125, 2.5 s each, 24:50 to go"
    assert [int(line.split()[2]) for line in lines] == [404, 428, 452, 476, 500]


@pytest.mark.parametrize(("shown", "seconds"), [(False, 100.0), (True, 0.01)])
def test_nothing_is_said_where_nobody_asked_or_it_is_soon_done(
    now: list[float], capsys: pytest.CaptureFixture[str], shown: bool, seconds: float
) -> None:
    with Progress("step", 10, shown) as steps:
        for _ in range(10):
            now[0] += seconds
            steps.advance()
    assert capsys.readouterr().err == ""


def test_nothing_is_said_where_stderr_is_closed(
    now: list[float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Progress("step", 10, shown=True) as steps:
        now[0] += 100.0
        steps.advance()
    assert capsys.readouterr().out == ""


def test_a_training_says_what_it_trains_before_its_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Silent(Regression):
        def loss(self, *arguments):  # type: ignore[no-untyped-def]
            said.append(capsys.readouterr().err)
            return super().loss(*arguments)

    said: list[str] = []
    train(Silent(), config(tmp_path, steps=3), resume=False, show_progress=True)
    assert said == [
        "nuwaxl-train: line on cpu: 2 parameters, 2 of them learn; step 1 of 3 begins; "
        f"the log is {tmp_path / 'log.jsonl'}\n",
        "",
        "",
    ]
    train(Silent(), config(tmp_path, steps=4), resume=True, show_progress=True)
    assert "step 4 of 4 begins" in said[3]
    train(Silent(), config(tmp_path, steps=4), resume=True, show_progress=True)
    assert capsys.readouterr().err == "nuwaxl-train: all 4 steps are done\n"


def test_steps_frames_and_videos_are_counted(
    cartoons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "_FIRST_S", 0.0)
    monkeypatch.setattr(terminal, "_EVERY_S", 0.0)
    EpisodeFolder(cartoons, show_progress=True)
    said = capsys.readouterr().err
    assert re.findall(r"(\w+ \w+ \d+ of \d+)", said) == ["opening video 1 of 2", "opening video 2 of 2"]
    write_tklvae(tmp_path / "tklvae.safetensors")
    run = run_config(cartoons, tmp_path / "out", steps=2)
    task = mtd_task(run, tmp_path)
    task.latents.folder.rename(tmp_path / "other")
    task.latents.fill([0, 1], show_progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("nuwaxl-train: encoding frame 3 of 192: ")
    assert lines[-1].startswith("nuwaxl-train: encoding frame 192 of 192: ")
    task.latents.fill([0, 1], show_progress=True)
    assert capsys.readouterr().err == ""
    train(task, run, resume=False, show_progress=True)
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    said = capsys.readouterr().err
    for line in log:
        assert f"nuwaxl-train: step {line['step']} of 2: loss {line['loss']:.4g}, " in said

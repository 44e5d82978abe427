"""The loss curve is drawn from the log, and a wrong name is refused with those there are."""

import json
from pathlib import Path

import pytest
from PIL import Image

from nuwaxl.train.cli import main


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": n, "loss": 1.0 / n}) + "\n" for n in range(1, 100)))
    return path


def test_the_curve_falls_from_left_to_right(log: Path, tmp_path: Path) -> None:
    assert main(["curve", str(log), str(tmp_path / "c.png")]) == 0
    image = Image.open(tmp_path / "c.png").convert("RGB")
    blue = [(x, y) for x in range(75, 900) for y in range(image.height) if image.getpixel((x, y)) == (31, 78, 156)]
    left = [y for x, y in blue if x < 100]
    right = [y for x, y in blue if x > 860]
    assert left
    assert right
    assert max(left) < min(right)


def test_an_unknown_figure_is_refused(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["curve", str(log), str(tmp_path / "c.png"), "--figures", "colour"]) == 2
    assert "['loss']" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["c.xyz", "absent/c.png", "/proc/c.png", "."])
def test_a_picture_that_cannot_be_written_is_refused(
    log: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(log.parent)
    assert main(["curve", str(log), out]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(log.parent.iterdir()) == [log]


@pytest.mark.parametrize("text", ["[1]", "3", "{", "[" * 100_000])
def test_what_is_no_log_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "log.jsonl").write_text(text)
    assert main(["curve", str(tmp_path / "log.jsonl"), str(tmp_path / "c.png")]) == 2
    assert "a training log" in capsys.readouterr().err

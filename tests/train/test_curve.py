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

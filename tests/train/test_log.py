"""The log of a training, and TensorBoard's."""

import json
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nuwaxl.errors import InputError
from nuwaxl.train.log import TrainingLog
from nuwaxl.train.loop import train
from tests.train.regression import Regression, config


def test_tensorboard_has_the_figures_of_the_log(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path, steps=40), resume=False, show_progress=False)
    train(Regression(), config(tmp_path, steps=60), resume=True, show_progress=False)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    log = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert set(events.Tags()["scalars"]) == set(log[0]) - {"step"} == {"loss", "grad_norm", "rate", "seconds"}
    for name in ("loss", "grad_norm", "rate"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(line["step"], pytest.approx(line[name])) for line in log]
    assert [line["step"] for line in log] == [10, 20, 30, 40, 50, 60]


def test_the_number_of_a_late_step_is_not_rounded_in_the_log(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, 0, tensorboard=False) as log:
        log.write({"step": 1234567, "loss": 1234567.0})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1234567, "loss": 1234570.0}


def test_half_a_line_that_a_kill_left_in_the_log_is_dropped(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path, steps=40), resume=False, show_progress=False)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 40, "lo')
    train(Regression(), config(tmp_path, steps=60), resume=True, show_progress=False)
    text = log.read_text()
    assert text.startswith(whole)
    assert [json.loads(line)["step"] for line in text.splitlines()] == [10, 20, 30, 40, 50, 60]


def test_tensorboard_may_be_left_out_and_must_be_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"package tensorboard.*pip install 'nuwaxl\[train\]'.*tensorboard = false"):
        train(Regression(), config(tmp_path), resume=False, show_progress=False)
    train(Regression(), config(tmp_path, tensorboard=False), resume=False, show_progress=False)
    assert not (tmp_path / "tensorboard").exists()
    assert (tmp_path / "log.jsonl").exists()

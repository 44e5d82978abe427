"""The shared training loop: what it learns, where it writes, and what it goes on with."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint, loop
from nuwaxl.train.distributed import Share
from nuwaxl.train.loop import check_output, train
from nuwaxl.train.task import Objective
from tests.train.regression import Regression, config, files


def test_it_learns_and_logs(tmp_path: Path) -> None:
    model = train(Regression(), config(tmp_path), resume=False, show_progress=False)
    line = checkpoint.load_weights(model / "line.safetensors")
    assert float(line["weight"]) == pytest.approx(3.0, abs=0.1)
    assert float(line["bias"]) == pytest.approx(-1.0, abs=0.1)
    log = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [10, 20, 30, 40, 50, 60]
    assert log[-1]["loss"] < 0.1 * log[0]["loss"]


def test_a_stopped_and_resumed_run_ends_bit_equal_to_an_uninterrupted_one(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path / "whole"), resume=False, show_progress=False)

    stopped = Regression()
    original = stopped.loss

    def interrupted(rng: np.random.Generator, generator: torch.Generator, share: Share, step: int) -> Objective:
        if stopped.calls == 33:
            raise KeyboardInterrupt
        return original(rng, generator, share, step)

    stopped.loss = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(stopped, config(tmp_path / "parts"), resume=False, show_progress=False)
    assert checkpoint.latest(tmp_path / "parts") == tmp_path / "parts" / "step_00000020"
    train(Regression(), config(tmp_path / "parts"), resume=True, show_progress=False)

    assert files(tmp_path / "parts" / "model") == files(tmp_path / "whole" / "model")
    parts, whole = (files(tmp_path / name / "step_00000060") for name in ("parts", "whole"))
    del parts["training.json"], whole["training.json"]  # they name the output folder
    assert parts == whole


def test_the_leader_alone_makes_the_output_folder_and_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one process of a launcher removes what another one has just made."""
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda path, *rest, **named: made.append(path) or mkdir(path, *rest, **named))
    for rank, expected in (("0", [tmp_path / "out"]), ("1", [])):
        monkeypatch.setenv("RANK", rank)
        check_output(config(tmp_path / "out"), resume=False)
        assert made == expected
        assert not (tmp_path / "out").exists()
        made.clear()


def test_an_earlier_training_is_not_overwritten(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    with pytest.raises(InputError, match=r"no earlier training.*--resume"):
        train(Regression(), config(tmp_path), resume=False, show_progress=False)


def test_an_output_folder_that_another_training_writes_to_is_refused_and_left_alone(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path, steps=40), resume=False, show_progress=False)
    before = (tmp_path / "log.jsonl").read_bytes()
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"no other training that writes to .*found one that runs"):
            train(Regression(), config(tmp_path), resume=True, show_progress=False)
    finally:
        os.close(other)
    assert (tmp_path / "log.jsonl").read_bytes() == before
    train(Regression(), config(tmp_path), resume=True, show_progress=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 80},
        {"log_every": 5, "checkpoint_every": 7, "keep_checkpoints": 1, "tensorboard": False},
        {"device": "auto"},
        {"data": "moved"},
    ],
)
def test_what_does_not_change_the_steps_done_may_change_on_resume(tmp_path: Path, changes: dict[str, object]) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    train(Regression(), config(tmp_path, **changes), resume=True, show_progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.2}, r"\[run\] learning_rate = 0\.2, which was 0\.1"),
        ({"batch_size": 16, "seed": 4}, r"\[run\] batch_size = 16, which was 32; \[run\] seed = 4, which was 0"),
        ({"steps": 59}, r"\[run\] steps = 59, which was 60"),
        ({"accumulation": 2}, r"\[run\] accumulation"),
    ],
)
def test_a_changed_configuration_is_refused_on_resume_by_key(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    before = files(tmp_path / "step_00000060")
    with pytest.raises(InputError, match=message):
        train(Regression(), config(tmp_path, **changes), resume=True, show_progress=False)
    assert files(tmp_path / "step_00000060") == before


def test_a_changed_task_is_refused_on_resume_by_key(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    changed = Regression()
    changed.configuration = lambda: {"training": {"truth": [3, 1]}}  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"\[training\] truth = \[3, 1\], which was \[3, -1\]"):
        train(changed, config(tmp_path), resume=True, show_progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 0) for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "learning_rate", "clip")),
        *((name, -1) for name in ("warmup", "weight_decay", "seed", "ema_decay")),
        ("ema_decay", 1.0),
    ],
)
def test_numbers_without_sense_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"\[run\] {name} to be .*found {value}"):
        config(Path("unused"), **{name: value})


@pytest.fixture
def _another_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a training is about to have its folder for itself, another one runs there from its beginning to its end."""
    alone_in = loop.alone_in

    def late(*folder: Any, **texts: Any) -> Any:
        monkeypatch.setattr(loop, "alone_in", alone_in)
        train(Regression(), config(tmp_path, keep_checkpoints=1), resume=True, show_progress=False)
        return alone_in(*folder, **texts)

    monkeypatch.setattr(loop, "alone_in", late)


@pytest.mark.usefixtures("_another_goes_first")
def test_a_training_that_came_first_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no earlier training.*--resume"):
        train(Regression(), config(tmp_path), resume=False, show_progress=False)

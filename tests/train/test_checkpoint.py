"""Checkpoints: written whole or not at all, few of them kept, and refused by name where they are damaged."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.loop import train
from tests.train.regression import Regression, config, files


@pytest.mark.parametrize("stopped", range(7))
def test_a_run_that_is_stopped_while_it_writes_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: int
) -> None:
    """At each file in turn of the second checkpoint and of the model published with it, and when these are renamed."""
    train(Regression(), config(tmp_path, steps=20, schedule="constant"), resume=False, show_progress=False)
    before = {name: files(tmp_path / name) for name in ("step_00000020", "model")}
    save, rename, calls = checkpoint.save_weights, Path.rename, []

    def count(done: Callable[..., Any], *arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == stopped + 1:
            raise KeyboardInterrupt
        return done(*arguments)

    monkeypatch.setattr(checkpoint, "save_weights", lambda *arguments: count(save, *arguments))
    monkeypatch.setattr(Path, "rename", lambda *arguments: count(rename, *arguments))
    run = config(tmp_path, steps=40, schedule="constant")
    with pytest.raises(KeyboardInterrupt):
        train(Regression(), run, resume=True, show_progress=False)
    monkeypatch.undo()
    last = "step_00000040" if stopped > 3 else "step_00000020"
    assert checkpoint.latest(tmp_path) == tmp_path / last
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"log.jsonl", "tensorboard", "model", "step_00000020", last}
    assert {name: files(tmp_path / name) for name in before} == before
    train(Regression(), run, resume=True, show_progress=False)
    assert checkpoint.latest(tmp_path) == tmp_path / "step_00000040"
    assert files(tmp_path / "model") != before["model"]


def test_a_checkpoint_that_is_half_removed_does_not_look_like_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def interrupted(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "line.safetensors").unlink()
            raise KeyboardInterrupt
        remove(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(), config(tmp_path, keep_checkpoints=1), resume=False, show_progress=False)
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_00000040"]


def test_a_checkpoint_that_is_about_to_be_removed_is_removed_when_the_run_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> None:
        rename(path, target)
        if target.suffix == ".old":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(Regression(), config(tmp_path, keep_checkpoints=1), resume=False, show_progress=False)
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_00000040"]


def test_a_stop_while_what_a_folder_replaced_is_removed_leaves_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final, remove = tmp_path / "model", shutil.rmtree
    final.mkdir()
    (final / "old").touch()

    def interrupted(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            monkeypatch.setattr(shutil, "rmtree", remove)
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), checkpoint.whole_folder(final) as partial:
        (partial / "new").touch()
    assert [*tmp_path.iterdir()] == [final]
    assert files(final) == {"new": b""}


def test_a_new_folder_does_not_replace_one_that_somebody_made_meanwhile(tmp_path: Path) -> None:
    own, final = tmp_path / "own", tmp_path / "model"
    own.mkdir()
    (own / "weights").touch()
    with pytest.raises(InputError, match=r"no \S*model yet"), checkpoint.new_folder(final):
        shutil.copytree(own, final)
    assert sorted(tmp_path.iterdir()) == [final, own]
    assert files(final) == {"weights": b""}


def test_folders_of_somebodys_own_are_left_alone(tmp_path: Path) -> None:
    own = [tmp_path / name for name in ("model.old", "model.partial", "step_00000020.old", "step_00000020.partial")]
    for folder in own:
        folder.mkdir()
    train(Regression(), config(tmp_path, keep_checkpoints=1), resume=False, show_progress=False)
    assert all(folder.exists() for folder in own)


def test_what_a_kill_left_of_a_checkpoint_is_removed_by_the_next_one_of_any_step(tmp_path: Path) -> None:
    for left in (".step_00000007.partial", ".step_00000007.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "line.safetensors").touch()
    train(Regression(), config(tmp_path, steps=20), resume=True, show_progress=False)
    assert [path.name for path in tmp_path.glob("*step_*")] == ["step_00000020"]


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path, keep_checkpoints=1), resume=False, show_progress=False)
    assert [p.name for p in tmp_path.glob("*step_*")] == ["step_00000060"]


def test_the_model_is_the_average_and_the_checkpoint_the_last_weights(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    published = checkpoint.load_weights(tmp_path / "model" / "line.safetensors")
    average = checkpoint.load_weights(tmp_path / "step_00000060" / "ema.safetensors")
    last = checkpoint.load_weights(tmp_path / "step_00000060" / "line.safetensors")
    assert torch.equal(published["weight"], average["line/weight"])
    assert not torch.equal(published["weight"], last["weight"])


def test_a_checkpoint_without_its_configuration_is_refused(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    (tmp_path / "step_00000060" / "training.json").write_text('{"step": 60}')
    with pytest.raises(InputError, match=r"step and configuration in .*training\.json"):
        train(Regression(), config(tmp_path), resume=True, show_progress=False)


@pytest.mark.parametrize("name", ["line", "ema", "optimizer"])
def test_a_damaged_checkpoint_is_refused_by_name_and_without_it_the_one_before_goes_on(
    tmp_path: Path, name: str
) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    model = files(tmp_path / "model")
    last = tmp_path / "step_00000060"
    damaged = last / f"{name}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    with pytest.raises(InputError, match=rf"{name}\.safetensors.*; remove \S*step_00000060: --resume then goes on"):
        train(Regression(), config(tmp_path), resume=True, show_progress=False)
    shutil.rmtree(last)
    train(Regression(), config(tmp_path), resume=True, show_progress=False)
    assert files(tmp_path / "model") == model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "1 missing, first bias"),
        ("extra", "1 unknown, first more"),
        ("shape", "1 of another shape, first weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path: Path, change: str, message: str) -> None:
    state = dict(nn.Linear(2, 3).state_dict())
    if change == "missing":
        del state["bias"]
    elif change == "extra":
        state["more"] = torch.zeros(1)
    else:
        state["weight"] = torch.zeros(3, 3)
    checkpoint.save_weights(state, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=message):
        checkpoint.load_into(nn.Linear(2, 3), tmp_path / "w.safetensors")

"""The shared training loop: log, checkpoints, resume, and what stops it."""

import fcntl
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.averages import Averages
from nuwaxl.train.distributed import Processes, Share
from nuwaxl.train.log import TrainingLog
from nuwaxl.train.loop import check_output, train
from nuwaxl.train.run import RunConfig
from nuwaxl.train.task import Game, Objective
from nuwaxl.train.update import TrainingError, Update


class Regression:
    """Learn y = 3x - 1 from noisy samples: the smallest task."""

    game: Game | None = None

    def __init__(self, poison_at: int | None = None, batch_size: int = 32) -> None:
        torch.manual_seed(0)
        self.modules: dict[str, nn.Module] = {"line": nn.Linear(1, 1)}
        self.poison_at, self.calls, self.batch_size = poison_at, 0, batch_size

    def configuration(self) -> dict[str, dict[str, Any]]:
        return {"training": {"truth": [3, -1]}}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.modules["line"].parameters())

    def _samples(self, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.normal(size=(self.batch_size, 1)).astype(np.float32))

    def files(self, rng: np.random.Generator, share: Share) -> list[str]:
        return [f"x = {float(x):.6f}" for x in share.of(self._samples(rng))]

    def loss(self, rng: np.random.Generator, generator: torch.Generator, share: Share, step: int) -> Objective:
        x = share.of(self._samples(rng))
        noise = share.of(torch.randn(self.batch_size, 1, generator=generator))
        loss = (self.modules["line"](x) - (3 * x - 1 + 0.01 * noise)).square().mean()
        self.calls += 1
        if self.poison_at == self.calls:
            loss = loss * float("nan")
        return Objective(loss, {"loss": loss.item()})

    def publish(self, weights: dict[str, dict[str, Tensor]], folder: Path) -> None:
        checkpoint.save_weights(weights["line"], folder / "line.safetensors")


def config(out: Path, **changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "data": "", "out": str(out), "steps": 60, "batch_size": 32, "learning_rate": 0.1, "warmup": 5,
        "ema_decay": 0.9, "log_every": 10, "checkpoint_every": 20, "device": "cpu",
    }  # fmt: skip
    return RunConfig(**{**settings, **changes})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


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
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000040"]


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
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000040"]


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


def test_what_a_kill_left_of_a_checkpoint_is_removed_by_the_next_one_of_any_step(tmp_path: Path) -> None:
    for left in ("step_00000007.partial", "step_00000007.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "line.safetensors").touch()
    train(Regression(), config(tmp_path, steps=20), resume=True, show_progress=False)
    assert [path.name for path in tmp_path.glob("step_*")] == ["step_00000020"]


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


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path, keep_checkpoints=1), resume=False, show_progress=False)
    assert [p.name for p in tmp_path.glob("step_*")] == ["step_00000060"]


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


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_files_and_last_checkpoint(tmp_path: Path) -> None:
    task = Regression(poison_at=45)
    with pytest.raises(TrainingError, match=r"finite loss; found nan at step 44.*step_00000040") as caught:
        train(task, config(tmp_path), resume=False, show_progress=False)
    rng = np.random.default_rng([0, 44])
    rng.integers(2**62)
    first = task.files(rng, Share())[:12]
    assert ", ".join(first) + " and 20 more" in str(caught.value)


def test_only_the_files_of_the_part_that_is_not_finite_are_named(tmp_path: Path) -> None:
    task = Regression(poison_at=3, batch_size=4)
    with pytest.raises(TrainingError, match=r"at step 0, .*none yet") as caught:
        train(task, config(tmp_path, batch_size=4, accumulation=4), resume=False, show_progress=False)
    rng = np.random.default_rng([0, 0])
    rng.integers(2**62)
    names = task.files(rng, Share())
    assert [name in str(caught.value) for name in names] == [False, False, True, False]


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_change(tmp_path: Path) -> None:
    task = Regression()
    before = {name: tensor.clone() for name, tensor in task.modules["line"].state_dict().items()}
    task.parameters()[0].register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(TrainingError, match=r"finite gradient; found \w+ at step 0, learning from x = "):
        train(task, config(tmp_path), resume=False, show_progress=False)
    for name, tensor in task.modules["line"].state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_equals_the_whole_batch_at_once(tmp_path: Path, parts: int) -> None:
    for name, accumulation in (("whole", 1), ("parts", parts)):
        run = config(tmp_path / name, accumulation=accumulation)
        train(Regression(), run, resume=False, show_progress=False)
    whole, in_parts = (checkpoint.load_weights(tmp_path / n / "model" / "line.safetensors") for n in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(in_parts[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_batch_that_its_parts_cannot_share_equally_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"1 processes x 3 parts.*multiple of 3"):
        train(Regression(), config(tmp_path, accumulation=3), resume=False, show_progress=False)


def test_gradients_are_clipped_to_the_norm_asked_for(tmp_path: Path) -> None:
    task = Regression()
    run = config(tmp_path, steps=1, clip=1e-3)
    update = Update(task, run, Processes.join(run))
    figures = update(0)
    assert figures["grad_norm"][0] > 1.0
    norm = torch.cat([parameter.grad.flatten() for parameter in task.parameters() if parameter.grad is not None]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_the_moving_average_follows_its_formula() -> None:
    module = nn.Linear(1, 1)
    averages = Averages({"line": module}, decay=0.5)
    expected = module.weight.detach().clone()
    assert torch.equal(averages.values["line/weight"], expected)
    for step, decay in enumerate((1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5)):
        with torch.no_grad():
            module.weight.add_(1.0)
        averages.update(step)
        expected = decay * expected + (1 - decay) * module.weight.detach()
        torch.testing.assert_close(averages.by_module()["line"]["weight"], expected)


def test_the_model_is_the_average_and_the_checkpoint_the_last_weights(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    published = checkpoint.load_weights(tmp_path / "model" / "line.safetensors")
    average = checkpoint.load_weights(tmp_path / "step_00000060" / "ema.safetensors")
    last = checkpoint.load_weights(tmp_path / "step_00000060" / "line.safetensors")
    assert torch.equal(published["weight"], average["line/weight"])
    assert not torch.equal(published["weight"], last["weight"])


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


def test_a_checkpoint_without_its_configuration_is_refused(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    (tmp_path / "step_00000060" / "training.json").write_text('{"step": 60}')
    with pytest.raises(InputError, match=r"step and configuration in .*training\.json"):
        train(Regression(), config(tmp_path), resume=True, show_progress=False)


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("step", [0, 3, 30])
def test_a_step_is_as_large_as_the_rate_of_its_place_in_the_schedule(tmp_path: Path, step: int, decay: float) -> None:
    """AdamW's first step moves every weight by the rate, whatever its gradient, and decays it by the rate's part."""
    task, run = Regression(), config(tmp_path, weight_decay=decay)
    before = [parameter.detach().clone() for parameter in task.parameters()]
    Update(task, run, Processes.join(run))(step)
    rate = run.rate_at(step)
    for old, parameter in zip(before, task.parameters(), strict=True):
        moved = parameter.detach() - old * (1 - rate * decay)
        assert float(moved.abs()) == pytest.approx(rate, rel=1e-3)


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


def test_rate_warms_up_and_falls_along_a_cosine() -> None:
    run = config(Path("unused"), steps=105)
    rates = [run.rate_at(step) for step in range(105)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[55] == pytest.approx(0.05)
    assert rates[-1] < 1e-4
    assert run.rate_at(3) == config(Path("unused"), schedule="constant").rate_at(3)
    assert config(Path("unused"), schedule="constant").rate_at(50) == 0.1


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

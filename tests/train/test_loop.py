"""The shared training loop: log, checkpoints, resume, and what stops it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.distributed import Share
from nuwaxl.train.loop import TrainingError, train
from nuwaxl.train.run import RunConfig


class Regression:
    """Learn y = 3x - 1 from noisy samples."""

    def __init__(self, poison_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.modules: dict[str, nn.Module] = {"line": nn.Linear(1, 1)}
        self.poison_at, self.calls = poison_at, 0

    def parameters(self) -> list[nn.Parameter]:
        return list(self.modules["line"].parameters())

    def loss(
        self, rng: np.random.Generator, generator: torch.Generator, share: Share
    ) -> tuple[Tensor, dict[str, float]]:
        x = torch.from_numpy(rng.normal(size=(32, 1)).astype(np.float32))
        y = 3 * x - 1 + 0.01 * torch.randn(32, 1, generator=generator)
        loss = (self.modules["line"](x) - y).square().mean()
        self.calls += 1
        if self.poison_at == self.calls:
            loss = loss * float("nan")
        return loss, {"loss": loss.item()}

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

    def interrupted(
        rng: np.random.Generator, generator: torch.Generator, share: Share
    ) -> tuple[Tensor, dict[str, float]]:
        if stopped.calls == 33:
            raise KeyboardInterrupt
        return original(rng, generator, share)

    stopped.loss = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        train(stopped, config(tmp_path / "parts"), resume=False, show_progress=False)
    assert checkpoint.latest(tmp_path / "parts") == tmp_path / "parts" / "step_00000020"
    train(Regression(), config(tmp_path / "parts"), resume=True, show_progress=False)

    assert files(tmp_path / "parts" / "model") == files(tmp_path / "whole" / "model")
    assert files(tmp_path / "parts" / "step_00000060") == files(tmp_path / "whole" / "step_00000060")


def test_only_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path, keep_checkpoints=1), resume=False, show_progress=False)
    assert [p.name for p in tmp_path.glob("step_*")] == ["step_00000060"]


def test_an_earlier_training_is_not_overwritten(tmp_path: Path) -> None:
    train(Regression(), config(tmp_path), resume=False, show_progress=False)
    with pytest.raises(InputError, match=r"no earlier training.*--resume"):
        train(Regression(), config(tmp_path), resume=False, show_progress=False)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"found nan at step 44.*step_00000040"):
        train(Regression(poison_at=45), config(tmp_path), resume=False, show_progress=False)


def test_rate_warms_up_and_falls_along_a_cosine() -> None:
    run = config(Path("unused"), steps=105)
    rates = [run.rate_at(step) for step in range(105)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[55] == pytest.approx(0.05)
    assert rates[-1] < 1e-4
    assert run.rate_at(3) == config(Path("unused"), schedule="constant").rate_at(3)
    assert config(Path("unused"), schedule="constant").rate_at(50) == 0.1


@pytest.mark.parametrize("name", ["steps", "batch_size", "checkpoint_every"])
def test_counts_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=name):
        config(Path("unused"), **{name: 0})


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

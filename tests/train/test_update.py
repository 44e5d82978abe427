"""One optimiser step: its parts, rate, clipping and moving average, and what is not finite."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.averages import Averages
from nuwaxl.train.distributed import Processes, Share
from nuwaxl.train.loop import train
from nuwaxl.train.update import TrainingError, Update
from tests.train.regression import Regression, config


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


def test_rate_warms_up_and_falls_along_a_cosine() -> None:
    run = config(Path("unused"), steps=105)
    rates = [run.rate_at(step) for step in range(105)]
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[55] == pytest.approx(0.05)
    assert rates[-1] < 1e-4
    assert run.rate_at(3) == config(Path("unused"), schedule="constant").rate_at(3)
    assert config(Path("unused"), schedule="constant").rate_at(50) == 0.1

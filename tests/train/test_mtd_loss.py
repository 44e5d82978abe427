"""What a batch teaches MTD (eq. 4, 5; section 3.2): what the network is given, and what it is judged by."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nuwaxl.errors import InputError
from nuwaxl.train.diffusion import alphas_cumprod
from nuwaxl.train.distributed import Share
from nuwaxl.train.mtd import MTDTask
from tests.train.small import NETWORKS, mtd_task, run_config, write_tklvae

BATCH = 24
WHOLE = Share()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mtd_loss")
    write_tklvae(folder / "tklvae.safetensors")
    return folder


def task_of(cartoons: Path, folder: Path, out: Path, **training: Any) -> MTDTask:
    return mtd_task(run_config(cartoons, out, batch_size=BATCH), folder, **training)


def seen_by_the_network(task: MTDTask, share: Share = WHOLE, answer: float = 0.0) -> tuple[list[Tensor], Any]:
    """The network's arguments in `loss`, and what that returns where the network answers one number everywhere."""
    seen: list[Tensor] = []

    def network(x: Tensor, *others: Tensor) -> Tensor:
        seen.extend([x, *others])
        return torch.full_like(x, answer)

    task.network = network  # type: ignore[assignment]
    objective = task.loss(np.random.default_rng(5), torch.Generator().manual_seed(6), share, 0)
    return seen, objective


def test_the_network_is_given_first_and_last_frame_of_local_segments_and_no_more(
    cartoons: Path, folder: Path, tmp_path: Path
) -> None:
    task = task_of(cartoons, folder, tmp_path)
    (x, _, prompt, condition, mask), _ = seen_by_the_network(task)
    segments = task._segments(np.random.default_rng(5))
    assert {segment.depth for segment in segments} == {0, 1}
    length = task.config.mtd.length
    assert x.shape == condition.shape
    assert mask.shape == (BATCH, length, 1, *x.shape[3:])
    assert prompt.shape == (BATCH, length, task.config.mtd.prompt_tokens, task.config.mtd.prompt_dim)
    for row, segment in enumerate(segments):
        given = [0, length - 1] if segment.depth else []
        latents = torch.from_numpy(task.latents.read(segment.episode, segment.frames))
        assert bool((latents != 0).any(dim=3).all()), "a frame that is not given must not be zero by itself"
        for frame in range(length):
            assert torch.equal(mask[row, frame], torch.full_like(mask[row, frame], float(frame in given)))
            expected = latents[frame] if frame in given else torch.zeros_like(latents[frame])
            assert torch.equal(condition[row, frame], expected)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_is_the_mean_square_over_all_frames_between_answer_and_target(
    cartoons: Path, folder: Path, tmp_path: Path, prediction: Any
) -> None:
    task = task_of(cartoons, folder, tmp_path)
    task.forward_process.prediction = prediction
    (x, timestep, *_), objective = seen_by_the_network(task, answer=0.5)
    segments = task._segments(np.random.default_rng(5))
    x_0 = torch.stack([torch.from_numpy(task.latents.read(s.episode, s.frames)) for s in segments]).double()
    abar = alphas_cumprod(task.config.diffusion)[timestep].reshape(-1, 1, 1, 1, 1)
    noise = (x.double() - abar.sqrt() * x_0) / (1 - abar).sqrt()  # eq. 4, the other way round
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(noise.std()) == pytest.approx(1.0, abs=0.1)
    target = noise if prediction == "eps" else abar.sqrt() * noise - (1 - abar).sqrt() * x_0
    errors = (target - 0.5).square().mean(dim=(1, 2, 3, 4))
    assert objective.loss.item() == pytest.approx(float(errors.mean()), rel=1e-3)
    assert objective.figures["loss"] == pytest.approx(float(errors.mean()), rel=1e-3)
    for depth in (0, 1):
        of_depth = errors[[segment.depth == depth for segment in segments]]
        assert np.mean(objective.figures[f"loss_depth_{depth}"]) == pytest.approx(float(of_depth.mean()), rel=1e-3)


def test_shares_are_given_the_rows_of_the_whole_batch(cartoons: Path, folder: Path, tmp_path: Path) -> None:
    task = task_of(cartoons, folder, tmp_path, prompt_dropout=0.5)
    whole, _ = seen_by_the_network(task)
    for index in range(3):
        share = Share(index, 3)
        rows, _ = seen_by_the_network(task, share)
        for found, expected in zip(rows, whole, strict=True):
            torch.testing.assert_close(found, share.of(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [1.0, 3.0])
def test_timesteps_are_drawn_as_u_to_the_1_over_k(cartoons: Path, folder: Path, tmp_path: Path, power: float) -> None:
    task = task_of(cartoons, folder, tmp_path, timestep_power=power)
    drawn: list[Tensor] = []

    def network(x: Tensor, timestep: Tensor, *_: Tensor) -> Tensor:
        drawn.append(timestep)
        return x

    task.network = network  # type: ignore[assignment]
    for seed in range(60):
        task.loss(np.random.default_rng(seed), torch.Generator().manual_seed(seed), Share(), 0)
    timesteps = torch.cat(drawn)
    assert timesteps.dtype == torch.int64
    assert 0 <= int(timesteps.min()) < 300
    assert 990 < int(timesteps.max()) <= 999
    for part in (0.25, 0.5, 0.75):  # P(t / T < q) = q^k
        assert float((timesteps < part * 1000).double().mean()) == pytest.approx(part**power, abs=0.04)


def test_segments_that_leave_a_local_diffusion_nothing_to_draw_are_refused(
    cartoons: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "mtd", {**NETWORKS["mtd"], "length": 2})
    with pytest.raises(InputError, match=r"mtd\.length to be 3 or more: .*; found 2, with \[training\] depth = 2"):
        task_of(cartoons, folder, tmp_path)


def test_single_frames_have_a_place_too(
    cartoons: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "mtd", {**NETWORKS["mtd"], "length": 1})
    task = task_of(cartoons, folder, tmp_path, depth=1)
    (x, *_), _ = seen_by_the_network(task)
    assert x.shape[1] == 1
    assert all("stride 1)" in name for name in task.files(np.random.default_rng(5), WHOLE))

"""What a batch teaches T-KLVAE (section 3.1), term by term, and how its latents are standardised afterwards."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from nuwaxl.train import checkpoint
from nuwaxl.train.config import TKLVAEConfig, from_table
from nuwaxl.train.data.videos import VideoFile
from nuwaxl.train.distributed import Share
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.tklvae import gradient_difference
from tests.train.small import TKLVAE_TABLE, run_config, tklvae_task
from tests.train.tiny import randomise


def test_the_loss_is_l1_and_the_weighed_terms_on_a_sample_of_the_posterior(cartoons: Path, tmp_path: Path) -> None:
    run = run_config(cartoons, tmp_path)
    task = tklvae_task(run, kl_weight=0.3, gradient_weight=0.7)
    randomise(task.network)
    objective = task.loss(np.random.default_rng(1), torch.Generator().manual_seed(2), Share(), 0)
    video = task.batch(np.random.default_rng(1), Share())
    with torch.no_grad():
        mean, log_variance = task.network.moments(video)
        posterior = Normal(mean, (log_variance / 2).exp())
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
        error = task.network.reconstruct(posterior.mean + posterior.stddev * noise) - video
    l1 = float(error.abs().mean())
    kl = float(kl_divergence(posterior, Normal(0.0, 1.0)).mean())
    edges = float(
        (error[..., 1:] - error[..., :-1]).abs().mean() + (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    )
    assert min(l1, kl, edges) > 0.01
    assert objective.figures["l1"] == pytest.approx(l1, rel=1e-4)
    assert objective.figures["kl"] == pytest.approx(kl, rel=1e-4)
    assert objective.figures["psnr_db"] == pytest.approx(10 * np.log10(4 / float(error.square().mean())), rel=1e-4)
    assert objective.loss.item() == pytest.approx(l1 + 0.3 * kl + 0.7 * edges, rel=1e-4)


def test_the_difference_of_edges_is_zero_for_a_constant_and_counts_both_directions() -> None:
    video = torch.rand(1, 2, 3, 5, 6)
    assert float(gradient_difference(video + 1.5, video)) == pytest.approx(0.0, abs=1e-6)
    rows, columns = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    assert float(gradient_difference(video + 2 * rows, video)) == pytest.approx(2.0, abs=1e-5)
    assert float(gradient_difference(video + 3 * columns, video)) == pytest.approx(3.0, abs=1e-5)


def test_a_window_is_of_consecutive_frames_of_one_video_in_minus_1_to_1(cartoons: Path, tmp_path: Path) -> None:
    task = tklvae_task(run_config(cartoons, tmp_path))
    found = task.batch(np.random.default_rng(3), Share())
    for window, (episode, start) in zip(found, task._places(np.random.default_rng(3)), strict=True):
        with VideoFile(task.folder.episodes[episode].video) as file:
            frames = file.read([start, start + 1, start + 2])
        expected = torch.from_numpy(frames.astype(np.float32)).movedim(-1, 1) / 127.5 - 1.0
        torch.testing.assert_close(window, expected, rtol=1e-5, atol=1e-6)
    assert found.min() >= -1.0
    assert found.max() <= 1.0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_after_training_the_latents_of_the_data_are_standardised(
    cartoons: Path, tmp_path: Path, accumulation: int
) -> None:
    task = tklvae_task(run_config(cartoons, tmp_path, accumulation=accumulation), calibration_batches=3)
    randomise(task.network)
    (tmp_path / "model").mkdir()
    task.publish({"tklvae": task.network.state_dict()}, tmp_path / "model")
    network = TKLVAE(from_table(TKLVAEConfig, TKLVAE_TABLE, "[tklvae]"))
    checkpoint.load_into(network, tmp_path / "model" / "tklvae.safetensors")
    rng = np.random.default_rng(task.run.seed)
    with torch.no_grad():
        latents = torch.cat([network.encode(task.batch(rng, Share())) for _ in range(3)])
    torch.testing.assert_close(latents.mean(dim=(0, 1, 3, 4)), torch.zeros(2), rtol=0, atol=1e-3)
    torch.testing.assert_close(latents.std(dim=(0, 1, 3, 4)), torch.ones(2), rtol=1e-3, atol=0)
    for name, tensor in task.network.state_dict().items():
        if not name.startswith("latent_"):
            assert torch.equal(network.state_dict()[name], tensor), name

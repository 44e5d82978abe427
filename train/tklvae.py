"""Training of T-KLVAE: reconstruction and KL, as the image KLVAE (paper section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.config import TKLVAEConfig, from_table
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.videos import to_network
from nuwaxl.train.distributed import Share
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.run import RunConfig


@dataclass(frozen=True)
class TKLVAETraining:
    """[training]: `frames` consecutive frames a sample (1 trains the image KLVAE), `init` weights to start from.

    `trainable` "temporal" leaves the pretrained spatial layers as they are; "decoder" leaves the encoder and the
    latents' standardisation, so that an MTD trained on these latents stays valid. `kl_weight` weighs the KL term, in
    nats a latent value, against the mean L1 a pixel value; `gradient_weight` the L1 between the pictures' finite
    differences (Mathieu et al. 2016), which keeps edges sharp. `calibration_batches` batches measure latent_shift
    and latent_scale; 0 keeps them as they are, as a pretrained MTD needs.
    """

    frames: int = 16
    init: str = ""
    trainable: Literal["all", "temporal", "decoder"] = "all"
    kl_weight: float = 1e-6
    gradient_weight: float = 0.0
    calibration_batches: int = 16


class TKLVAETask:
    def __init__(self, tables: Mapping[str, Any], run: RunConfig) -> None:
        self.config = from_table(TKLVAEConfig, tables.get("tklvae", {}), "[tklvae]")
        self.training = from_table(TKLVAETraining, tables.get("training", {}), "[training]")
        unknown = sorted(set(tables) - {"run", "training", "tklvae"})
        if unknown or run.compile:
            raise InputError(
                expected="tables [run], [training] and [tklvae], without compile, to train T-KLVAE",
                found=f"{unknown or 'compile'}",
                fix="remove it",
            )
        self.run, self.device = run, run.torch_device()
        self.folder = EpisodeFolder(run.data)
        self._check_videos()
        torch.manual_seed(run.seed)
        self.network = TKLVAE(self.config)
        if self.training.init:
            checkpoint.load_into(self.network, Path(self.training.init), may_lack="temporal")
        self.network.to(self.device, memory_format=torch.channels_last)
        self.modules: dict[str, nn.Module] = {"tklvae": self.network}

    def _check_videos(self) -> None:
        height, width = self.folder.size()
        f = self.config.downsampling
        if height % f or width % f:
            raise InputError(
                expected=f"videos whose height and width {f} divides", found=f"{width} x {height}", fix="scale them"
            )
        shortest = min(self.folder.episodes, key=lambda episode: episode.frames)
        if shortest.frames < self.training.frames:
            raise InputError(
                expected=f"videos of at least {self.training.frames} frames (training.frames)",
                found=f"{shortest.frames} in {shortest.video.name}",
                fix="remove it or give fewer frames",
            )

    def parameters(self) -> list[nn.Parameter]:
        network = self.network
        chosen = {
            "all": list(network.parameters()),
            "temporal": network.temporal_parameters(),
            "decoder": [*network.decoder.parameters(), *network.post_quant_conv.parameters()],
        }[self.training.trainable]
        network.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        return chosen

    def batch(self, rng: np.random.Generator, share: Share) -> Tensor:
        """This process's windows of consecutive frames, (b, L, C, H, W) in [-1, 1]."""
        places = []
        for _ in range(self.run.batch_size):
            episode = int(rng.integers(len(self.folder)))
            places.append((episode, int(rng.integers(self.folder.episodes[episode].frames - self.training.frames + 1))))
        windows = [
            self.folder.read(episode, range(start, start + self.training.frames)) for episode, start in share.of(places)
        ]
        return to_network(np.stack(windows), self.device)

    def loss(
        self, rng: np.random.Generator, generator: torch.Generator, share: Share
    ) -> tuple[Tensor, dict[str, float]]:
        video = self.batch(rng, share)
        mean, log_variance = self.network.moments(video)
        whole = (self.run.batch_size, *mean.shape[1:])
        noise = share.of(torch.randn(whole, generator=generator, device=self.device))
        output = self.network.reconstruct(mean + (0.5 * log_variance).exp() * noise)
        reconstruction = (output - video).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        total = reconstruction + self.training.kl_weight * kl
        if self.training.gradient_weight:
            total = total + self.training.gradient_weight * gradient_difference(output, video)
        psnr = -10.0 * torch.log10((output - video).square().mean() / 4.0)
        return total, {"l1": reconstruction.item(), "kl": kl.item(), "psnr_db": psnr.item()}

    def publish(self, weights: dict[str, dict[str, Tensor]], folder: Path) -> None:
        network = TKLVAE(self.config)
        network.load_state_dict(weights["tklvae"])
        if self.training.trainable != "decoder" and self.training.calibration_batches:
            self._calibrate(network.to(self.device))
        checkpoint.save_weights(network.state_dict(), folder / "tklvae.safetensors")

    @torch.no_grad()
    def _calibrate(self, network: TKLVAE) -> None:
        """Measure mean and deviation of each latent channel, so that the diffusion sees standardised latents."""
        rng = np.random.default_rng(self.run.seed)
        means = torch.cat(
            [network.moments(self.batch(rng, Share()))[0] for _ in range(self.training.calibration_batches)]
        )
        network.latent_shift.copy_(means.mean(dim=(0, 1, 3, 4)))
        network.latent_scale.copy_(1.0 / means.std(dim=(0, 1, 3, 4)))


def gradient_difference(output: Tensor, video: Tensor) -> Tensor:
    """Mean L1 between horizontal and vertical finite differences of two videos (..., H, W), a scalar."""
    error = output - video
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()

"""Training of T-KLVAE with the image KLVAE's objective (paper section 3.1): L1, LPIPS, KL, patch adversarial."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.config import TKLVAEConfig, from_table, require, require_positive
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.videos import to_network
from nuwaxl.train.distributed import Processes, Share
from nuwaxl.train.networks.discriminator import PatchDiscriminator, hinge
from nuwaxl.train.networks.lpips import LPIPS
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.recompute import recompute_layers
from nuwaxl.train.resume import files_fingerprint, fingerprint
from nuwaxl.train.run import RunConfig
from nuwaxl.train.task import Game, Objective


@dataclass(frozen=True)
class TKLVAETraining:
    """[training]: `frames` consecutive frames a sample (1 trains the image KLVAE), `init` weights to start from.

    `trainable` "temporal" leaves the pretrained spatial layers as they are; "decoder" leaves the encoder and the
    latents' standardisation, so that an MTD trained on these latents stays valid. `kl_weight` weighs the KL term, in
    nats a latent value, against the mean L1 a pixel value; `gradient_weight` the L1 between the pictures' finite
    differences (Mathieu et al. 2016), which keeps edges sharp; `lpips_weight` LPIPS, where `lpips` names its weights.
    `adversarial_weight` above 0 trains a discriminator from step `adversarial_start` on (`task.Game`).
    `calibration_batches` batches measure latent_shift and latent_scale; 0 keeps them, as a pretrained MTD needs.
    """

    frames: int = 16
    init: str = ""
    trainable: Literal["all", "temporal", "decoder"] = "all"
    kl_weight: float = 1e-6
    gradient_weight: float = 0.0
    lpips: tuple[str, ...] = ()
    lpips_weight: float = 1.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    calibration_batches: int = 16

    def __post_init__(self) -> None:
        require_positive(self, "training", "frames", "discriminator_layers")
        width = self.discriminator_channels
        require(width > 0 and width % 8 == 0, "[training] discriminator_channels", "a multiple of 8", width)
        for key in ("kl_weight", "gradient_weight", "lpips_weight", "adversarial_weight", "adversarial_start"):
            require(getattr(self, key) >= 0, f"[training] {key}", "0 or more", getattr(self, key))
        require(self.calibration_batches >= 0, "[training] calibration_batches", "0 or more", self.calibration_batches)


class TKLVAETask:
    def __init__(self, tables: Mapping[str, Any], run: RunConfig, show_progress: bool) -> None:
        self.config = from_table(TKLVAEConfig, tables.get("tklvae", {}), "[tklvae]")
        self.training = training = from_table(TKLVAETraining, tables.get("training", {}), "[training]")
        unknown = sorted(set(tables) - {"run", "training", "tklvae"})
        if unknown or run.compile:
            raise InputError(
                expected="tables [run], [training] and [tklvae], without compile, to train T-KLVAE",
                found=f"{unknown or 'compile'}",
                fix="remove it",
            )
        if training.trainable == "temporal" and self.config.temporal == "none":
            raise InputError(
                expected='temporal layers for [training] trainable = "temporal"',
                found='[tklvae] temporal = "none"',
                fix='use temporal = "identity"',
            )
        self.run, self.processes = run, Processes.join(run)
        self.device = self.processes.device
        self.folder = EpisodeFolder(run.data, show_progress=show_progress and self.processes.leads)
        self._check_videos()
        self.lpips = LPIPS.load(training.lpips).to(self.device) if training.lpips else None
        torch.manual_seed(run.seed)
        self.network = TKLVAE(self.config)
        if training.init:
            checkpoint.load_into(self.network, Path(training.init), may_lack="temporal")
        self.network.to(self.device, memory_format=torch.channels_last)
        if run.gradient_checkpointing:
            recompute_layers(self.network)
        self.modules: dict[str, nn.Module] = {"tklvae": self.network}
        self.game = self._game() if training.adversarial_weight else None

    def _game(self) -> Game:
        training, decoder = self.training, self.network.decoder
        discriminator = PatchDiscriminator(
            self.config.channels, training.discriminator_channels, training.discriminator_layers
        )
        last = decoder.conv_out if decoder.temporal_out is None else decoder.temporal_out
        return Game(discriminator.to(self.device), last.weight, training.adversarial_weight)

    def _check_videos(self) -> None:
        height, width = self.folder.size()
        f = self.config.downsampling
        if height % f or width % f:
            raise InputError(
                expected=f"videos whose height and width {f} divides", found=f"{width} x {height}", fix="scale them"
            )
        least = 16 if self.training.lpips else 1  # VGG16 halves four times
        if self.training.adversarial_weight:
            least = max(least, PatchDiscriminator.smallest_picture(self.training.discriminator_layers))
        if min(height, width) < least:
            raise InputError(
                expected=f"videos of at least {least} x {least} pixels, for LPIPS or the discriminator",
                found=f"{width} x {height}",
                fix="scale them, or give fewer discriminator_layers",
            )
        shortest = min(self.folder.episodes, key=lambda episode: episode.frames)
        if shortest.frames < self.training.frames:
            raise InputError(
                expected=f"videos of at least {self.training.frames} frames (training.frames)",
                found=f"{shortest.frames} in {shortest.video.name}",
                fix="remove it or give fewer frames",
            )

    def configuration(self) -> dict[str, dict[str, Any]]:
        training = self.training
        return {
            "training": dataclasses.asdict(training),
            "tklvae": dataclasses.asdict(self.config),
            "data": {
                "videos": fingerprint(self.folder),
                "init": files_fingerprint([Path(training.init)] if training.init else []),
                "lpips": files_fingerprint(map(Path, training.lpips)),
            },
        }

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

    def _places(self, rng: np.random.Generator) -> list[tuple[int, int]]:
        """Episode and first frame of each window of the whole batch."""
        places = []
        for _ in range(self.run.batch_size):
            episode = int(rng.integers(len(self.folder)))
            places.append((episode, int(rng.integers(self.folder.episodes[episode].frames - self.training.frames + 1))))
        return places

    def batch(self, rng: np.random.Generator, share: Share) -> Tensor:
        """This share's windows of consecutive frames, (b, L, C, H, W) in [-1, 1]."""
        places, frames = share.of(self._places(rng)), self.training.frames
        windows = [self.folder.read(episode, range(start, start + frames)) for episode, start in places]
        return to_network(np.stack(windows), self.device)

    def files(self, rng: np.random.Generator, share: Share) -> list[str]:
        last = self.training.frames - 1
        return [
            f"{self.folder.episodes[episode].video} (frames {start} to {start + last})"
            for episode, start in share.of(self._places(rng))
        ]

    def loss(self, rng: np.random.Generator, generator: torch.Generator, share: Share, step: int) -> Objective:
        training = self.training
        video = self.batch(rng, share)
        mean, log_variance = (moment.float() for moment in self.network.moments(video))
        whole = (self.run.batch_size, *mean.shape[1:])
        noise = share.of(torch.randn(whole, generator=generator, device=self.device))
        output = self.network.reconstruct(mean + (0.5 * log_variance).exp() * noise).float()
        reconstruction = (output - video).abs().mean()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()
        psnr = -10.0 * torch.log10((output - video).square().mean() / 4.0)
        figures = {"l1": reconstruction, "kl": kl, "psnr_db": psnr}
        total = reconstruction + training.kl_weight * kl
        if training.gradient_weight:
            total = total + training.gradient_weight * gradient_difference(output, video)
        real, fake = video.flatten(0, 1), output.flatten(0, 1)
        if self.lpips is not None:
            figures["lpips"] = self.lpips(fake, real).mean()
            total = total + training.lpips_weight * figures["lpips"]
        adversarial = discriminator = None
        if self.game is not None and step >= training.adversarial_start:
            judge = self.game.discriminator
            adversarial = -judge(fake).float().mean()
            discriminator = hinge(judge(real), judge(fake.detach()))
            figures |= {"adversarial": adversarial, "discriminator": discriminator}
        return Objective(total, {name: value.item() for name, value in figures.items()}, adversarial, discriminator)

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
        count = self.processes.world * self.run.accumulation
        found = []
        for _ in range(self.training.calibration_batches):
            state = rng.bit_generator.state
            for part in range(count):  # as small as those of training, since memory may hold no more
                rng.bit_generator.state = state
                found.append(network.moments(self.batch(rng, Share(part, count)))[0])
        means = torch.cat(found)
        network.latent_shift.copy_(means.mean(dim=(0, 1, 3, 4)))
        network.latent_scale.copy_(1.0 / means.std(dim=(0, 1, 3, 4)))


def gradient_difference(output: Tensor, video: Tensor) -> Tensor:
    """Mean L1 between horizontal and vertical finite differences of two videos (..., H, W), a scalar."""
    error = output - video
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()

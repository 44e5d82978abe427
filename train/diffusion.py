"""The forward process (eq. 3, 4) and the training target (eq. 5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nuwaxl.train.config import DiffusionConfig


def alphas_cumprod(config: DiffusionConfig) -> Tensor:
    """abar_t for t = 0 .. train_steps - 1, float64 (T,)."""
    steps = config.train_steps
    if config.schedule == "cosine":

        def level(t: Tensor) -> Tensor:
            return torch.cos((t / steps + 0.008) / 1.008 * math.pi / 2).square()

        t = torch.arange(steps, dtype=torch.float64)
        betas = (1 - level(t + 1) / level(t)).clamp(max=0.999)
    elif config.schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, steps, dtype=torch.float64)
    else:
        betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, steps, dtype=torch.float64).square()
    abar = torch.cumprod(1.0 - betas, dim=0)
    if config.schedule == "zero_terminal_snr":  # Lin et al. 2023, algorithm 1
        signal = abar.sqrt()
        abar = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
    return abar


class ForwardProcess:
    """Noises latents and gives what the network is to predict of them."""

    def __init__(self, config: DiffusionConfig, device: torch.device) -> None:
        self.prediction = config.prediction
        abar = alphas_cumprod(config)
        self.signal = abar.sqrt().float().to(device)
        self.noise = (1.0 - abar).sqrt().float().to(device)

    def __call__(self, x_0: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """x_0, noise (b, L, c, h, w), timestep (b,) int64 -> x_t (eq. 4 with sqrt(1 - abar_t)) and the target.

        The target is the noise (eq. 5), or v = sqrt(abar_t) * noise - sqrt(1 - abar_t) * x_0.
        """
        shape = (-1, 1, 1, 1, 1)
        signal, sigma = self.signal[timestep].reshape(shape), self.noise[timestep].reshape(shape)
        x_t = signal * x_0 + sigma * noise
        return x_t, noise if self.prediction == "eps" else signal * noise - sigma * x_0

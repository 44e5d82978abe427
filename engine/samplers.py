"""Noise schedules, and samplers as tables of coefficients: the step graph does the arithmetic with them.

One step of every sampler here is, with the network's (guided) prediction `pred` at timestep t,

    x0     = a_x * x + a_p * pred
    x_next = c_x * x + c_0 * x0 + c_h * history + c_n * noise

where `history` is the x0 of the step before. A table row is (a_x, a_p, c_x, c_0, c_h, c_n).
Notation: alpha = sqrt(abar), sigma = sqrt(1 - abar), so that x_t = alpha * x0 + sigma * eps (paper, eq. 3).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.bundle_schema import Diffusion, PredictionName, SamplerName
from nuwaxl.errors import InputError

Float64 = NDArray[np.float64]

# DPM-Solver works in the log of the signal-to-noise ratio, which must not be 0; diffusers takes this abar there.
_LEAST_ABAR = 2.0**-24


@dataclass(frozen=True)
class SamplerTable:
    """What every denoising step is called with.

    Attributes:
        timesteps: (S,) indices into the training schedule, falling from T - 1.
        coefficients: (S, 6) rows (a_x, a_p, c_x, c_0, c_h, c_n).
    """

    timesteps: NDArray[np.int64]
    coefficients: Float64

    def __len__(self) -> int:
        return len(self.timesteps)


def alphas_cumprod(diffusion: Diffusion) -> Float64:
    """abar_t for t = 0 .. T - 1, shape (T,).

    `linear`: Ho et al. 2020 (DDPM), section 4. `scaled_linear`: linear in sqrt(beta), Rombach et al. 2022.
    `cosine`: Nichol & Dhariwal 2021, eq. 17, with s = 0.008 and beta at most 0.999; it has no beta_start or
    beta_end. `zero_terminal_snr`: `scaled_linear`, shifted and scaled so that abar_(T-1) = 0 and abar_0 stays, Lin et
    al. 2023, algorithm 1.
    """
    count = diffusion.train_steps
    if diffusion.schedule == "linear":
        betas = np.linspace(diffusion.beta_start, diffusion.beta_end, count, dtype=np.float64)
    elif diffusion.schedule in ("scaled_linear", "zero_terminal_snr"):
        betas = np.linspace(diffusion.beta_start**0.5, diffusion.beta_end**0.5, count, dtype=np.float64) ** 2
    else:
        times = np.arange(count + 1, dtype=np.float64) / count
        f = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - f[1:] / f[:-1], 0.999)
    abar = np.asarray(np.cumprod(1 - betas), dtype=np.float64)
    if diffusion.schedule == "zero_terminal_snr":
        signal = np.sqrt(abar)
        abar = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    return abar


def spaced_timesteps(train_steps: int, steps: int) -> NDArray[np.int64]:
    """`steps` timesteps evenly spaced from the last, T - 1, downwards ("trailing": Lin et al. 2023, table 2),
    shape (S,).

    Sampling starts from pure noise, so the first step must be the noisiest the network was trained on.

    Raises:
        InputError: more steps than the network was trained on.
    """
    if not 1 <= steps <= train_steps:
        raise InputError(expected=f"steps: from 1 to {train_steps}", found=f"{steps}", fix="change the number of steps")
    return np.round(train_steps - np.arange(steps) * (train_steps / steps)).astype(np.int64) - 1


def sampler_table(name: SamplerName, diffusion: Diffusion, steps: int) -> SamplerTable:
    """The table of a sampler over `steps` steps; the last step lands on x0 itself (sigma = 0).

    Raises:
        InputError: more steps than the network was trained on.
    """
    timesteps = spaced_timesteps(diffusion.train_steps, steps)
    abar = np.append(alphas_cumprod(diffusion)[timesteps], 1.0)
    if name == "dpmpp_2m":
        abar = np.where(abar == 0, _LEAST_ABAR, abar)
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    coefficients = np.zeros((steps, 6), dtype=np.float64)
    coefficients[:, 0:2] = _to_x0(diffusion.prediction, alpha[:-1], sigma[:-1])
    if name == "ddpm":
        _posterior(coefficients, abar)
        return SamplerTable(timesteps=timesteps, coefficients=coefficients)
    ratio = sigma[1:] / sigma[:-1]
    # DDIM (Song et al. 2021, eq. 12 with no added noise), and equally first-order DPM-Solver++ (Lu et al.
    # 2022, eq. 8).
    coefficients[:, 2] = ratio
    coefficients[:, 3] = alpha[1:] - alpha[:-1] * ratio
    if name == "dpmpp_2m":
        _second_order(coefficients, alpha, sigma)
    return SamplerTable(timesteps=timesteps, coefficients=coefficients)


def _to_x0(prediction: PredictionName, alpha: Float64, sigma: Float64) -> Float64:
    """(a_x, a_p) that turn x and the prediction into x0, shape (S, 2)."""
    if prediction == "eps":
        return np.stack([1 / alpha, -sigma / alpha], axis=1)
    # v = alpha * eps - sigma * x0 (Salimans & Ho 2022, section 4).
    return np.stack([alpha, -sigma], axis=1)


def _posterior(coefficients: Float64, abar: Float64) -> None:
    """Fill in the rows of ancestral sampling, in place: mean and standard deviation of q(x_next | x, x0) (paper,
    eq. 16; Ho et al. 2020, eq. 7) between the timesteps that are visited. The last step has no noise.
    """
    now, after = abar[:-1], abar[1:]
    kept = now / after  # the product of the alphas between the two timesteps
    coefficients[:, 2] = np.sqrt(kept) * (1 - after) / (1 - now)
    coefficients[:, 3] = np.sqrt(after) * (1 - kept) / (1 - now)
    coefficients[:, 5] = np.sqrt((1 - after) / (1 - now) * (1 - kept))


def _second_order(coefficients: Float64, alpha: Float64, sigma: Float64) -> None:
    """Turn first-order rows into DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), in place.

    Between the first step, which has no history, and the last, where the half log-SNR `lam` is infinite, x0
    is replaced by x0 + (x0 - history) / (2 r), with r = h_before / h and h the step in lam.
    """
    lam = np.log(alpha[:-1]) - np.log(sigma[:-1])
    h = np.diff(lam)
    for step in range(1, len(coefficients) - 1):
        extrapolation = h[step] / (2 * h[step - 1])
        first_order = coefficients[step, 3]
        coefficients[step, 3] = first_order * (1 + extrapolation)
        coefficients[step, 4] = -first_order * extrapolation

"""The forward process: eq. 3 and 4, and both prediction targets."""

import math

import pytest
import torch

from nuwaxl.errors import InputError
from nuwaxl.train.config import DiffusionConfig
from nuwaxl.train.diffusion import ForwardProcess, alphas_cumprod


def test_scaled_linear_schedule_is_stable_diffusions() -> None:
    abar = alphas_cumprod(DiffusionConfig())
    assert abar.shape == (1000,)
    assert abar[0] == pytest.approx(1 - 0.00085)
    assert abar[-1] == pytest.approx(0.00466, abs=1e-5)  # published for Stable Diffusion 1.x
    assert bool((abar.diff() < 0).all())


@pytest.mark.parametrize("schedule", ["linear", "cosine", "scaled_linear"])
def test_noising_step_by_step_is_noising_at_once(schedule: str) -> None:
    """Eq. 3 applied t times to a constant has the mean and the variance of eq. 4 (with sqrt(1 - abar_t))."""
    abar = alphas_cumprod(DiffusionConfig(schedule=schedule))  # type: ignore[arg-type]
    alpha = abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
    mean, variance = 1.0, 0.0
    for step in range(300):
        mean *= math.sqrt(alpha[step])
        variance = variance * float(alpha[step]) + 1.0 - float(alpha[step])
    assert mean == pytest.approx(math.sqrt(abar[299]))
    assert variance == pytest.approx(1.0 - float(abar[299]))


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_target_gives_back_x_0(prediction: str) -> None:
    config = DiffusionConfig(prediction=prediction)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    x_0, noise = torch.randn(2, 3, 4, 5, 6, 6, generator=generator).unbind(0)
    timestep = torch.tensor([10, 500, 900])
    x_t, target = ForwardProcess(config, torch.device("cpu"))(x_0, noise, timestep)
    abar = alphas_cumprod(config)[timestep].float().reshape(-1, 1, 1, 1, 1)
    if prediction == "eps":
        recovered = (x_t - (1 - abar).sqrt() * target) / abar.sqrt()
    else:
        recovered = abar.sqrt() * x_t - (1 - abar).sqrt() * target
    torch.testing.assert_close(recovered, x_0, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["scaled_linear", "linear", "cosine", "zero_terminal_snr"])
def test_noising_and_target_are_diffusers(schedule: str, prediction: str) -> None:
    if (schedule, prediction) == ("zero_terminal_snr", "eps"):
        with pytest.raises(InputError, match='"v" with schedule "zero_terminal_snr"'):
            DiffusionConfig(schedule=schedule, prediction=prediction)  # type: ignore[arg-type]
        return
    names = {"zero_terminal_snr": "scaled_linear", "cosine": "squaredcos_cap_v2"}
    theirs = pytest.importorskip("diffusers").DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule=names.get(schedule, schedule),
        rescale_betas_zero_snr=schedule == "zero_terminal_snr",
    )
    config = DiffusionConfig(schedule=schedule, prediction=prediction)  # type: ignore[arg-type]
    x_0, noise = torch.randn(2, 6, 4, 5, 6, 6, generator=torch.Generator().manual_seed(0)).unbind(0)
    timestep = torch.tensor([0, 1, 250, 500, 998, 999])
    x_t, target = ForwardProcess(config, torch.device("cpu"))(x_0, noise, timestep)
    expected = noise if prediction == "eps" else theirs.get_velocity(x_0, noise, timestep)
    torch.testing.assert_close(target, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_t, theirs.add_noise(x_0, noise, timestep), rtol=1e-5, atol=1e-5)

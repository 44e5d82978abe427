"""The coefficient tables step by step against diffusers' schedulers, on the same noise."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nuwaxl.engine.bundle_schema import PREDICTIONS, SAMPLERS, SCHEDULES, Diffusion, PredictionName, ScheduleName
from nuwaxl.engine.samplers import alphas_cumprod, sampler_table

SHAPE = (2, 3, 4)
BETAS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
CLASSES = {"ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}
OPTIONS: dict[str, dict[str, Any]] = {
    "ddim": {"clip_sample": False},
    "ddpm": {"clip_sample": False, "variance_type": "fixed_small"},
    "dpmpp_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"},
}
# diffusers' DDIM steps by T // S whatever timesteps it visits: compared where S divides T, where that is the same.
STEPS = {"ddim": (1, 2, 5, 25, 50), "ddpm": (1, 2, 14, 25, 50), "dpmpp_2m": (1, 2, 3, 14, 25)}
CASES = [
    (sampler, schedule, prediction, steps)
    for sampler in SAMPLERS
    for schedule in SCHEDULES
    for prediction in PREDICTIONS
    if (schedule, prediction) != ("zero_terminal_snr", "eps")
    for steps in STEPS[sampler]
]


def prediction_of(x: NDArray[np.float64], t: int) -> NDArray[np.float64]:
    """A network's answer: smooth, and no good one, so that every coefficient matters."""
    return np.asarray(0.4 * x + 0.3 * np.sin(2 * x) + 0.0003 * t - 0.1)


def oracle(sampler: str, diffusion: Diffusion, steps: int) -> Any:
    """diffusers' scheduler of the same settings, in float64 where it lets us.

    It is imported here, not when tests are collected: it brings triton, which the kernels' tests prepare for.
    """
    scheduler = getattr(pytest.importorskip("diffusers"), CLASSES[sampler])(
        num_train_timesteps=diffusion.train_steps,
        beta_start=diffusion.beta_start,
        beta_end=diffusion.beta_end,
        beta_schedule=BETAS.get(diffusion.schedule, "scaled_linear"),
        prediction_type={"eps": "epsilon", "v": "v_prediction"}[diffusion.prediction],
        timestep_spacing="trailing",
        rescale_betas_zero_snr=diffusion.schedule == "zero_terminal_snr",
        **OPTIONS[sampler],
    )
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(("sampler", "schedule", "prediction", "steps"), CASES)
def test_every_step_is_diffusers_step(
    sampler: Any, schedule: ScheduleName, prediction: PredictionName, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    diffusion = Diffusion(1000, schedule, 0.00085, 0.012, prediction)
    scheduler, table = oracle(sampler, diffusion, steps), sampler_table(sampler, diffusion, steps)
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), table.timesteps)
    rng = np.random.default_rng(0)
    noises = iter(rng.standard_normal((steps, *SHAPE)))
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.from_numpy(next(noises))
    )
    ours_noises = np.random.default_rng(0).standard_normal((steps, *SHAPE))
    x = np.random.default_rng(1).standard_normal(SHAPE)
    history = np.zeros_like(x)
    for step, (t, (a_x, a_p, c_x, c_0, c_h, c_n)) in enumerate(zip(table.timesteps, table.coefficients, strict=True)):
        answer = prediction_of(x, int(t))
        theirs = scheduler.step(torch.from_numpy(answer), torch.tensor(int(t)), torch.from_numpy(x)).prev_sample
        x0 = a_x * x + a_p * answer
        after = c_x * x + c_0 * x0 + c_h * history + c_n * ours_noises[step]
        assert np.abs(after - theirs.double().numpy()).max() < 1e-5 * np.abs(after).max()
        x, history = after, x0  # the same input for both, so that each step is judged alone


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedules_are_diffusers(schedule: ScheduleName) -> None:
    diffusion = Diffusion(1000, schedule, 0.00085, 0.012, "v")
    theirs = oracle("ddim", diffusion, 10).alphas_cumprod.numpy()
    np.testing.assert_allclose(alphas_cumprod(diffusion), theirs, rtol=2e-5, atol=1e-9)

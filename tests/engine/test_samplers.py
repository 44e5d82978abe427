"""The coefficient tables against the textbook, and against problems with a known answer."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from nuwaxl.engine.bundle_schema import Diffusion
from nuwaxl.engine.samplers import SamplerTable, alphas_cumprod, sampler_table, spaced_timesteps
from nuwaxl.errors import InputError

DIFFUSION = Diffusion(train_steps=1000, schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction="eps")
SCHEDULES: list[Literal["scaled_linear", "linear", "cosine"]] = ["scaled_linear", "linear", "cosine"]
Float64 = NDArray[np.float64]


def sample(table: SamplerTable, x: Float64, predict: object) -> Float64:
    """Run a table as the step graph would."""
    assert callable(predict)
    history = np.zeros_like(x)
    for t, (a_x, a_p, c_x, c_0, c_h, c_n) in zip(table.timesteps, table.coefficients, strict=True):
        assert c_n == 0
        x0 = a_x * x + a_p * predict(x, int(t))
        x = c_x * x + c_0 * x0 + c_h * history
        history = x0
    return x


def eps_model(x: Float64, t: int) -> Float64:
    """Some smooth prediction; not a good one, so that every coefficient matters."""
    return 0.3 * x + 0.2 * np.sin(x) - 0.0001 * t


def as_prediction(kind: str, abar: Float64) -> object:
    """The same model, saying eps or v."""
    if kind == "eps":
        return eps_model

    def v_model(x: Float64, t: int) -> Float64:
        alpha, sigma = np.sqrt(abar[t]), np.sqrt(1 - abar[t])
        eps = eps_model(x, t)
        return np.asarray(alpha * eps - sigma * (x - sigma * eps) / alpha)

    return v_model


def textbook_ddim(x: Float64, abar: Float64, steps: NDArray[np.int64]) -> Float64:
    """Song et al. 2021, eq. 12 with sigma_t = 0."""
    for i, t in enumerate(steps):
        eps = eps_model(x, int(t))
        a, a_next = abar[t], abar[steps[i + 1]] if i + 1 < len(steps) else 1.0
        x0 = (x - np.sqrt(1 - a) * eps) / np.sqrt(a)
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * eps
    return x


def textbook_dpmpp_2m(x: Float64, abar: Float64, steps: NDArray[np.int64]) -> Float64:
    """Lu et al. 2022, algorithm 2, with a first-order last step."""
    alpha, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    lam = np.log(alpha / sigma)
    before = None
    for i, t in enumerate(steps):
        x0 = (x - sigma[t] * eps_model(x, int(t))) / alpha[t]
        if i + 1 == len(steps):
            return x0
        to = steps[i + 1]
        h = lam[to] - lam[t]
        d = x0
        if before is not None:
            r = (lam[t] - lam[steps[i - 1]]) / h
            d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * before
        x = sigma[to] / sigma[t] * x - alpha[to] * (np.exp(-h) - 1) * d
        before = x0
    return x


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_tables_do_what_the_papers_say(
    schedule: Literal["scaled_linear", "linear", "cosine"], prediction: Literal["eps", "v"], steps: int
) -> None:
    diffusion = replace(DIFFUSION, schedule=schedule, prediction=prediction)
    # The cosine schedule ends at alpha = 5e-5, where dividing by it loses digits.
    tolerance = 1e-6 if schedule == "cosine" else 1e-10
    abar = alphas_cumprod(diffusion)
    x = np.random.default_rng(0).standard_normal(50)
    times = spaced_timesteps(1000, steps)
    for name, textbook in (("ddim", textbook_ddim), ("dpmpp_2m", textbook_dpmpp_2m)):
        table = sampler_table(name, diffusion, steps)  # type: ignore[arg-type]
        assert table.coefficients.shape == (steps, 6)
        found = sample(table, x, as_prediction(prediction, abar))
        np.testing.assert_allclose(found, textbook(x, abar, times), rtol=tolerance, atol=tolerance)


def test_on_gaussian_data_both_converge_to_the_exact_solution_and_the_second_order_one_faster() -> None:
    """Data N(mu, s^2): the score is known; the flow maps x_T to mu + s (x_T - alpha mu) / std(x_T)."""
    mu, s = 0.4, 0.9
    abar = alphas_cumprod(DIFFUSION)

    def predict(x: Float64, t: int) -> Float64:
        alpha, sigma = np.sqrt(abar[t]), np.sqrt(1 - abar[t])
        return np.asarray(sigma * (x - alpha * mu) / (alpha**2 * s**2 + sigma**2))

    x = np.random.default_rng(1).standard_normal(200)
    alpha, sigma = np.sqrt(abar[-1]), np.sqrt(1 - abar[-1])
    exact = mu + s * (x - alpha * mu) / np.sqrt(alpha**2 * s**2 + sigma**2)

    def error(name: Literal["ddim", "dpmpp_2m"], steps: int) -> float:
        return float(np.abs(sample(sampler_table(name, DIFFUSION, steps), x, predict) - exact).max())

    ddim = [error("ddim", steps) for steps in (10, 20, 40)]
    dpmpp = [error("dpmpp_2m", steps) for steps in (10, 20, 40)]
    assert ddim[0] > 1.7 * ddim[1] > 1.7**2 * ddim[2]
    assert all(second < first / 2 for first, second in zip(ddim, dpmpp, strict=True))
    assert error("ddim", 1000) < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules_fall_from_almost_one(schedule: Literal["scaled_linear", "linear", "cosine"]) -> None:
    abar = alphas_cumprod(replace(DIFFUSION, schedule=schedule))
    assert abar.shape == (1000,)
    assert abar.dtype == np.float64
    assert 0.99 < abar[0] < 1
    assert 0 < abar[-1] < 0.01
    assert np.all(np.diff(abar) < 0)


def test_schedules_have_the_betas_of_their_names() -> None:
    for schedule, beta in (
        ("linear", (0.00085 + 0.012) / 2),
        ("scaled_linear", ((0.00085**0.5 + 0.012**0.5) / 2) ** 2),
    ):
        abar = alphas_cumprod(replace(DIFFUSION, train_steps=3, schedule=schedule))  # type: ignore[arg-type]
        np.testing.assert_allclose(1 - abar[1:] / abar[:-1], [beta, 0.012], rtol=1e-12)
        np.testing.assert_allclose(abar[0], 1 - 0.00085, rtol=1e-12)
    f = np.cos((np.arange(3) / 3 + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = alphas_cumprod(replace(DIFFUSION, train_steps=3, schedule="cosine"))
    np.testing.assert_allclose(abar[:2], f[1:] / f[0], rtol=1e-12)


def test_the_first_step_is_the_noisiest_and_the_last_lands_on_x0() -> None:
    for steps in (1, 7, 30, 1000):
        times = spaced_timesteps(1000, steps)
        assert times[0] == 999
        assert np.all(np.diff(times) < 0)
        assert times[-1] >= 0
    for name in ("ddim", "dpmpp_2m"):
        last = sampler_table(name, DIFFUSION, 5).coefficients[-1]  # type: ignore[arg-type]
        np.testing.assert_array_equal(last[2:], [0, 1, 0, 0])


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_more_steps_than_were_trained_on_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="1 to 1000"):
        spaced_timesteps(1000, steps)

"""The step graph's own form of the network is the network: same answers as train's MTD, branch by branch."""

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from nuwaxl.export.graphs import PrepareGraph, StepGraph, update  # noqa: E402
from nuwaxl.train.config import MTDConfig  # noqa: E402
from nuwaxl.train.networks.mtd import MTD  # noqa: E402

BASE = MTDConfig(
    length=5,
    latent_channels=3,
    latent_height=8,
    latent_width=4,
    block_channels=(8, 12),
    attention=(True, True),
    layers_per_block=1,
    heads=2,
    feed_forward=2,
    norm_groups=4,
    prompt_tokens=3,
    prompt_dim=6,
    condition_channels=4,
)
VARIANTS = {
    "two scales": BASE,
    "no attention in the first block": replace(BASE, attention=(False, True)),
    "attention in the first block only": replace(BASE, attention=(True, False)),
    "two layers a block": replace(BASE, layers_per_block=2),
    "injection at the highest scale only": replace(BASE, multi_scale=False),
    "injection into up blocks only": replace(BASE, symmetric=False),
    "temporal kernel of 5": replace(BASE, temporal_kernel=5),
    "no frame positions": replace(BASE, frame_positions=False),
}
BATCH = 3


def network(config: MTDConfig) -> MTD:
    """In float64, so that only a difference in meaning shows; no layer is the identity."""
    torch.manual_seed(0)
    mtd = MTD(config).double().requires_grad_(False)
    for parameter in mtd.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return mtd


def inputs(config: MTDConfig, known: bool) -> dict[str, torch.Tensor]:
    """Random segments: local ones, whose first and last frames are known, or global ones, where nothing is."""
    latent = (config.length, config.latent_channels, config.latent_height, config.latent_width)
    mask = torch.zeros(BATCH, config.length, 1, *latent[2:])
    if known:
        mask[:, [0, -1]] = 1
    prompts = (config.prompt_tokens, config.prompt_dim)
    tensors = {
        "prompt": torch.randn(BATCH, config.length, *prompts),
        "negative": torch.randn(BATCH, *prompts),
        "condition": torch.randn(BATCH, *latent) * mask,
        "mask": mask,
        **{name: torch.randn(BATCH, *latent) for name in ("x", "history", "noise")},
        "timestep": torch.tensor([999.0, 500.0, 3.0]),
        "coefficients": torch.randn(BATCH, 6),
        "guidance": torch.tensor([0.0, 1.0, 7.5]),
    }
    return {name: tensor.double() for name, tensor in tensors.items()}


STEP = ("x", "history", "noise", "timestep", "coefficients", "guidance")
PREPARE = ("prompt", "negative", "condition", "mask")


@pytest.fixture(autouse=True)
def _fixed_randomness() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("kernels", [False, True], ids=["plain", "kernels"])
@pytest.mark.parametrize("known", [False, True], ids=["global", "local"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
def test_prepare_and_step_are_the_network_with_guidance_and_the_samplers_update(
    config: MTDConfig, known: bool, kernels: bool
) -> None:
    mtd, given = network(config), inputs(config, known)
    state = PrepareGraph(mtd, kernels=kernels)(*(given[name] for name in PREPARE))
    x_next, x0 = StepGraph(mtd, kernels=kernels)(*(given[name] for name in STEP), *state)

    unwanted = given["negative"][:, None].expand_as(given["prompt"])
    x, t, condition, mask = (given[name] for name in ("x", "timestep", "condition", "mask"))
    cond, uncond = mtd(x, t, given["prompt"], condition, mask), mtd(x, t, unwanted, condition, mask)
    assert (cond - uncond).norm() > 1e-3 * cond.norm(), "the prompt must matter for this to test anything"
    for i in range(BATCH):
        a_x, a_p, c_x, c_0, c_h, c_n = given["coefficients"][i].tolist()
        pred = uncond[i] + given["guidance"][i].item() * (cond[i] - uncond[i])
        expected_x0 = a_x * x[i] + a_p * pred
        torch.testing.assert_close(x0[i], expected_x0)
        torch.testing.assert_close(
            x_next[i], c_x * x[i] + c_0 * expected_x0 + c_h * given["history"][i] + c_n * given["noise"][i]
        )


def test_the_known_frames_and_the_mask_matter() -> None:
    mtd, given = network(BASE), inputs(BASE, known=True)
    prepare = PrepareGraph(mtd)
    tensors = [given[name] for name in PREPARE]
    names = prepare.state_names()
    changed = [*tensors[:2], tensors[2] + 1.0, 1.0 - tensors[3]]
    for name, before, after in zip(names, prepare(*tensors), prepare(*changed), strict=True):
        assert (not torch.equal(before, after)) == name.startswith(("scale", "shift")), name


def test_the_negative_prompt_is_one_for_all_frames_of_its_own_segment_only() -> None:
    mtd, given = network(BASE), inputs(BASE, known=True)
    prepare, step = PrepareGraph(mtd), StepGraph(mtd)

    def x0(negative: torch.Tensor) -> torch.Tensor:
        state = prepare(given["prompt"], negative, given["condition"], given["mask"])
        return step(*(given[name] for name in STEP), *state)[1]

    before, other = x0(given["negative"]), given["negative"].clone()
    other[2] += 1.0
    after = x0(other)
    torch.testing.assert_close(after[:2], before[:2])
    moved = (after[2] - before[2]).flatten(1).norm(dim=1)
    assert (moved > 0).all(), "every frame of the segment sees its negative prompt"


def test_no_guidance_is_the_negative_prompts_branch_and_one_is_the_prompts() -> None:
    x, other = torch.zeros(2, 1, 1, 1, 1), torch.ones(2, 1, 1, 1, 1)
    coefficients = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]).expand(2, -1)
    _, x0 = update(x, x, x, 3 * other, 5 * other, coefficients, torch.tensor([0.0, 1.0]))
    assert x0.flatten().tolist() == [5.0, 3.0]

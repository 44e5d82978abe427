"""Operations of a denoising step, counted by torch over the network on its meta device; and what a device can do."""

from collections.abc import Sequence
from typing import Any

import torch

import nuwaxl.kernels.ops  # noqa: F401  (registers the operators)
from nuwaxl.export.torch_runner.step import Denoiser, Prepare, Step
from nuwaxl.train.config import ModelConfig
from nuwaxl.train.networks.mtd import MTD

# Dense bfloat16 tensor-core rate in TFLOP/s, without sparsity, from NVIDIA's data sheets ("H100 Tensor Core GPU",
# "H200 Tensor Core GPU", "A100 Tensor Core GPU": the figures there with sparsity are twice these).
PEAK_TFLOP_S = {"H200": 989.4, "H100 PCIe": 756.0, "H100": 989.4, "A100": 312.0}


def peak_tflop_s(device_name: str) -> float | None:
    """The data sheet's rate of a device by its name; None for one that is not in the table."""
    return next((rate for name, rate in PEAK_TFLOP_S.items() if name in device_name), None)


def _attention(qkv: Sequence[int], heads: int, *_: Any, **__: Any) -> int:
    b, length, pixels, width = qkv
    return 4 * b * pixels * length * length * (width // 3)


def _convolution(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    b, length, pixels, channels = x
    return 2 * b * length * pixels * weight[0] * channels * channels


_OPERATORS = {
    torch.ops.nuwaxl.temporal_attention: _attention,
    torch.ops.nuwaxl.temporal_conv: _convolution,
}


def step_flop(config: ModelConfig) -> dict[str, int]:
    """Operations of one step of one segment: matrix products, convolutions and attention, a multiply-add as two.

    `network` is the plain network's, called for the prompt and for the negative prompt; `executed` what the torch
    runner's step does for it, which computes once what both have in common.
    """
    mtd_config = config.mtd
    latent = (1, mtd_config.length, mtd_config.latent_channels, mtd_config.latent_height, mtd_config.latent_width)
    prompt = (1, mtd_config.length, mtd_config.prompt_tokens, mtd_config.prompt_dim)
    with torch.device("meta"), torch.no_grad():
        mtd = MTD(mtd_config)
        x, row, mask = torch.empty(latent), torch.empty(1), torch.empty(*latent[:2], 1, *latent[3:])
        prepared = mtd.prepare(torch.empty(prompt), x, mask)
        denoiser = Denoiser(mtd)
        state = Prepare(denoiser)(torch.empty(prompt), torch.empty(1, *prompt[2:]), x, mask)
        step = Step(denoiser)
        plain = _count(lambda: mtd.denoise(x, row, prepared))
        executed = _count(lambda: step(x, x, x, row, torch.empty(1, 6), row, *state))
    return {"network": 2 * plain, "executed": executed}


def _count(call: Any) -> int:
    # It imports triton, which the tests of the kernels want to do themselves.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=_OPERATORS)
    with counter:
        call()
    return int(counter.get_total_flops())

"""The smallest networks that have every part: two levels, temporal layers, injection, three attentions."""

from dataclasses import replace

import torch
from torch import nn

from nuwaxl.train.config import MTDConfig, TKLVAEConfig

TKLVAE_TINY = TKLVAEConfig(
    latent_channels=3, block_channels=(8, 12, 16), layers_per_block=1, norm_groups=4, temporal_heads=2
)
MTD_TINY = MTDConfig(
    length=5,
    latent_channels=3,
    latent_height=4,
    latent_width=4,
    block_channels=(8, 16),
    attention=(True, True),
    layers_per_block=1,
    heads=2,
    feed_forward=2,
    norm_groups=4,
    prompt_tokens=6,
    prompt_dim=10,
    condition_channels=4,
)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Give every parameter, the zero-initialised ones too, a random value of ordinary size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            offset = 1.0 if parameter.dim() == 1 and bool((parameter == 1).all()) else 0.0
            parameter.copy_(offset + scale * torch.randn(parameter.shape, generator=generator))


def mtd_inputs(batch: int, config: MTDConfig = MTD_TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random arguments of MTD.forward for `batch` local segments."""
    generator = torch.Generator().manual_seed(seed)
    latent = (batch, config.length, config.latent_channels, config.latent_height, config.latent_width)
    mask = torch.zeros(batch, config.length, 1, *latent[3:])
    mask[:, [0, -1]] = 1.0
    return {
        "x": torch.randn(latent, generator=generator),
        "timestep": torch.rand(batch, generator=generator) * 999,
        "prompt": torch.randn(batch, config.length, config.prompt_tokens, config.prompt_dim, generator=generator),
        "condition": torch.randn(latent, generator=generator) * mask,
        "mask": mask,
    }


def without(config: TKLVAEConfig, temporal: str) -> TKLVAEConfig:
    return replace(config, temporal=temporal)  # type: ignore[arg-type]

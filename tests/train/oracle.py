"""Stable Diffusion folders of any size, random weights, as diffusers and transformers themselves write them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from tests.train.tiny import randomise

SD15_UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD15_VAE: dict[str, Any] = {"latent_channels": 4, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
SD15_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest value expected."""
    assert found.shape == expected.shape
    return ((found - expected).abs().max() / expected.abs().max()).item()


def save_unet(folder: Path, attention: tuple[bool, ...] = (True, True, True, False), **config: Any) -> nn.Module:
    """A U-Net in `folder`/unet, in evaluation mode; every parameter is random, biases and norms too."""
    torch.manual_seed(0)
    down = tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention)
    up = tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention))
    unet = UNet2DConditionModel(**{**SD15_UNET, "down_block_types": down, "up_block_types": up, **config})
    return _save(unet, folder / "unet")


def save_vae(folder: Path, **config: Any) -> nn.Module:
    torch.manual_seed(1)
    config = {**SD15_VAE, **config}
    levels = len(config["block_out_channels"])
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    return _save(AutoencoderKL(**types, **config), folder / "vae")


def save_text(folder: Path, **config: Any) -> nn.Module:
    torch.manual_seed(2)
    config = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, **SD15_TEXT, **config}
    return _save(CLIPTextModel(CLIPTextConfig(**config)), folder / "text_encoder")


def _save(network: Any, folder: Path) -> nn.Module:
    if sum(p.numel() for p in network.parameters()) < 5_000_000:
        randomise(network)
    network.save_pretrained(folder)
    return network.eval().requires_grad_(False)

"""A model directory of a preset with random weights, to measure size, memory and speed with before there are others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from nuwaxl.train.checkpoint import new_folder, save_weights
from nuwaxl.train.config import ModelConfig, require_frame_size
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.tokenizer import save_tokenizer, train_tokenizer

_SHARE = 0.2  # of an ordinary layer's deviation, 1 / sqrt(its inputs)


def sized(config: ModelConfig, length: int, height: int, width: int) -> ModelConfig:
    """`config` for segments of `length` frames of height x width pixels; InputError if these cannot be."""
    f = config.tklvae.downsampling
    require_frame_size(height, width, f * 2 ** (len(config.mtd.block_channels) - 1))
    return replace(config, mtd=replace(config.mtd, length=length, latent_height=height // f, latent_width=width // f))


def random_model(config: ModelConfig, out: Path, seed: int = 0) -> None:
    """Write a model directory that nuwaxl-export reads. No layer of it is zero or the identity, as some layers are at
    initialisation, so that every part has an effect. The tokenizer knows single bytes only.

    Raises InputError if `out` is there already.
    """
    with new_folder(out) as folder:
        torch.manual_seed(seed)
        # One network after the other, since each may fill gigabytes.
        save_weights(moved(CLIPText(config.text)).state_dict(), folder / "text.safetensors")
        save_weights(moved(TKLVAE(config.tklvae)).state_dict(), folder / "tklvae.safetensors")
        save_weights(moved(MTD(config.mtd)).state_dict(), folder / "mtd.safetensors")
        save_tokenizer(train_tokenizer([], config.text.vocabulary, config.text.tokens), folder / "tokenizer.json")
        config.save(folder / "config.json")


def moved(network: nn.Module) -> nn.Module:
    """Add noise to every weight; biases and norms keep their initialisation."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter), alpha=_SHARE * parameter[0].numel() ** -0.5)
    return network

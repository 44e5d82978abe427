"""From a Stable Diffusion 1.x folder to a model directory: the starting point of training at real size."""

from __future__ import annotations

from pathlib import Path

import torch

from nuwaxl.errors import InputError
from nuwaxl.train.checkpoint import new_folder, save_weights
from nuwaxl.train.config import ModelConfig, MTDConfig, TextConfig, TKLVAEConfig
from nuwaxl.train.diffusers_folder import latent_statistics, read_config
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.pretrained import load_published
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.tokenizer import clip_tokenizer, save_tokenizer


def load_tklvae(source: Path, config: TKLVAEConfig) -> TKLVAE:
    """T-KLVAE with the folder's AutoencoderKL in it, its latents standardised as the folder's U-Net expects them."""
    network = TKLVAE(config)
    load_published(network, source / "vae")
    shift, scale = latent_statistics(source)
    network.latent_shift.fill_(shift)
    network.latent_scale.fill_(scale)
    return network


def load_mtd(source: Path, config: MTDConfig) -> MTD:
    network = MTD(config)
    load_published(network, source / "unet")
    return network


def load_text(source: Path, config: TextConfig) -> CLIPText:
    network = CLIPText(config)
    load_published(network, source / "text_encoder")
    return network


def init_model(
    source: Path, out: Path, length: int = 16, height: int = 256, width: int = 256, seed: int = 0
) -> ModelConfig:
    """Write a model directory that nuwaxl-export, and nuwaxl-train by its `init`, can read.

    Layers that Stable Diffusion lacks start as the paper says; `seed` fixes those that start at random.
    Raises InputError if `source` is not a Stable Diffusion 1.x folder, or `out` is there already.
    """
    config = read_config(source, length, height, width)
    tokenizer = clip_tokenizer(source / "tokenizer", config.text.tokens)
    if tokenizer.get_vocab_size() > config.text.vocabulary:
        raise InputError(
            expected=f"at most {config.text.vocabulary} tokens (vocab_size of text_encoder) in {source / 'tokenizer'}",
            found=str(tokenizer.get_vocab_size()),
            fix="name a folder whose tokenizer and text encoder belong together",
        )
    with new_folder(out) as folder:
        # One network after the other, since each may fill gigabytes.
        torch.manual_seed(seed)
        save_weights(load_text(source, config.text).state_dict(), folder / "text.safetensors")
        save_weights(load_tklvae(source, config.tklvae).state_dict(), folder / "tklvae.safetensors")
        save_weights(load_mtd(source, config.mtd).state_dict(), folder / "mtd.safetensors")
        save_tokenizer(tokenizer, folder / "tokenizer.json")
        config.save(folder / "config.json")
    return config

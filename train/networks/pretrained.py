"""Stable Diffusion's published weights (diffusers' names, safetensors) into MTD, T-KLVAE and the text encoder.

Every tensor of a network has one published name or is new here (temporal layers, condition injection) and keeps its
initialisation. Nothing else may differ: a key that is missing, extra or of another shape is an error that names it.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nuwaxl.errors import InputError, reason
from nuwaxl.train.diffusers_folder import read_json
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE

_Rules = tuple[tuple[str, str], ...]

# What has no published counterpart.
_NEW = {MTD: r"^injection\.|temporal", TKLVAE: r"temporal|^latent_(shift|scale)$", CLIPText: r"$^"}

# Names here -> published names, where they differ.
_PUBLISHED: dict[type[nn.Module], _Rules] = {
    MTD: (
        (r"^(down|up)_blocks\.(\d+)\.layers\.(\d+)\.resnet\.", r"\1_blocks.\2.resnets.\3."),
        (r"^(down|up)_blocks\.(\d+)\.layers\.(\d+)\.attention\.", r"\1_blocks.\2.attentions.\3."),
        (r"^down_blocks\.(\d+)\.resample\.", r"down_blocks.\1.downsamplers.0."),
        (r"^up_blocks\.(\d+)\.resample\.", r"up_blocks.\1.upsamplers.0."),
        (r"^mid_layer\.resnet\.", "mid_block.resnets.0."),
        (r"^mid_layer\.attention\.", "mid_block.attentions.0."),
        (r"^mid_resnet\.", "mid_block.resnets.1."),
    ),
    TKLVAE: (),
    CLIPText: (),
}

# Older and newer published names -> the ones above: the first releases' attention of AutoencoderKL, and the text
# encoder as transformers 5 names it.
_ALIASES: dict[type[nn.Module], _Rules] = {
    MTD: (),
    TKLVAE: (
        (r"(mid_block\.attentions\.0)\.query\.", r"\1.to_q."),
        (r"(mid_block\.attentions\.0)\.key\.", r"\1.to_k."),
        (r"(mid_block\.attentions\.0)\.value\.", r"\1.to_v."),
        (r"(mid_block\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
    ),
    CLIPText: ((r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),),
}

# Published constants that are no weights.
_IGNORED = r"(^|\.)embeddings\.position_ids$"


def _rewrite(name: str, rules: _Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def published_names(network: nn.Module) -> dict[str, str]:
    """Name here -> published name, for every tensor of `network` that has one."""
    kind = type(network)
    return {name: _rewrite(name, _PUBLISHED[kind]) for name in network.state_dict() if not re.search(_NEW[kind], name)}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a component folder: full precision before fp16, one file or shards.

    Raises InputError if there is none, or a shard is missing.
    """
    stems = ("diffusion_pytorch_model", "model")
    for variant in ("", ".fp16"):
        for stem in stems:
            single = folder / f"{stem}{variant}.safetensors"
            if single.is_file():
                return [single]
            index = folder / f"{stem}.safetensors.index{variant}.json"
            if index.is_file():
                shards = read_json(index).get("weight_map")
                if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
                    raise InputError(
                        expected=f"a weight_map from keys to files in {index}",
                        found=repr(shards)[:80],
                        fix="download it again",
                    )
                files = [folder / name for name in sorted(set(shards.values()))]
                for file in files:
                    if not file.is_file():
                        raise InputError(expected=f"the shard {file}", found="no such file", fix="download it again")
                return files
    pickled = sorted(path.name for path in [*folder.glob("*.bin"), *folder.glob("*.ckpt")])
    raise InputError(
        expected=f"{' or '.join(stems)} .safetensors in {folder}, one file or shards, full or fp16",
        found=f"only {pickled[0]}, which is a pickle" if pickled else "none",
        fix="download or save the safetensors form (save_pretrained writes it)",
    )


def _without_ones(shape: torch.Size) -> list[int]:
    """A linear layer and a 1x1 convolution are the same layer: their shapes differ in a trailing 1, 1."""
    return list(shape[:2]) if len(shape) == 4 and tuple(shape[2:]) == (1, 1) else list(shape)


def load_published(network: nn.Module, folder: Path) -> None:
    """Copy the weights of a component folder (`unet`, `vae`, `text_encoder`) into `network`, one tensor at a time.

    Raises:
        InputError: no safetensors there, or keys that are missing, extra, there twice or of another shape, by name.
    """
    kind = type(network)
    with ExitStack() as stack:
        tensors: dict[str, tuple[Any, str]] = {}
        twice: list[str] = []
        for path in weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise InputError(
                    expected=f"safetensors weights at {path}", found=reason(error), fix="download them again"
                ) from error
            for key in file.keys():  # noqa: SIM118  (no mapping)
                name = _rewrite(key, _ALIASES[kind])
                if name in tensors:
                    twice.append(key if key == name else f"{key}, which is {name}")
                elif not re.search(_IGNORED, key):
                    tensors[name] = (file, key)
        own: dict[str, Tensor] = network.state_dict()
        names = published_names(network)
        expected = set(names.values())
        missing = sorted(expected - set(tensors))
        extra = sorted(key for name, (_, key) in tensors.items() if name not in expected)
        shapes = []
        for name, published in names.items():
            if published in tensors:
                file, key = tensors[published]
                shape = torch.Size(file.get_slice(key).get_shape())
                if _without_ones(shape) != _without_ones(own[name].shape):
                    shapes.append(f"{key} {tuple(shape)} for {tuple(own[name].shape)}")
        for problem, found in (("twice", twice), ("missing", missing), ("extra", extra), ("of another shape", shapes)):
            if found:
                more = f" and {len(found) - 3} more" if len(found) > 3 else ""
                raise InputError(
                    expected=f"in {folder} the weights its config.json describes",
                    found=f"{problem}: {', '.join(found[:3])}{more}",
                    fix="name a folder whose weights and configuration belong together",
                )
        with torch.no_grad():
            for name, published in names.items():
                file, key = tensors[published]
                own[name].copy_(file.get_tensor(key).reshape(own[name].shape))

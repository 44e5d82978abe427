"""Parameter counts of a configuration by part, on torch's meta device: no memory, no weights."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from nuwaxl.errors import InputError
from nuwaxl.train.config import ModelConfig
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.presets import PRESETS

# Part of a network -> names of its parameters; a parameter belongs to the first that matches.
_PARTS: dict[str, dict[str, str]] = {
    "mtd": {
        "temporal convolutions": r"temporal_conv",
        "temporal attentions": r"temporal_attention",
        "condition injection": r"^injection\.",
        "spatial layers (U-Net)": "",
    },
    "tklvae": {
        "temporal convolutions": r"temporal(1|2|_in|_out|_resample)\.",
        "temporal attentions": r"temporal_attention",
        "encoder, spatial": r"^(encoder|quant_conv)\.",
        "decoder, spatial": r"^(decoder|post_quant_conv)\.",
    },
    "text": {"embeddings": r"^text_model\.embeddings\.", "transformer": ""},
}


def find_config(name: str) -> ModelConfig:
    """A preset, or the config.json of a model directory."""
    if name in PRESETS:
        return PRESETS[name]
    if not Path(name, "config.json").is_file():
        raise InputError(
            expected=f"a preset ({', '.join(PRESETS)}) or a model directory", found=name, fix="name one of these"
        )
    return ModelConfig.load(Path(name) / "config.json")


def count(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Parameters by network and part."""
    with torch.device("meta"):
        networks: dict[str, nn.Module] = {
            "mtd": MTD(config.mtd),
            "tklvae": TKLVAE(config.tklvae),
            "text": CLIPText(config.text),
        }
    counts = {}
    for name, network in networks.items():
        parts = dict.fromkeys(_PARTS[name], 0)
        for parameter_name, parameter in network.named_parameters():
            part = next(part for part, pattern in _PARTS[name].items() if re.search(pattern, parameter_name))
            parts[part] += parameter.numel()
        counts[name] = parts
    return counts


def table(config: ModelConfig) -> str:
    """`count` as a Markdown table, with sums."""
    rows = ["| network | part | parameters |", "| --- | --- | ---: |"]
    total = 0
    for name, parts in count(config).items():
        rows += [f"| {name} | {part} | {number:,} |" for part, number in parts.items() if number]
        rows.append(f"| {name} | **all** | **{sum(parts.values()):,}** |")
        total += sum(parts.values())
    return "\n".join([*rows, f"| **all** | | **{total:,}** |"])

"""A trained network in float16 or bfloat16: which parts compute in it, and which stay in float32.

In the lower precision: convolutions, linear layers, activations between them, and what prepare gives to step. In
float32: group norm and softmax (that of an attention which is one node is the runtime's), the timestep's embedding, the
folding of the injection's scales and shifts, the last convolution of every network and what follows it (guidance, the
sampler's update, the latents' standardisation, the conversion to pixels), and every tensor a caller sees. Each change
of type is a cast in the graph. Layer norm is one node that reads and writes the lower precision, its weights among
them, and computes in float32 within (its stash_type): with casts around it, five times its bytes would move.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from nuwaxl.engine.bundle_schema import PrecisionName
from nuwaxl.errors import InputError
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE

Network = TypeVar("Network", MTD, TKLVAE, CLIPText)

DTYPES: dict[PrecisionName, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Layers that take the caller's float32, by the end of their name,
_ENTRIES = ("conv_in",)
# whose answers are folded in float32,
_FOLDED = ("zero_conv",)
# that compute in float32 to their network's end, or from its beginning,
_EXITS = ("conv_out", "final_layer_norm")
_FLOAT32 = ("time_embedding", "temporal_out", "quant_conv", "post_quant_conv")


class Cast(nn.Module):
    """A layer whose input, output or both change type."""

    def __init__(self, layer: nn.Module, before: torch.dtype | None = None, after: torch.dtype | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.before, self.after = before, after

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x if self.before is None else cast(x, self.before))
        return y if self.after is None else cast(y, self.after)


def lowered(network: Network, dtype: torch.dtype) -> Network:
    """`network` itself for float32, else a copy that computes in `dtype` but for the parts above.

    Raises:
        InputError: a weight is too large for `dtype`.
    """
    if dtype == torch.float32:
        return network
    kept = {
        id(tensor)
        for name, module in network.named_modules()
        if isinstance(module, nn.GroupNorm) or name.split(".")[-1] in (*_EXITS, *_FLOAT32)
        for tensor in module.parameters()
    }
    # deepcopy takes a tensor's lower form for its copy, so that no second one in float32 is ever made.
    memo: dict[int, object] = {
        id(tensor): nn.Parameter(_lower(name, tensor, dtype), requires_grad=False)
        for name, tensor in network.named_parameters()
        if id(tensor) not in kept
    }
    result = copy.deepcopy(network, memo)
    for name, module in list(result.named_modules()):
        parent, _, last = name.rpartition(".")
        cast = None
        if last in _EXITS:
            cast = Cast(module, before=torch.float32)
        elif last in _ENTRIES:
            cast = Cast(module, before=dtype)
        elif last in _FOLDED:
            cast = Cast(module, after=torch.float32)
        elif isinstance(module, nn.GroupNorm):
            cast = Cast(module, before=torch.float32, after=dtype)
        if cast is not None:
            setattr(result.get_submodule(parent), last, cast)
    return result


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in `dtype`; nothing at all, not even in the graph, where it is so already."""
    return x if x.dtype == dtype else x.to(dtype)


def dense(x: Tensor) -> Tensor:
    """x without strides of its own, for a sum in a lower precision: torch traces one as a sum in float32 and a cast,
    compares the strides, and thereby fixes the batch. Nothing in the graph; nothing at all in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.contiguous()


def softmax(scores: Tensor) -> Tensor:
    """Over the last axis, in float32 at least, in the type of its input."""
    wide = torch.float32 if scores.dtype in (torch.float16, torch.bfloat16) else scores.dtype
    return cast(torch.softmax(cast(scores, wide), dim=-1), scores.dtype)


def _lower(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    result = tensor.detach().to(dtype)
    if not bool(torch.isfinite(result).all()):
        raise InputError(
            expected=f"weights of at most {torch.finfo(dtype).max:.0f}, for {dtype} to hold them",
            found=f"{tensor.abs().max().item():.3g} in {name}",
            fix="choose bf16, which holds all of float32's range" if dtype == torch.float16 else "train again",
        )
    return result

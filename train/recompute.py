"""Gradient checkpointing: a layer keeps its input alone and is computed again for its gradients (Chen et al. 2016)."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from nuwaxl.train.networks import mtd, text, tklvae

# Small enough that one of them at a time is little memory, large enough that their inputs are few.
_LAYERS = (mtd._Layer, text._Layer, tklvae._Resnet, tklvae._SpatialAttention)


def recompute_layers(network: nn.Module) -> int:
    """Have every layer of `network` computed again in the backward pass; returns their number.

    Gradients are the same to the bit on one device, since the networks draw no random numbers.
    """
    layers = [module for module in network.modules() if isinstance(module, _LAYERS)]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)  # type: ignore[method-assign]
    return len(layers)

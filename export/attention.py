"""Attention as one operator of torch, for graphs that have it as one node (translations.py). Needs no onnx."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.library.custom_op("nuwaxl_export::attention", mutates_args=())
def attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """query (n, q, c), key and value (n, k, c) -> (n, q, c); in a graph one node, which moves no axis."""

    def split(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(split(query), split(key), split(value))
    return mixed.transpose(1, 2).flatten(2).contiguous()


@attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    return query.new_empty(query.shape)

"""torch's fused attention in a lower precision as ONNX nodes: its softmax is in float32, as in torch's kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op

_SWAPPED = [0, 1, 3, 2]  # the two last of the four axes (n, heads, tokens, d)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """torch operator -> writer of its nodes, for torch.onnx.export(custom_translation_table=...)."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _attention}


def _attention(query: Any, key: Any, value: Any, attn_mask: Any = None) -> Any:
    """query, key, value (n, heads, tokens, d); an additive mask. No other form of attention occurs in the networks."""
    scale = op.CastLike(op.Constant(value_float=float(query.shape[-1]) ** -0.5), query)
    scores = op.Cast(op.MatMul(query, op.Mul(op.Transpose(key, perm=_SWAPPED), scale)), to=onnx.TensorProto.FLOAT)
    if attn_mask is not None:
        scores = op.Add(scores, op.Cast(attn_mask, to=onnx.TensorProto.FLOAT))
    return op.MatMul(op.CastLike(op.Softmax(scores, axis=-1), value), value)

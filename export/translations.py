"""Operators for which other nodes are written than torch.onnx.export's own.

In float16 graphs for the CPU the softmax of attention is in float32, as in torch's kernels. In those in float32 the
weight and bias of a group norm are one `BatchNormalization` instead of `Mul` and `Add`: a pass over the activations
less, and the same bits. In graphs for GPUs:

- Attention is the one node `Attention`, so that a runtime with a fused kernel never holds the scores: at 64x64 latents
  those of one layer and segment would be 8 GiB in float16. Such kernels take the softmax in float32; the node does not
  ask for it, since TensorRT refuses one that does. Heads of 160 get zeros up to 192 (see _flash_size).
- Group norm is written as its arithmetic: ONNX Runtime's CUDA provider has no InstanceNormalization of this opset, and
  the shapes that come with the exporter's form would be copied between host and GPU.
- Frames are enlarged by `Expand` and padded in float32, since the provider has no `Resize` and no `Pad` of bfloat16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnxscript import opset18, opset23

import nuwaxl.export.attention  # noqa: F401  (registers the operator)

Translations = dict[Callable[..., Any], Callable[..., Any]]
_SWAPPED = [0, 1, 3, 2]  # the two last of the four axes (n, heads, tokens, d)
_FLASH_KEYS = 64  # keys of a block of ONNX Runtime's flash attention where heads are larger than 128


def for_cpus() -> Translations:
    """torch operator -> writer of its nodes, for torch.onnx.export(custom_translation_table=...): of float32 graphs."""
    return {torch.ops.aten.group_norm.default: _group_norm_of_cpus}


def for_lower_precision() -> Translations:
    """The same for float16 graphs, which CPUs can run."""
    return {torch.ops.aten.scaled_dot_product_attention.default: _scores_in_float32}


def for_gpus() -> Translations:
    """The same for graphs of opset 23, in every precision."""
    return {
        torch.ops.nuwaxl_export.attention.default: _attention_of_tokens,
        torch.ops.aten.scaled_dot_product_attention.default: _attention_of_heads,
        torch.ops.aten.group_norm.default: _group_norm,
        torch.ops.aten.upsample_nearest2d.vec: _enlarged,
        torch.ops.aten.pad.default: _padded,
    }


def _group_norm_of_cpus(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """x (n, c, ...), all of it but n known; weight and bias (c,)."""
    op = opset18
    sizes = [int(size) for size in x.shape[1:]]

    def each(count: int, value: float) -> Any:
        return op.Constant(value_floats=[value] * count)

    groups = op.Reshape(x, op.Constant(value_ints=[-1, num_groups, math.prod(sizes) // num_groups]))
    normed = op.InstanceNormalization(groups, each(num_groups, 1.0), each(num_groups, 0.0), epsilon=eps)
    normed = op.Reshape(normed, op.Constant(value_ints=[-1, *sizes]))
    # Of mean 0 and variance 1 it leaves weight and bias: the same bits as of a product and a sum.
    mean, variance = each(sizes[0], 0.0), each(sizes[0], 1.0)
    return op.BatchNormalization(normed, weight, bias, mean, variance, epsilon=0.0)


def _scores_in_float32(query: Any, key: Any, value: Any, attn_mask: Any = None) -> Any:
    """query, key, value (n, heads, tokens, d); an additive mask. No other form of attention occurs in the networks."""
    op = opset18
    scale = op.CastLike(op.Constant(value_float=float(query.shape[-1]) ** -0.5), query)
    scores = op.Cast(op.MatMul(query, op.Mul(op.Transpose(key, perm=_SWAPPED), scale)), to=onnx.TensorProto.FLOAT)
    if attn_mask is not None:
        scores = op.Add(scores, op.Cast(attn_mask, to=onnx.TensorProto.FLOAT))
    return op.MatMul(op.CastLike(op.Softmax(scores, axis=-1), value), value)


def _attention_of_tokens(query: Any, key: Any, value: Any, heads: int) -> Any:
    op = opset23
    size = int(query.shape[-1]) // heads
    wide = _flash_size(size)
    if wide == size or query.dtype == onnx.TensorProto.FLOAT or int(key.shape[1]) <= _FLASH_KEYS:
        return op.Attention(query, key, value, q_num_heads=heads, kv_num_heads=heads)[0]

    def widened(tokens: Any) -> Any:
        apart = op.Reshape(tokens, _ints([0, 0, heads, size]))
        with_zeros = _pad(apart, _ints([0, 0, 0, 0, 0, 0, 0, wide - size]), query.dtype)
        return op.Reshape(with_zeros, _ints([0, 0, heads * wide]))

    mixed = op.Attention(*map(widened, (query, key, value)), q_num_heads=heads, kv_num_heads=heads, scale=size**-0.5)[0]
    narrow = op.Slice(op.Reshape(mixed, _ints([0, 0, heads, wide])), _ints([0]), _ints([size]), _ints([3]))
    return op.Reshape(narrow, _ints([0, 0, heads * size]))


def _flash_size(size: int) -> int:
    """The head size with which ONNX Runtime's flash attention (CUDA, 1.31) may share the keys out to several blocks.

    It does where there are few queries. For heads of 129 to 160 and of 193 to 224 it then makes room for multiples of
    32, and writes in rows of 192 and 256: wrong answers, and values beyond its memory.
    """
    return size if size <= 128 or size > 256 else -(-size // 64) * 64


def _attention_of_heads(query: Any, key: Any, value: Any, attn_mask: Any = None) -> Any:
    mask = None if attn_mask is None else opset23.CastLike(attn_mask, query)
    return opset23.Attention(query, key, value, mask)[0]


def _group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """x (n, c, ...), all of it but n known; weight and bias (c,)."""
    op = opset23
    sizes = [int(size) for size in x.shape[1:]]
    groups = op.Reshape(x, _ints([-1, num_groups, math.prod(sizes) // num_groups]))
    centred = op.Sub(groups, op.ReduceMean(groups, _ints([2])))
    variance = op.ReduceMean(op.Mul(centred, centred), _ints([2]))
    epsilon = op.CastLike(op.Constant(value_float=eps), x)
    normed = op.Reshape(op.Div(centred, op.Sqrt(op.Add(variance, epsilon))), _ints([-1, *sizes]))
    for_channels = _ints([sizes[0], *(1 for _ in sizes[1:])])
    return op.Add(op.Mul(normed, op.Reshape(weight, for_channels)), op.Reshape(bias, for_channels))


def _enlarged(x: Any, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Any:
    """x (n, c, h, w) -> (n, c, 2h, 2w)."""
    assert list(scale_factors or ()) == [2.0, 2.0], "the networks know no other"
    op = opset23
    channels, height, width = (int(size) for size in x.shape[1:])
    apart = op.Reshape(x, _ints([-1, channels, height, 1, width, 1]))
    return op.Reshape(op.Expand(apart, _ints([1, 1, 1, 2, 1, 2])), _ints([-1, channels, 2 * height, 2 * width]))


def _padded(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """x with zeros around its last axes; `pad` names the last axis first."""
    assert (mode, value or 0.0) == ("constant", 0.0), "the networks know no other"
    rest = [0] * (len(x.shape) - len(pad) // 2)
    pads = _ints([*rest, *pad[-2::-2], *rest, *pad[::-2]])
    return _pad(x, pads, x.dtype)


def _pad(x: Any, pads: Any, dtype: int) -> Any:
    if dtype != onnx.TensorProto.BFLOAT16:
        return opset23.Pad(x, pads)
    return opset23.CastLike(opset23.Pad(opset23.Cast(x, to=onnx.TensorProto.FLOAT), pads), x)


def _ints(values: Sequence[int]) -> Any:
    return opset23.Constant(value_ints=list(values))

"""The kernels as plain torch, computed in float32 (float64 stays float64): what every other form is compared with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def temporal_attention(qkv: Tensor, heads: int) -> Tensor:
    """Temporal self-attention (eq. 12, 13 over time): qkv (b, L, p, 3c) -> (b, L, p, c); h*w is batch, L the sequence.

    Query, key and value lie next to each other on the last axis, each as `heads` heads of c / heads channels.
    """
    query, key, value = _split(qkv, heads, 3)
    weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
    return _merge(weights @ value).to(qkv.dtype)


def temporal_attention_backward(gradient: Tensor, qkv: Tensor, heads: int) -> Tensor:
    """Gradient of the output (b, L, p, c) -> gradient of qkv (b, L, p, 3c); the weights are computed again."""
    query, key, value = _split(qkv, heads, 3)
    scale = query.shape[-1] ** -0.5
    weights = torch.softmax(query @ key.transpose(-1, -2) * scale, dim=-1)
    (d_out,) = _split(gradient, heads, 1)
    d_weights = d_out @ value.transpose(-1, -2)
    d_scores = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True)) * scale
    parts = (d_scores @ key, d_scores.transpose(-1, -2) @ query, weights.transpose(-1, -2) @ d_out)
    return torch.cat([_merge(part) for part in parts], dim=-1).to(qkv.dtype)


def temporal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Conv1d over the L frames (eq. 1, 9), then the condition injection scale * h + shift (eq. 10, 11 in one).

    x (n * b, L, p, c); weight (k, c_in, c_out), a Conv1d weight permuted by (2, 1, 0); bias (c,). Frames outside the
    segment count as zero. scale, shift (b, L, p, c) serve each of the n branches of x that lie one after the other
    (the guided pair: n = 2). Without them it is the convolution alone.
    """
    taps, length = weight.shape[0], x.shape[1]
    wide = _wide(x)
    padded = F.pad(wide, (0, 0, 0, 0, taps // 2, taps // 2))
    h = _wide(bias) + sum(padded[:, i : i + length] @ tap for i, tap in enumerate(_wide(weight)))
    if scale is not None and shift is not None:
        branches = h.reshape(x.shape[0] // scale.shape[0], *scale.shape)
        h = (_wide(scale) * branches + _wide(shift)).reshape(h.shape)
    return h.to(x.dtype)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, silu: bool = True
) -> Tensor:
    """SiLU(GroupNorm(x)) of every frame on its own: x (b, L, p, c), weight and bias (c,) -> (b, L, p, c).

    Without `silu` it is the norm alone.
    """
    frames = _wide(x).flatten(0, 1).transpose(1, 2)
    normed = F.group_norm(frames, groups, _wide(weight), _wide(bias), eps)
    return (F.silu(normed) if silu else normed).transpose(1, 2).reshape(x.shape).to(x.dtype)


def guided_update(
    x: Tensor, history: Tensor, noise: Tensor, cond: Tensor, uncond: Tensor, coefficients: Tensor, guidance: Tensor
) -> tuple[Tensor, Tensor]:
    """Classifier-free guidance and the sampler's update; x_next and x0.

    x, history, noise, cond, uncond (b, ...); coefficients (b, 6) = (a_x, a_p, c_x, c_0, c_h, c_n); guidance (b,):
        pred = uncond + guidance * (cond - uncond);  x0 = a_x * x + a_p * pred
        x_next = c_x * x + c_0 * x0 + c_h * history + c_n * noise
    """
    shape = (-1, *[1] * (x.ndim - 1))
    a_x, a_p, c_x, c_0, c_h, c_n = (column.reshape(shape) for column in _wide(coefficients).unbind(1))
    wide = _wide(x)
    pred = _wide(uncond) + _wide(guidance).reshape(shape) * (_wide(cond) - _wide(uncond))
    x0 = a_x * wide + a_p * pred
    x_next = c_x * wide + c_0 * x0 + c_h * _wide(history) + c_n * _wide(noise)
    return x_next.to(x.dtype), x0.to(x.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _split(tensor: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    """(b, L, p, parts * c) -> `parts` tensors (b, p, heads, L, d)."""
    b, length, pixels, width = tensor.shape
    head_dim = width // (parts * heads)
    return _wide(tensor).reshape(b, length, pixels, parts, heads, head_dim).permute(3, 0, 2, 4, 1, 5).unbind(0)


def _merge(tensor: Tensor) -> Tensor:
    """(b, p, heads, L, d) -> (b, L, p, c)."""
    return tensor.permute(0, 3, 1, 2, 4).flatten(3)

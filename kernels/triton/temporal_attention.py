"""Temporal self-attention over the L frames of a segment, on (b, L, p, c), forward and backward.

A (pixel, head) pair n = pixel * heads + head is one small attention of L x L. In a frame of the output the pairs lie
one after the other (n * d), and nearly so in qkv, so a program takes BLOCK_N neighbouring pairs with all of their
frames: each load is contiguous over heads and channels, nothing is transposed in memory or read twice from it.
The pairs are the batch of a three-dimensional tl.dot, which gives every warp pairs of its own: scores and softmax never
leave a warp. Head sizes are walked in blocks of BLOCK_D channels and one of TAIL, masked where fewer are left.

Memory bound: the forward moves 4 * b*L*p*c values (3 in, 1 out). At c = 320, 32x32, L = 16, b = 8 and 16 bits that is
336 MB; an H200 takes 90 us, 88 % of the rate of its copies. The backward moves 7 * b*L*p*c values.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nuwaxl.kernels import checks
from nuwaxl.kernels.frames import power_of_two
from nuwaxl.kernels.triton.launch import INTERPRETED, Grid, Specialisation, dot, kernel, launch

LOG2_E = 1.4426950408889634


@triton.jit
def _weights(scores, LENGTH: tl.constexpr, BLOCK_L: tl.constexpr, SCALE_LOG2: tl.constexpr):
    """Softmax over the keys in float32; keys past LENGTH get weight 0."""
    frame = tl.arange(0, BLOCK_L)
    scores = tl.where((frame < LENGTH)[None, None, :], scores * SCALE_LOG2, float("-inf"))
    powers = tl.exp2(scores - tl.max(scores, axis=2)[:, :, None])
    return powers / tl.sum(powers, axis=2)[:, :, None]


@triton.jit
def _channels(rows, inside, start: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr):
    """Of every row the channels from `start` on: BLOCK_D of them, or TAIL where fewer are left."""
    WIDTH: tl.constexpr = BLOCK_D if start + BLOCK_D <= HEAD_DIM else TAIL
    d = start + tl.arange(0, WIDTH)[None, None, :]
    mask = inside if start + WIDTH <= HEAD_DIM else inside & (d < HEAD_DIM)
    return tl.load(rows + d, mask=mask, other=0.0)


@triton.jit
def _store(
    rows, values, inside, start: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TAIL: tl.constexpr
):
    """Where `_channels` reads."""
    WIDTH: tl.constexpr = BLOCK_D if start + BLOCK_D <= HEAD_DIM else TAIL
    d = start + tl.arange(0, WIDTH)[None, None, :]
    mask = inside if start + WIDTH <= HEAD_DIM else inside & (d < HEAD_DIM)
    tl.store(rows + d, values, mask=mask)


@kernel
def temporal_attention_forward(
    qkv,
    pixels,
    out,
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE_LOG2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """qkv (b, L, pixels, 3c) -> out (b, L, pixels, c)."""
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    pairs = pixels * HEADS
    tiles = tl.cdiv(pairs, BLOCK_N)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    qkv += segment * pixels * (LENGTH * 3 * CHANNELS)
    out += segment * pixels * (LENGTH * CHANNELS)

    n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None, None]
    frame = tl.arange(0, BLOCK_L)[None, :, None]
    inside = (n < pairs) & (frame < LENGTH)
    source = qkv + (n * HEAD_DIM + (n // HEADS) * (2 * CHANNELS)) + frame * (pixels * (3 * CHANNELS))

    scores = tl.zeros((BLOCK_N, BLOCK_L, BLOCK_L), tl.float32)
    for start in tl.static_range(0, HEAD_DIM, BLOCK_D):
        query = _channels(source, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        key = _channels(source + CHANNELS, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        scores = dot(query, tl.permute(key, (0, 2, 1)), scores, UPCAST)
    # On its way while the softmax is computed.
    value = _channels(source + 2 * CHANNELS, inside, 0, HEAD_DIM, BLOCK_D, TAIL)
    weights = _weights(scores, LENGTH, BLOCK_L, SCALE_LOG2).to(out.dtype.element_ty)

    target = out + n * HEAD_DIM + frame * (pixels * CHANNELS)
    for start in tl.static_range(0, HEAD_DIM, BLOCK_D):
        if start > 0:
            value = _channels(source + 2 * CHANNELS, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        mixed = dot(weights, value, tl.zeros(value.shape, tl.float32), UPCAST)
        _store(target, mixed.to(out.dtype.element_ty), inside, start, HEAD_DIM, BLOCK_D, TAIL)


@kernel
def temporal_attention_backward(
    gradient,
    qkv,
    pixels,
    d_qkv,
    LENGTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE: tl.constexpr,
    SCALE_LOG2: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TAIL: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """gradient (b, L, pixels, c) and qkv (b, L, pixels, 3c) -> d_qkv, shape of qkv; the weights are computed again."""
    CHANNELS: tl.constexpr = HEADS * HEAD_DIM
    pairs = pixels * HEADS
    tiles = tl.cdiv(pairs, BLOCK_N)
    segment = (tl.program_id(0) // tiles).to(tl.int64)
    gradient += segment * pixels * (LENGTH * CHANNELS)
    qkv += segment * pixels * (LENGTH * 3 * CHANNELS)
    d_qkv += segment * pixels * (LENGTH * 3 * CHANNELS)

    n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None, None]
    frame = tl.arange(0, BLOCK_L)[None, :, None]
    inside = (n < pairs) & (frame < LENGTH)
    offset = n * HEAD_DIM + (n // HEADS) * (2 * CHANNELS) + frame * (pixels * (3 * CHANNELS))
    source, target = qkv + offset, d_qkv + offset
    of_out = gradient + n * HEAD_DIM + frame * (pixels * CHANNELS)

    scores = tl.zeros((BLOCK_N, BLOCK_L, BLOCK_L), tl.float32)
    d_weights = tl.zeros((BLOCK_N, BLOCK_L, BLOCK_L), tl.float32)
    for start in tl.static_range(0, HEAD_DIM, BLOCK_D):
        query = _channels(source, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        key = _channels(source + CHANNELS, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        value = _channels(source + 2 * CHANNELS, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        d_out = _channels(of_out, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        scores = dot(query, tl.permute(key, (0, 2, 1)), scores, UPCAST)
        d_weights = dot(d_out, tl.permute(value, (0, 2, 1)), d_weights, UPCAST)
    weights = _weights(scores, LENGTH, BLOCK_L, SCALE_LOG2)
    d_scores = weights * (d_weights - tl.sum(weights * d_weights, axis=2)[:, :, None]) * SCALE

    weights_t = tl.permute(weights, (0, 2, 1)).to(qkv.dtype.element_ty)
    d_scores_t = tl.permute(d_scores, (0, 2, 1)).to(qkv.dtype.element_ty)
    d_scores = d_scores.to(qkv.dtype.element_ty)
    for start in tl.static_range(0, HEAD_DIM, BLOCK_D):
        # Read again: they are in cache, and keeping every block in registers would spill.
        query = _channels(source, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        key = _channels(source + CHANNELS, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        d_out = _channels(of_out, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        zero = tl.zeros(query.shape, tl.float32)
        d_query = dot(d_scores, key, zero, UPCAST).to(qkv.dtype.element_ty)
        d_key = dot(d_scores_t, query, zero, UPCAST).to(qkv.dtype.element_ty)
        d_value = dot(weights_t, d_out, zero, UPCAST).to(qkv.dtype.element_ty)
        _store(target, d_query, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        _store(target + CHANNELS, d_key, inside, start, HEAD_DIM, BLOCK_D, TAIL)
        _store(target + 2 * CHANNELS, d_value, inside, start, HEAD_DIM, BLOCK_D, TAIL)


def blocks(head_dim: int, width: int) -> dict[str, int]:
    """How a head is cut into blocks of `width` channels and one of what is left, as constants of the kernels."""
    return {"BLOCK_D": width, "TAIL": power_of_two(head_dim % width or 16, least=16)}


def specialise(length: int, heads: int, head_dim: int, dtype: torch.dtype, *, backward: bool = False) -> Specialisation:
    """The kernel for segments of `length` frames, at most 64, and `heads` heads of any size `head_dim`."""
    block_l = power_of_two(length, least=16)
    if block_l == 16 and dtype.itemsize == 2 and not backward:
        # The best of those measured on an H200 at head sizes 40, 80 and 160 (docs/kernels.md).
        whole = head_dim <= 64 or 128 < head_dim <= 256  # in one block, of which some lanes may be masked
        block_d = power_of_two(head_dim, least=16) if whole else 64
        pairs = warps = 4 if head_dim <= 64 else 2
    else:
        # The wider of two blocks that pads no more: 40 -> 64, 80 -> 2 * 32 + 16, 128 -> 2 * 64, 160 -> 5 * 32.
        wide = block_l < 64 and -(-head_dim // 64) * 64 == -(-head_dim // 32) * 32
        block_d = 64 if wide else 32
        # More pairs of longer segments have no room in a block's memory, which is 99 KiB on some GPUs.
        pairs = min(4, 256 // (block_l * dtype.itemsize)) if backward else 4
        warps = 4
    constants: dict[str, int | float | bool] = {
        "LENGTH": length,
        "HEADS": heads,
        "HEAD_DIM": head_dim,
        "SCALE_LOG2": head_dim**-0.5 * LOG2_E,
        "BLOCK_N": pairs,
        "BLOCK_L": block_l,
        **blocks(head_dim, block_d),
        "UPCAST": INTERPRETED,
    }
    if backward:
        constants["SCALE"] = head_dim**-0.5
    return Specialisation(
        kernel=temporal_attention_backward if backward else temporal_attention_forward,
        constants=constants,
        grid=Grid(fixed=1, per_item=heads, block=pairs),
        num_warps=warps,  # the batch of a dot is shared out among them
    )


def forward(qkv: Tensor, heads: int, out: Tensor) -> None:
    """qkv (b, L, p, 3c) -> out (b, L, p, c), both contiguous; see `reference.temporal_attention`."""
    checks.attention(qkv, heads)
    batch, length, pixels, channels = out.shape
    launch(specialise(length, heads, channels // heads, qkv.dtype), batch, pixels, (qkv, pixels, out))


def backward(gradient: Tensor, qkv: Tensor, heads: int, d_qkv: Tensor) -> None:
    """gradient (b, L, p, c), qkv (b, L, p, 3c) -> d_qkv, contiguous; see `reference.temporal_attention_backward`."""
    checks.attention(qkv, heads)
    batch, length, pixels, channels = gradient.shape
    specialisation = specialise(length, heads, channels // heads, qkv.dtype, backward=True)
    launch(specialisation, batch, pixels, (gradient, qkv, pixels, d_qkv))

"""Temporal convolution over the L frames fused with the condition injection that follows, on (b, L, p, c).

The tokens of a segment, frame after frame, are one axis of L*p; the tap i of frame l reads the token (i - k//2) * p
further on, and is outside the segment exactly when that token is. So the convolution is one matrix product of
(L*p, k*c) by (k*c, c) whose left side is never written to memory, with scale * h + shift applied before the only store.

It moves 4 * b*L*p*c values (x, scale, shift, out) and k*c*c weights for 2*k*c*c operations a token: at k = 3 and 16
bits 0.75 * c operations a byte, so 240 at c = 320 and 960 at c = 1280. An H200 balances near 206, so at the sizes of
sd15 the bound is its tensor cores, not its memory: at c = 320, 32x32, L = 16, b = 8 the 336 MB would take 79 us at the
rate of its copies and the 80.5 GFLOP 101 us at that of its matrix products; it takes 218 us. Fusion saves the
2 * b*L*p*c values of h, written and read again.
"""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from nuwaxl.kernels import checks
from nuwaxl.kernels.frames import power_of_two
from nuwaxl.kernels.triton.launch import INTERPRETED, Grid, Specialisation, architecture, dot, kernel, launch


@kernel
def temporal_conv_injection(
    x,
    weight,
    bias,
    scale,
    shift,
    pixels,
    out,
    LENGTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    KERNEL: tl.constexpr,
    BRANCHES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """x (b, L, pixels, c), weight (k, c_in, c_out), bias (c,) -> out, shape of x; scale and shift, (b / BRANCHES, L,
    pixels, c), are read where BRANCHES is not 0."""
    tokens = pixels * LENGTH
    columns: tl.constexpr = (CHANNELS + BLOCK_N - 1) // BLOCK_N
    chunks: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    tiles = tl.cdiv(tokens, BLOCK_M)
    # Neighbouring programs share their tokens and differ in output channels: x comes from memory once.
    column = tl.program_id(0) % columns
    tile = (tl.program_id(0) // columns) % tiles
    number = tl.program_id(0) // columns // tiles
    segment = number.to(tl.int64) * tokens * CHANNELS
    x += segment
    out += segment

    m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    h = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(KERNEL * chunks):  # one loop over taps and input channels, so that loads run ahead throughout
        tap = step // chunks
        c_in = (step % chunks) * BLOCK_K + k
        token = m + (tap - KERNEL // 2) * pixels
        inside = (token >= 0) & (token < tokens)
        frames = tl.load(
            x + token[:, None] * CHANNELS + c_in[None, :],
            mask=inside[:, None] & (c_in < CHANNELS)[None, :],
            other=0.0,
        )
        weights = tl.load(
            weight + (tap * CHANNELS + c_in)[:, None] * CHANNELS + n[None, :],
            mask=(c_in < CHANNELS)[:, None] & (n < CHANNELS)[None, :],
            other=0.0,
        )
        h = dot(frames, weights, h, UPCAST)

    h += tl.load(bias + n, mask=n < CHANNELS, other=0.0).to(tl.float32)[None, :]
    offset = m[:, None] * CHANNELS + n[None, :]
    mask = (m < tokens)[:, None] & (n < CHANNELS)[None, :]
    if BRANCHES > 0:
        # The branches of a segment lie a batch apart, and share its scale and shift.
        batch = tl.num_programs(0) // columns // tiles // BRANCHES
        shared = (number % batch).to(tl.int64) * tokens * CHANNELS
        h *= tl.load(scale + shared + offset, mask=mask, other=0.0).to(tl.float32)
        h += tl.load(shift + shared + offset, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offset, h.to(out.dtype.element_ty), mask=mask)


def specialise(length: int, channels: int, taps: int, dtype: torch.dtype, *, branches: int, sm: int) -> Specialisation:
    """The kernel for one width, with the injection into so many branches, 0 for none; float32 runs on the CUDA cores
    (no TF32) and takes smaller tiles. `sm` is the GPU's architecture, 90 for 9.0."""
    half = dtype.itemsize == 2
    block_n = min(power_of_two(channels, least=16), 128 if half and channels % 128 == 0 else 64)
    block_m = 128 if half else 64
    block_k = min(power_of_two(channels, least=16), 64 if half else 32)
    return Specialisation(
        kernel=temporal_conv_injection,
        constants={
            "LENGTH": length,
            "CHANNELS": channels,
            "KERNEL": taps,
            "BRANCHES": branches,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "UPCAST": INTERPRETED,
        },
        grid=Grid(fixed=-(-channels // block_n), per_item=length, block=block_m),
        # Four warps are a warpgroup, which multiplies at once on Hopper; elsewhere the sums would spill.
        num_warps=4 if block_n < 128 or sm == 90 else 8,
        num_stages=3,
    )


def forward(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, out: Tensor) -> None:
    """Writes `out`, shape of x; all contiguous and of one type; see `reference.temporal_conv`."""
    checks.convolution(x, weight, bias, scale, shift)
    batch, length, pixels, channels = x.shape
    branches = 0 if scale is None else batch // scale.shape[0]
    specialisation = specialise(
        length, channels, weight.shape[0], x.dtype, branches=branches, sm=architecture(x.device)
    )
    unread = x
    arguments = (x, weight, bias, unread if scale is None else scale, unread if shift is None else shift, pixels, out)
    launch(specialisation, batch, pixels, arguments)

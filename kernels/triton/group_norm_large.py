"""Group norm and SiLU of large frames, on (b, L, p, c).

`group_norm` has a program for a frame and 128 channels: for the last level of a decoder, 16 frames of 65 536 pixels,
sixteen programs, which leave most of a GPU idle. Here the pixels of a frame are cut into parts: one kernel takes the
statistics of every channel in every part; in a second one a program merges those of its frame, which are 8 bytes a
channel and part, and writes a part.

Memory bound: 3 * b*L*p*c values. At c = 128, 256x256, L = 16, b = 1 and 16 bits that is 805 MB; 80 % of 4.0 TB/s would
be 252 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nuwaxl.kernels import checks
from nuwaxl.kernels.triton.group_norm import bundles, channel_statistics, group_statistics, share, write_normed
from nuwaxl.kernels.triton.launch import Grid, Specialisation, launch, power_of_two

LARGE = 1024  # pixels of a frame, from which on a step of one segment has too few programs for a GPU as well
_PART = 256  # pixels at least,
_PARTS = 64  # in at most so many parts: every program reads the statistics of all of them


@triton.jit
def part_statistics(
    x,
    pixels,
    statistics,
    CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PART: tl.constexpr,
):
    """x (frames, pixels, c) -> statistics (frames, parts, 2, c), float32: mean and sum of squared deviations."""
    WIDTH: tl.constexpr = BLOCK_GROUPS * GROUP_CHANNELS
    bundles: tl.constexpr = (CHANNELS + WIDTH - 1) // WIDTH
    parts = (pixels + PART - 1) // PART
    part = tl.program_id(0) // bundles  # of all frames
    x += (part // parts).to(tl.int64) * pixels * CHANNELS
    statistics += part.to(tl.int64) * 2 * CHANNELS
    lane = tl.arange(0, BLOCK_C)
    channel = (tl.program_id(0) % bundles) * WIDTH + lane
    used = (lane < WIDTH) & (channel < CHANNELS)
    first = part % parts * PART
    last = tl.minimum(first + PART, pixels)
    _, mean, deviations = channel_statistics(x, channel, used, first, last, CHANNELS, BLOCK_P)
    tl.store(statistics + channel, mean, mask=used)
    tl.store(statistics + CHANNELS + channel, deviations, mask=used)


@triton.jit
def norm_of_parts(
    x,
    weight,
    bias,
    statistics,
    pixels,
    out,
    CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PART: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
):
    """x (frames, pixels, c), statistics of `part_statistics` -> out, shape of x."""
    WIDTH: tl.constexpr = BLOCK_GROUPS * GROUP_CHANNELS
    bundles: tl.constexpr = (CHANNELS + WIDTH - 1) // WIDTH
    parts = (pixels + PART - 1) // PART
    part = tl.program_id(0) // bundles
    frame = (part // parts).to(tl.int64)
    x += frame * pixels * CHANNELS
    out += frame * pixels * CHANNELS
    statistics += frame * parts * 2 * CHANNELS
    lane = tl.arange(0, BLOCK_C)
    channel = (tl.program_id(0) % bundles) * WIDTH + lane
    used = (lane < WIDTH) & (channel < CHANNELS)

    # The mean over all parts first, then every part's deviations around it.
    each = tl.arange(0, PARTS_AT_ONCE)
    mean = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, parts, PARTS_AT_ONCE):
        inside = (start + each < parts)[:, None] & used[None, :]
        count = tl.minimum(pixels - (start + each) * PART, PART).to(tl.float32)[:, None]
        place = statistics + (start + each)[:, None] * 2 * CHANNELS + channel[None, :]
        mean += tl.sum(tl.load(place, mask=inside, other=0.0) * (count / pixels), axis=0)
    deviations = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, parts, PARTS_AT_ONCE):
        inside = (start + each < parts)[:, None] & used[None, :]
        count = tl.minimum(pixels - (start + each) * PART, PART).to(tl.float32)[:, None]
        place = statistics + (start + each)[:, None] * 2 * CHANNELS + channel[None, :]
        offset = tl.load(place, mask=inside, other=0.0) - mean[None, :]
        within = tl.load(place + CHANNELS, mask=inside, other=0.0)
        deviations += tl.sum(tl.where(inside, within + offset * offset * count, 0.0), axis=0)

    mean, variance = group_statistics(pixels.to(tl.float32), mean, deviations, lane, used, GROUP_CHANNELS)
    first = part % parts * PART
    last = tl.minimum(first + PART, pixels)
    write_normed(x, weight, bias, out, channel, used, mean, variance, first, last, CHANNELS, EPS, SILU, BLOCK_P)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, out: Tensor, *, silu: bool = True
) -> None:
    """Writes `out`, shape of x; all contiguous and of one type; see `reference.group_norm_silu`."""
    checks.group_norm(x, weight, bias, groups)
    batch, length, pixels, channels = x.shape
    shares = share(channels, groups)
    part = max(_PART, power_of_two(pixels) // _PARTS)
    grid = Grid(fixed=length * bundles(groups, shares), per_item=1, block=part)
    statistics = x.new_empty((batch, length, -(-pixels // part), 2, channels), dtype=torch.float32)
    cut = {**shares, "PART": part}
    of_parts = Specialisation(part_statistics, cut, grid, num_warps=4)
    launch(of_parts, batch, pixels, (x, pixels, statistics))
    norm = Specialisation(norm_of_parts, {**cut, "EPS": eps, "SILU": silu, "PARTS_AT_ONCE": 16}, grid, num_warps=4)
    launch(norm, batch, pixels, (x, weight, bias, statistics, pixels, out))

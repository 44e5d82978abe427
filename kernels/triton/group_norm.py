"""Group norm and SiLU of every frame on its own, on (b, L, p, c).

A program takes one frame and as many whole groups as fill 128 neighbouring channels, so loads stay contiguous although
a group is only c / groups channels wide (10 at c = 320). It walks the pixels twice: for the statistics, merged block by
block around their own means (Chan's update, so large means cost no precision), and to write. The second walk finds
most of its 256 bytes a pixel in cache.

Memory bound: 2 * b*L*p*c values when it does, 3 when it does not. At c = 320, 32x32, L = 16, b = 8 and 16 bits that is
168 MB; 80 % of 4.0 TB/s would be 52 us.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from nuwaxl.kernels import checks
from nuwaxl.kernels.triton.launch import Grid, Specialisation, launch, power_of_two

CHANNELS_A_PROGRAM = 128
BLOCK_P = 32


@triton.jit
def channel_statistics(x, channel, used, first, last, CHANNELS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Of these channels in the pixels `first` to `last` of a frame: how many there are, as float32, the mean, and the
    sum of squared deviations from it."""
    p = tl.arange(0, BLOCK_P)
    count = 0.0
    mean = tl.zeros(channel.shape, tl.float32)
    deviations = tl.zeros(channel.shape, tl.float32)
    for start in range(first, last, BLOCK_P):
        inside = (start + p < last)[:, None] & used[None, :]
        block = tl.load(x + (start + p)[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0)
        block = block.to(tl.float32)
        n = tl.minimum(last - start, BLOCK_P).to(tl.float32)
        block_mean = tl.sum(block, axis=0) / n
        centred = tl.where(inside, block - block_mean[None, :], 0.0)
        delta = block_mean - mean
        deviations += tl.sum(centred * centred, axis=0) + delta * delta * (count * n / (count + n))
        count += n
        mean += delta * (n / count)
    return count, mean, deviations


@triton.jit
def group_statistics(count, mean, deviations, lane, used, GROUP_CHANNELS: tl.constexpr):
    """Mean and variance of the group that each channel is in, from those of the channels over `count` pixels."""
    group = lane // GROUP_CHANNELS
    same = (group[:, None] == group[None, :]) & used[None, :]
    group_mean = tl.sum(tl.where(same, mean[None, :], 0.0), axis=1) / GROUP_CHANNELS
    offset = mean - group_mean
    deviations += offset * offset * count
    return group_mean, tl.sum(tl.where(same, deviations[None, :], 0.0), axis=1) / (count * GROUP_CHANNELS)


@triton.jit
def write_normed(
    x,
    weight,
    bias,
    out,
    channel,
    used,
    mean,
    variance,
    first,
    last,
    CHANNELS: tl.constexpr,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """The norm of these channels in the pixels `first` to `last` of a frame."""
    p = tl.arange(0, BLOCK_P)
    scale = tl.load(weight + channel, mask=used, other=0.0).to(tl.float32) / tl.sqrt(variance + EPS)
    shift = tl.load(bias + channel, mask=used, other=0.0).to(tl.float32)
    for start in range(first, last, BLOCK_P):
        inside = (start + p < last)[:, None] & used[None, :]
        place = (start + p)[:, None] * CHANNELS + channel[None, :]
        block = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        y = (block - mean[None, :]) * scale[None, :] + shift[None, :]
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def group_norm_silu(
    x,
    weight,
    bias,
    pixels,
    out,
    CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """x (frames, pixels, c), weight and bias (c,) -> out, shape of x."""
    WIDTH: tl.constexpr = BLOCK_GROUPS * GROUP_CHANNELS
    bundles: tl.constexpr = (CHANNELS + WIDTH - 1) // WIDTH
    frame = (tl.program_id(0) // bundles).to(tl.int64) * pixels * CHANNELS
    x += frame
    out += frame
    lane = tl.arange(0, BLOCK_C)
    channel = (tl.program_id(0) % bundles) * WIDTH + lane
    used = (lane < WIDTH) & (channel < CHANNELS)
    count, mean, deviations = channel_statistics(x, channel, used, 0, pixels, CHANNELS, BLOCK_P)
    mean, variance = group_statistics(count, mean, deviations, lane, used, GROUP_CHANNELS)
    write_normed(x, weight, bias, out, channel, used, mean, variance, 0, pixels, CHANNELS, EPS, SILU, BLOCK_P)


def specialise(length: int, channels: int, groups: int, eps: float, *, silu: bool = True) -> Specialisation:
    """The kernel for one width; `length` only counts the frames of a segment in the grid."""
    shares = share(channels, groups)
    return Specialisation(
        kernel=group_norm_silu,
        constants={**shares, "EPS": eps, "SILU": silu},
        grid=Grid(fixed=length * bundles(groups, shares)),
        num_warps=4,
    )


def share(channels: int, groups: int) -> dict[str, int]:
    """How a frame's channels are cut into programs, as constants of the kernels."""
    width = channels // groups
    bundle = min(max(1, CHANNELS_A_PROGRAM // width), groups)
    return {
        "CHANNELS": channels,
        "GROUP_CHANNELS": width,
        "BLOCK_GROUPS": bundle,
        "BLOCK_P": BLOCK_P,
        "BLOCK_C": power_of_two(bundle * width),
    }


def bundles(groups: int, shares: dict[str, int]) -> int:
    """Programs that the channels of a frame are cut into."""
    return -(-groups // shares["BLOCK_GROUPS"])


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, out: Tensor, *, silu: bool = True
) -> None:
    """Writes `out`, shape of x; all contiguous and of one type; see `reference.group_norm_silu`."""
    checks.group_norm(x, weight, bias, groups)
    batch, length, pixels, channels = x.shape
    launch(specialise(length, channels, groups, eps, silu=silu), batch, pixels, (x, weight, bias, pixels, out))

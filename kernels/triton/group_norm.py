"""Group norm and SiLU of every frame on its own, on (b, L, p, c).

A program takes as many whole groups as fill some neighbouring channels, so loads stay contiguous although a group is
only c / groups channels wide (10 at c = 320). Which of three ways a frame goes is decided in kernels/frames.py:

- A small frame is held: a program reads its channels of all pixels once, into registers, takes their mean, then their
  deviations from it, and writes. That is done where whole groups fill 32 or 64 lanes: few of them are then idle, and a
  program is small enough for a GPU to have many.
- Another small frame is walked twice, block by block: for the statistics, and to write. The second walk finds most of
  its values in cache.
- The pixels of a large one are cut into parts. A program for each frame would leave most of a GPU idle: the last level
  of a decoder has 16 frames of 65 536 pixels. One kernel takes the statistics of every channel in every part, 8 bytes;
  in a second one a program merges those of its frame, and writes a part.

Those that walk sum the differences to the first block's mean; parts are merged around their own means (Chan's update):
large means cost no precision.

Memory bound: 2 * b*L*p*c values where a frame is held, or the second walk finds them in cache, else 3. At c = 320,
32x32, L = 16, b = 16 (8 guided segments) and 16 bits that is 336 MB, for which an H200 takes 185 us held, 232 in parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nuwaxl.kernels import checks
from nuwaxl.kernels.frames import LANES, full, groups_together, part_of, power_of_two, tile_of
from nuwaxl.kernels.triton.launch import Grid, Specialisation, kernel, launch

CHANNELS_A_PROGRAM = 128
# Pixels a block, and warps: many small programs, since each waits for its loads in turn (docs/kernels.md).
_BLOCK_P, _WARPS = 16, 2
# The same of programs of half as many channels, which are faster where whole groups fill them.
_NARROW, _BLOCK_P_OF_NARROW, _WARPS_OF_NARROW = 64, 64, 4
_HELD_A_THREAD = 64  # values of 16 bits and what is computed of them fit its registers
_BLOCK_P_OF_PARTS, _WARPS_OF_PARTS = 32, 4
_PARTS_AT_ONCE = 16
_STATISTICS = frozenset({"statistics"})


@triton.jit
def program_share(
    CHANNELS: tl.constexpr, GROUP_CHANNELS: tl.constexpr, BLOCK_GROUPS: tl.constexpr, BLOCK_C: tl.constexpr
):
    """The frame, or part of one, of this program, counted over all; its lanes, their channels, and which are used."""
    WIDTH: tl.constexpr = BLOCK_GROUPS * GROUP_CHANNELS
    bundles: tl.constexpr = (CHANNELS + WIDTH - 1) // WIDTH
    lane = tl.arange(0, BLOCK_C)
    channel = (tl.program_id(0) % bundles) * WIDTH + lane
    return tl.program_id(0) // bundles, lane, channel, (lane < WIDTH) & (channel < CHANNELS)


@triton.jit
def merge(count, mean, deviations, n, block_mean, block_deviations):
    """Count, mean and sum of squared deviations of two sets, the first of which may be empty."""
    delta = block_mean - mean
    deviations += block_deviations + delta * delta * (count * n / (count + n))
    count += n
    return count, mean + delta * (n / count), deviations


@triton.jit
def channel_statistics(x, channel, used, first, last, CHANNELS: tl.constexpr, BLOCK_P: tl.constexpr):
    """Of these channels in the pixels `first` to `last` of a frame: how many there are, as float32, the mean, and the
    sum of squared deviations from it.

    Sums are taken of the differences to the first block's mean, which is no further from the mean than sqrt(blocks)
    standard deviations: the deviations lose no more than a factor of `blocks` to it, whatever the mean is. Every thread
    sums on its own, and threads are brought together once.
    """
    p = tl.arange(0, BLOCK_P)
    inside = (first + p < last)[:, None] & used[None, :]
    block = tl.load(x + (first + p)[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0)
    origin = tl.sum(block.to(tl.float32), axis=0) / tl.minimum(last - first, BLOCK_P).to(tl.float32)
    sums = tl.zeros((BLOCK_P, channel.shape[0]), tl.float32)
    squares = tl.zeros((BLOCK_P, channel.shape[0]), tl.float32)
    for start in range(first, last, BLOCK_P):
        inside = (start + p < last)[:, None] & used[None, :]
        block = tl.load(x + (start + p)[:, None] * CHANNELS + channel[None, :], mask=inside, other=0.0)
        offset = tl.where(inside, block.to(tl.float32) - origin[None, :], 0.0)
        sums += offset
        squares += offset * offset
    count = (last - first).to(tl.float32)
    offset = tl.sum(sums, axis=0) / count
    return count, origin + offset, tl.maximum(tl.sum(squares, axis=0) - offset * offset * count, 0.0)


@triton.jit
def group_statistics(count, mean, deviations, lane, used, GROUP_CHANNELS: tl.constexpr, BLOCK_G: tl.constexpr):
    """Mean and variance of the group that each channel is in, from those of the channels over `count` pixels."""
    member = (lane[None, :] // GROUP_CHANNELS == tl.arange(0, BLOCK_G)[:, None]) & used[None, :]
    group_mean = of_group(tl.sum(tl.where(member, mean[None, :], 0.0), axis=1) / GROUP_CHANNELS, member)
    offset = mean - group_mean
    deviations += offset * offset * count
    variance = tl.sum(tl.where(member, deviations[None, :], 0.0), axis=1) / (count * GROUP_CHANNELS)
    return group_mean, of_group(variance, member)


@triton.jit
def of_group(value, member):
    """A value a group -> for every channel that of its group."""
    return tl.sum(tl.where(member, value[:, None], 0.0), axis=0)


@triton.jit
def normed(values, mean, scale, shift, SILU: tl.constexpr):
    """Of values (pixels, channels), by what each channel has."""
    y = (values.to(tl.float32) - mean[None, :]) * scale[None, :] + shift[None, :]
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    return y


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
        block = tl.load(x + place, mask=inside, other=0.0)
        y = normed(block, mean, scale, shift, SILU)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@kernel
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
    BLOCK_G: tl.constexpr,
):
    """x (frames, pixels, c), weight and bias (c,) -> out, shape of x."""
    frame, lane, channel, used = program_share(CHANNELS, GROUP_CHANNELS, BLOCK_GROUPS, BLOCK_C)
    x += frame.to(tl.int64) * pixels * CHANNELS
    out += frame.to(tl.int64) * pixels * CHANNELS
    count, mean, deviations = channel_statistics(x, channel, used, 0, pixels, CHANNELS, BLOCK_P)
    mean, variance = group_statistics(count, mean, deviations, lane, used, GROUP_CHANNELS, BLOCK_G)
    write_normed(x, weight, bias, out, channel, used, mean, variance, 0, pixels, CHANNELS, EPS, SILU, BLOCK_P)


@kernel
def group_norm_held(
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
    BLOCK_G: tl.constexpr,
):
    """x (frames, pixels, c), at most BLOCK_P pixels, weight and bias (c,) -> out, shape of x."""
    frame, lane, channel, used = program_share(CHANNELS, GROUP_CHANNELS, BLOCK_GROUPS, BLOCK_C)
    x += frame.to(tl.int64) * pixels * CHANNELS
    out += frame.to(tl.int64) * pixels * CHANNELS
    p = tl.arange(0, BLOCK_P)
    inside = (p < pixels)[:, None] & used[None, :]
    place = p[:, None] * CHANNELS + channel[None, :]
    tile = tl.load(x + place, mask=inside, other=0.0)  # kept as narrow as it is: float32 would take twice the registers
    scale = tl.load(weight + channel, mask=used, other=0.0).to(tl.float32)
    shift = tl.load(bias + channel, mask=used, other=0.0).to(tl.float32)
    count = pixels.to(tl.float32)
    mean = tl.sum(tile.to(tl.float32), axis=0) / count
    offset = tl.where(inside, tile.to(tl.float32) - mean[None, :], 0.0)
    deviations = tl.sum(offset * offset, axis=0)
    mean, variance = group_statistics(count, mean, deviations, lane, used, GROUP_CHANNELS, BLOCK_G)
    scale /= tl.sqrt(variance + EPS)
    y = normed(tile, mean, scale, shift, SILU)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


@kernel
def part_statistics(
    x,
    pixels,
    statistics,
    CHANNELS: tl.constexpr,
    GROUP_CHANNELS: tl.constexpr,
    BLOCK_GROUPS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
    PART: tl.constexpr,
):
    """x (frames, pixels, c) -> statistics (frames, parts, 2, c), float32: mean and sum of squared deviations."""
    parts = (pixels + PART - 1) // PART
    part, _, channel, used = program_share(CHANNELS, GROUP_CHANNELS, BLOCK_GROUPS, BLOCK_C)
    x += (part // parts).to(tl.int64) * pixels * CHANNELS
    statistics += part.to(tl.int64) * 2 * CHANNELS
    first = part % parts * PART
    last = tl.minimum(first + PART, pixels)
    _, mean, deviations = channel_statistics(x, channel, used, first, last, CHANNELS, BLOCK_P)
    tl.store(statistics + channel, mean, mask=used)
    tl.store(statistics + CHANNELS + channel, deviations, mask=used)


@kernel
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
    BLOCK_G: tl.constexpr,
    PART: tl.constexpr,
    PARTS_AT_ONCE: tl.constexpr,
):
    """x (frames, pixels, c), statistics of `part_statistics` -> out, shape of x."""
    parts = (pixels + PART - 1) // PART
    part, lane, channel, used = program_share(CHANNELS, GROUP_CHANNELS, BLOCK_GROUPS, BLOCK_C)
    frame = (part // parts).to(tl.int64)
    x += frame * pixels * CHANNELS
    out += frame * pixels * CHANNELS
    statistics += frame * parts * 2 * CHANNELS

    each = tl.arange(0, PARTS_AT_ONCE)
    count = 0.0
    mean = tl.zeros((BLOCK_C,), tl.float32)
    deviations = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, parts, PARTS_AT_ONCE):
        inside = (start + each < parts)[:, None] & used[None, :]
        size = tl.maximum(tl.minimum(pixels - (start + each) * PART, PART), 0).to(tl.float32)
        n = tl.sum(size, axis=0)
        place = statistics + (start + each)[:, None] * 2 * CHANNELS + channel[None, :]
        means = tl.load(place, mask=inside, other=0.0)
        within = tl.load(place + CHANNELS, mask=inside, other=0.0)
        block_mean = tl.sum(means * size[:, None], axis=0) / n
        offset = means - block_mean[None, :]
        among = tl.sum(within + offset * offset * size[:, None], axis=0)
        count, mean, deviations = merge(count, mean, deviations, n, block_mean, among)
    mean, variance = group_statistics(count, mean, deviations, lane, used, GROUP_CHANNELS, BLOCK_G)
    first = part % parts * PART
    last = tl.minimum(first + PART, pixels)
    write_normed(x, weight, bias, out, channel, used, mean, variance, first, last, CHANNELS, EPS, SILU, BLOCK_P)


def specialise(length: int, channels: int, groups: int, eps: float, *, silu: bool = True) -> Specialisation:
    """The kernel that walks frames, for one width; `length` only counts the frames of a segment in the grid."""
    used = channels // groups * groups_together(channels, groups, _NARROW)
    fits = full(used) and used <= _NARROW
    shares = {**share(channels, groups, _NARROW), "BLOCK_P": _BLOCK_P_OF_NARROW} if fits else share(channels, groups)
    return Specialisation(
        kernel=group_norm_silu,
        constants={**shares, "EPS": eps, "SILU": silu},
        grid=Grid(fixed=length * bundles(groups, shares)),
        num_warps=_WARPS_OF_NARROW if fits else _WARPS,
    )


def specialise_held(
    length: int, channels: int, tile: int, groups: int, eps: float, *, silu: bool = True
) -> Specialisation:
    """The kernel that holds frames of up to `tile` pixels."""
    shares = {**share(channels, groups, LANES), "BLOCK_P": tile}
    return Specialisation(
        kernel=group_norm_held,
        constants={**shares, "EPS": eps, "SILU": silu},
        grid=Grid(fixed=length * bundles(groups, shares)),
        num_warps=max(1, tile * shares["BLOCK_C"] // (32 * _HELD_A_THREAD)),
    )


def share(channels: int, groups: int, widest: int = CHANNELS_A_PROGRAM) -> dict[str, int]:
    """How a frame's channels are cut into programs of at most `widest`, as constants of the kernels."""
    width, bundle = channels // groups, groups_together(channels, groups, widest)
    return {
        "CHANNELS": channels,
        "GROUP_CHANNELS": width,
        "BLOCK_GROUPS": bundle,
        "BLOCK_P": _BLOCK_P,
        "BLOCK_C": power_of_two(bundle * width),
        "BLOCK_G": power_of_two(bundle),
    }


def bundles(groups: int, shares: dict[str, int]) -> int:
    """Programs that the channels of a frame are cut into."""
    return -(-groups // shares["BLOCK_GROUPS"])


def specialise_parts(
    length: int, channels: int, part: int, groups: int, eps: float, *, silu: bool
) -> tuple[Specialisation, Specialisation]:
    """The two kernels for frames cut into parts of `part` pixels: statistics of the parts, and the norm."""
    shares = {**share(channels, groups), "PART": part}
    grid = Grid(fixed=length * bundles(groups, shares), per_item=1, block=part)
    constants = {**shares, "BLOCK_P": _BLOCK_P_OF_PARTS, "EPS": eps, "SILU": silu, "PARTS_AT_ONCE": _PARTS_AT_ONCE}
    return (
        Specialisation(part_statistics, shares, grid, num_warps=_WARPS, float32_arguments=_STATISTICS),
        Specialisation(norm_of_parts, constants, grid, num_warps=_WARPS_OF_PARTS, float32_arguments=_STATISTICS),
    )


def forward(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, out: Tensor, *, silu: bool = True
) -> None:
    """Writes `out`, shape of x; all contiguous and of one type; see `reference.group_norm_silu`."""
    checks.group_norm(x, weight, bias, groups)
    if x.numel() == 0:
        return
    batch, length, pixels, channels = x.shape
    tile, part = tile_of(pixels, channels, groups), part_of(pixels)
    if tile or not part:
        if tile:
            whole = specialise_held(length, channels, tile, groups, eps, silu=silu)
        else:
            whole = specialise(length, channels, groups, eps, silu=silu)
        launch(whole, batch, pixels, (x, weight, bias, pixels, out))
        return
    of_parts, norm = specialise_parts(length, channels, part, groups, eps, silu=silu)
    parts = -(-pixels // part)
    statistics = x.new_empty((batch, length, parts, 2, channels), dtype=torch.float32)
    launch(of_parts, batch, pixels, (x, pixels, statistics))
    launch(norm, batch, pixels, (x, weight, bias, statistics, pixels, out))

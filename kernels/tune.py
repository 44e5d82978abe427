"""Try other block sizes, warps and pipeline depths of the kernels on a GPU, for whoever sets them in kernels/triton.

    python -m nuwaxl.kernels.tune [--json FILE] [--kernels attention conv norm] [--dtype bfloat16] [--batch 8]

At sd15's sizes. Every variant's answer is compared with the default's, and its time measured as nuwaxl.kernels.bench
does. Which one runs is decided in `specialise` of each kernel's module, also for what is compiled ahead of time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nuwaxl.errors import NuwaxlError
from nuwaxl.kernels import bench
from nuwaxl.kernels.frames import power_of_two, tile_of
from nuwaxl.kernels.triton import group_norm, temporal_attention, temporal_conv
from nuwaxl.kernels.triton.launch import Grid, Specialisation, architecture, launch

_VALUES = (16, 128)  # of a tile that a thread may hold: fewer leave it idle, more do not fit its registers
_SHARED_BYTES = 200_000  # a block, from Hopper on; a GPU that has less refuses, and the row says so
_PADDED = 1.25  # output channels computed at most, over those there are
_SHOWN = 4

KERNELS = ("attention", "conv", "norm")

Variants = Iterator[Specialisation]


def attention_variants(length: int, heads: int, head_dim: int, dtype: torch.dtype) -> Variants:
    """The default, then other blocks of channels, (pixel, head) pairs a program, and warps that share these."""
    default = temporal_attention.specialise(length, heads, head_dim, dtype)
    yield default
    widest = power_of_two(head_dim, least=32)
    for width, pairs, warps in product((32, 64, 128, 256), (1, 2, 4, 8), (1, 2, 4, 8)):
        if width <= widest and warps <= pairs <= 2 * warps:
            constants = {**default.constants, "BLOCK_N": pairs, **temporal_attention.blocks(head_dim, width)}
            grid = Grid(fixed=1, per_item=heads, block=pairs)
            yield replace(default, constants=constants, grid=grid, num_warps=warps)


def convolution_variants(length: int, channels: int, dtype: torch.dtype, *, branches: int, sm: int) -> Variants:
    """The default, then other tiles of the matrix product, warps, and numbers of blocks that are loaded ahead."""
    default = temporal_conv.specialise(length, channels, bench.TAPS, dtype, branches=branches, sm=sm)
    yield default
    least_n = int(default.constants["BLOCK_N"])
    for m, n, k, warps, stages in product((64, 128, 256), (64, 128, 256), (32, 64, 128), (4, 8), (3, 4)):
        columns = -(-channels // n)
        if (
            (columns * n <= _PADDED * channels or n == least_n)
            and _VALUES[0] <= m * n // (32 * warps) <= _VALUES[1]
            and (m + n) * k * dtype.itemsize * stages <= _SHARED_BYTES
        ):
            constants = {**default.constants, "BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
            grid = Grid(fixed=columns, per_item=length, block=m)
            yield replace(default, constants=constants, grid=grid, num_warps=warps, num_stages=stages)


def norm_variants(length: int, channels: int, groups: int, pixels: int) -> Variants:
    """The default, then other numbers of channels a program, pixels a block and warps, of the kernels that hold a frame
    and that walk it. Frames that are cut are not tuned: they should be smaller."""
    walking = group_norm.specialise(length, channels, groups, 1e-5)
    tile = power_of_two(pixels)
    holding = group_norm.specialise_held(length, channels, tile, groups, 1e-5)
    default, other = (holding, walking) if tile_of(pixels, channels, groups) else (walking, holding)
    yield default
    yield other
    for widest, block, warps in product((16, 32, 64, 128), (0, 16, 32, 64, 128), (1, 2, 4, 8, 16)):
        kernel, block = (walking, block) if block else (holding, tile)
        shares = group_norm.share(channels, groups, widest)
        if _VALUES[0] <= block * shares["BLOCK_C"] // (32 * warps) <= _VALUES[1]:
            constants = {**kernel.constants, **shares, "BLOCK_P": block}
            grid = Grid(fixed=length * group_norm.bundles(groups, shares))
            yield replace(kernel, constants=constants, grid=grid, num_warps=warps)


Problem = tuple[Variants, tuple[Any, ...], Tensor]  # the variants, what each is called with, and where it writes


def problems(
    batch: int, channels: int, pixels: int, dtype: torch.dtype, device: str
) -> dict[str, Callable[[], Problem]]:
    """The kernels of one level; nothing is allocated before one is called."""
    length, heads, groups = bench.LENGTH, bench.HEADS, min(bench.GROUPS, channels)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def frames(width: int = 1) -> Tensor:
        return random(batch, length, pixels, width * channels)

    def attention() -> Problem:
        out = frames()
        return attention_variants(length, heads, channels // heads, dtype), (frames(3), pixels, out), out

    def convolution() -> Problem:
        out, weight = frames(), random(bench.TAPS, channels, channels) / channels
        arguments = (frames(), weight, random(channels), frames(), frames(), pixels, out)
        variants = convolution_variants(length, channels, dtype, branches=1, sm=architecture(out.device))
        return variants, arguments, out

    def norm() -> Problem:
        out = frames()
        variants = norm_variants(length, channels, groups, pixels)
        return variants, (frames(), random(channels), random(channels), pixels, out), out

    return dict(zip(KERNELS, (attention, convolution, norm), strict=True))


def measure(
    batch: int,
    dtype: torch.dtype,
    names: Sequence[str],
    device: str = "cuda",
    levels: Mapping[int, int] = bench.LEVELS,
    most: int | None = None,
    news: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """A row of every variant, those of a kernel and size together, the fastest first.

    Args:
        most: variants of each, the default among them; all of them where it is None.
        news: is given the rows whenever a kernel and size is done.

    Raises:
        NuwaxlError: a variant took the GPU from this process; `news` has the rows until then.
    """
    flush = torch.empty(
        bench.FLUSH_BYTES if torch.device(device).type == "cuda" else 1, dtype=torch.uint8, device=device
    )
    rows: list[dict[str, Any]] = []
    for name in names:
        for channels, pixels in levels.items():
            variants, arguments, out = problems(batch, channels, pixels, dtype, device)[name]()
            # By what distinguishes them, each once.
            calls = {
                _describe(each): partial(launch, each, batch, pixels, arguments) for each in islice(variants, most)
            }
            if flush.is_cuda:
                _compile(list(calls.values()))
            of_size: list[dict[str, Any]] = []
            expected = None
            for variant, call in calls.items():
                row: dict[str, Any] = {"kernel": name, "b": batch, "c": channels, "variant": variant}
                of_size.append(row | {"default": not of_size})
                try:
                    out.fill_(float("nan"))
                    seconds = bench.seconds(call, flush)
                    found = out.float()
                except Exception as error:  # of the compiler, the driver or memory
                    of_size[-1]["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
                    if bench.gpu_is_lost():
                        news(rows + of_size)
                        raise NuwaxlError(
                            f"expected the variants of {name}, c = {channels}, to run; found that CUDA refuses this "
                            f"process everything since one of them; go on with other --kernels"
                        ) from error
                    continue
                expected = found if expected is None else expected
                difference = (found - expected).abs().max() / expected.abs().max()
                of_size[-1] |= {"us": seconds * 1e6, "difference": float(difference)}
            rows += sorted(of_size, key=lambda row: row.get("us", float("inf")))
            news(rows)
    return rows


def _compile(calls: list[Callable[[], None]]) -> None:
    """All at once; what fails fails again where it is measured."""

    def quietly(call: Callable[[], None]) -> None:
        try:
            call()
        except Exception:
            return

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(quietly, calls))


def _describe(variant: Specialisation) -> str:
    blocks = {key: value for key, value in variant.constants.items() if key.startswith("BLOCK_")}
    sizes = " ".join(f"{key.removeprefix('BLOCK_')}{value}" for key, value in blocks.items())
    return f"{variant.kernel.fn.__name__} {sizes} warps {variant.num_warps} stages {variant.num_stages}"


def table(rows: list[dict[str, Any]]) -> str:
    """The fastest few variants of every kernel and size, and the default."""
    lines = [f"{'kernel':12}{'b':>4}{'c':>6}{'us':>10}{'of default':>12}{'difference':>12}  variant"]
    sizes = dict.fromkeys((row["kernel"], row["b"], row["c"]) for row in rows)
    for size in sizes:
        of_size = [row for row in rows if (row["kernel"], row["b"], row["c"]) == size]
        default = next(row for row in of_size if row["default"])
        for place, row in enumerate(of_size):
            if row["default"] or (place < _SHOWN and "us" in row):
                lines.append(_line(row, default))
    return "\n".join(lines)


def _line(row: dict[str, Any], default: dict[str, Any]) -> str:
    start = f"{row['kernel']:12}{row['b']:>4}{row['c']:>6}"
    name = row["variant"] + (" (default)" if row["default"] else "")
    if "error" in row:
        return f"{start}  {name}: {row['error']}"
    share = f"{row['us'] / default['us']:.0%}" if "us" in default else "-"
    return f"{start}{row['us']:>10.1f}{share:>12}{row['difference']:>12.1e}  {name}"


def main(arguments: list[str] | None = None) -> int:
    """The command line; exits with 2 where there is no CUDA device."""
    parser = argparse.ArgumentParser(prog="python -m nuwaxl.kernels.tune", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write every row here, as they come")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, help="of these (default: all)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="segments (default: 8)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("expected a CUDA device; found none; run this on a machine that has one", file=sys.stderr)
        return 2

    found: list[dict[str, Any]] = []

    def news(rows: list[dict[str, Any]]) -> None:
        found[:] = rows
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")

    lost = None
    try:
        measure(options.batch, getattr(torch, options.dtype), options.kernels, news=news)
    except NuwaxlError as error:
        lost = error
    print(table(found))
    if lost is not None:
        print(f"{parser.prog}: {lost}", file=sys.stderr)
    return int(lost is not None)


if __name__ == "__main__":
    sys.exit(main())

"""Measure the kernels on a GPU, at sd15's sizes: against copy bandwidth, and against torch with the permutes it needs.

    python -m nuwaxl.kernels.bench [--json FILE] [--dtype bfloat16] [--batches 1,8,64]

Times are medians of CUDA events around single launches, each after a write of 1 GiB that empties the L2 cache and keeps
the device busy until the launch is queued. "GB/s" counts the bytes a kernel must move (see each module of
kernels/triton), "copy" is that rate over the rate of a large copy, "alike" over that of a copy of as many bytes: what
little work is bound by is the launch, for a copy as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nuwaxl.kernels import ops

LENGTH, HEADS, TAPS, GROUPS = 16, 8, 3, 32
LEVELS = {320: 32 * 32, 640: 16 * 16, 1280: 8 * 8}  # channels: pixels
FLUSH_BYTES = 1 << 30
COPY_BYTES = 1 << 30
MATMUL = 8192  # rows and columns of the products that measure the tensor cores
REPEATS = 30


def seconds(run: Callable[[], object], flush: Tensor) -> float:
    """Median time of one launch with a cold cache, after the first runs have compiled and chosen."""
    for _ in range(3):
        run()
    if not flush.is_cuda:
        return statistics.median(_clocked(run) for _ in range(3))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(REPEATS)]
    for start, end in events:
        flush.zero_()
        start.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def gpu_is_lost() -> bool:
    """Whether CUDA refuses this process everything since a kernel of it failed."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _clocked(run: Callable[[], object]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


def sdpa(qkv: Tensor) -> Tensor:
    """Temporal attention as torch has it: h*w is batch, so every tensor is permuted on the way in and out."""
    b, length, pixels, width = qkv.shape
    parts = qkv.reshape(b, length, pixels, 3, HEADS, -1).permute(3, 0, 2, 4, 1, 5)
    parts = parts.reshape(3, b * pixels, HEADS, length, width // (3 * HEADS))
    most = 65535 // HEADS  # its fused kernels fail at more attentions than a grid axis holds
    chunks = [F.scaled_dot_product_attention(*part) for part in zip(*(each.split(most) for each in parts), strict=True)]
    mixed = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
    return mixed.reshape(b, pixels, HEADS, length, -1).permute(0, 3, 1, 2, 4).reshape(b, length, pixels, -1)


def conv1d(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Temporal convolution and injection as torch has them; weight (c_out, c_in, k)."""
    b, length, pixels, c = x.shape
    h = F.conv1d(x.permute(0, 2, 3, 1).reshape(-1, c, length), weight, bias, padding=weight.shape[2] // 2)
    return scale * h.reshape(b, pixels, c, length).permute(0, 3, 1, 2) + shift


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int = GROUPS) -> Tensor:
    """Group norm and SiLU as torch has them, on its own (b*L, c, p) layout: without the permutes, to its favour."""
    return F.silu(F.group_norm(x, groups, weight, bias))


Case = tuple[str, Callable[[], object], Any, int, int]  # name, kernel, torch's form, bytes moved, operations done


def cases(batch: int, channels: int, pixels: int, dtype: torch.dtype, device: str) -> list[Case]:
    """The kernels of one level."""
    groups = min(GROUPS, channels)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    def frames(width: int = 1) -> Tensor:
        return random(batch, LENGTH, pixels, width * channels)

    qkv, gradient, x, scale, shift = frames(3), frames(), frames(), frames(), frames()
    weight, norm, bias = random(TAPS, channels, channels) / channels, random(channels), random(channels)
    conv1d_weight = weight.permute(2, 1, 0).contiguous()
    framewise = x.flatten(0, 1).transpose(1, 2).contiguous()
    size, tokens = x.nbytes, batch * LENGTH * pixels
    leaf = qkv.clone().requires_grad_()
    torch_out = sdpa(leaf)

    def torch_backward() -> object:
        return torch.autograd.grad(torch_out, leaf, gradient, retain_graph=True)

    attention_ops = 4 * tokens * LENGTH * channels
    conv_bytes, conv_ops = 4 * size + weight.nbytes, 2 * tokens * TAPS * channels**2
    injected = (weight, bias, scale, shift)
    return [
        ("attention", lambda: ops.temporal_attention(qkv, HEADS), lambda: sdpa(qkv), 4 * size, attention_ops),
        (
            "attention backward",
            lambda: ops.temporal_attention_backward(gradient, qkv, HEADS),
            torch_backward,
            7 * size,
            5 * attention_ops // 2,
        ),
        (
            "conv + injection",
            lambda: ops.temporal_conv(x, *injected),
            lambda: conv1d(x, conv1d_weight, bias, scale, shift),
            conv_bytes,
            conv_ops,
        ),
        (
            "group norm + SiLU",
            lambda: ops.group_norm_silu(x, norm, bias, groups),
            lambda: group_norm(framewise, norm, bias, groups),
            2 * size,
            0,
        ),
    ]


def sampler_case(batch: int, device: str) -> Case:
    """The update of sd15's latents, 4 x 32 x 32, in float32."""
    from nuwaxl.kernels import reference

    latents = [torch.randn(batch, LENGTH, 4, 32, 32, device=device) for _ in range(5)]
    rows = torch.randn(batch, 6, device=device), torch.randn(batch, device=device)
    moved = 7 * latents[0].nbytes
    return (
        "sampler update",
        lambda: ops.guided_update(*latents, *rows),
        lambda: reference.guided_update(*latents, *rows),
        moved,
        0,
    )


def _sized(
    batches: list[int], levels: Mapping[int, int], dtype: torch.dtype, device: str
) -> Iterator[tuple[int, int, Case]]:
    """Every case with its batch and channels, tensors made when it is its turn."""
    for batch in batches:
        for channels, pixels in levels.items():
            for case in cases(batch, channels, pixels, dtype, device):
                yield batch, channels, case
        yield batch, 4, sampler_case(batch, device)


def measure(
    batches: list[int],
    dtype: torch.dtype,
    device: str = "cuda",
    levels: Mapping[int, int] = LEVELS,
    news: Callable[[dict[str, Any]], None] = lambda report: None,
    done: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Every kernel at every size, on a CUDA device with triton. On the CPU, with little of each, the operators'
    reference forms: the figures then mean nothing.

    One that fails has its error in its row. `news` is given the report after every row. Where one loses the GPU to this
    process, `lost` is true and the rows end with it: another process goes on after the rows `done`, and leaves out the
    other sizes of what was lost by.
    """
    on_cuda = torch.device(device).type == "cuda"
    size = 1 if on_cuda else 2**-10
    flush = torch.empty(int(FLUSH_BYTES * size), dtype=torch.uint8, device=device)
    source = torch.empty(int(COPY_BYTES * size), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy_s(moved: int) -> float:
        """Seconds of a copy that reads and writes so many bytes together; more than there are, in proportion."""
        half = min(moved // 2, source.nbytes)
        return seconds(lambda: target[:half].copy_(source[:half]), flush) * (moved / 2 / half)

    copy = 2 * source.nbytes / copy_s(2 * source.nbytes)
    side = MATMUL if on_cuda else 64
    factors = [torch.randn(side, side, dtype=dtype, device=device) for _ in range(2)]
    matmul = 2 * side**3 / seconds(partial(torch.matmul, *factors), flush)
    del factors
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_cuda else "cpu",
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "length": LENGTH,
        "copy_gb_s": copy / 1e9,
        "matmul_tflop_s": matmul / 1e12,
        "rows": list(done),
        "lost": False,
    }
    given_up = {row["kernel"] for row in done if row.get("lost")}
    for batch, channels, case in islice(_sized(batches, levels, dtype, device), len(done), None):
        name, kernel, opponent, moved, operations = case
        row: dict[str, Any] = {"kernel": name, "b": batch, "c": channels}
        report["rows"].append(row)
        if name in given_up:
            row["error"] = "not tried: another size of it took the GPU from its process"
            news(report)
            continue
        try:
            ours, theirs, alike = seconds(kernel, flush), seconds(opponent, flush), copy_s(moved)
        except Exception as error:  # of the compiler, the driver or memory
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            report["lost"] = row["lost"] = gpu_is_lost()
        else:
            row |= {
                "us": ours * 1e6,
                "torch_us": theirs * 1e6,
                "times_faster": theirs / ours,
                "gb_s": moved / ours / 1e9,
                "of_copy": moved / ours / copy,
                "of_copy_alike": alike / ours,
                "tflop_s": operations / ours / 1e12,
            }
        news(report)
        if report["lost"]:
            break
    return report


def table(report: dict[str, Any]) -> str:
    """The report as text, one line a measurement."""
    lines = [
        f"{report['device']}, torch {report['torch']}, {report['dtype']}, L = {report['length']}, "
        f"copy {report['copy_gb_s']:.0f} GB/s, matrix product {report['matmul_tflop_s']:.0f} TFLOP/s",
        f"{'kernel':20}{'b':>4}{'c':>6}{'us':>10}{'torch us':>10}{'faster':>8}{'GB/s':>8}{'copy':>7}{'alike':>7}"
        f"{'TFLOP/s':>9}",
    ]
    lines += [
        f"{row['kernel']:20}{row['b']:>4}{row['c']:>6}  {row['error']}"
        if "error" in row
        else f"{row['kernel']:20}{row['b']:>4}{row['c']:>6}{row['us']:>10.1f}{row['torch_us']:>10.1f}"
        f"{row['times_faster']:>7.2f}x{row['gb_s']:>8.0f}{row['of_copy']:>7.0%}{row['of_copy_alike']:>7.0%}"
        f"{row['tflop_s']:>9.1f}"
        for row in report["rows"]
    ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; exits with 2 where there is no CUDA device, with 1 where a kernel failed."""
    parser = argparse.ArgumentParser(prog="python -m nuwaxl.kernels.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--batches", default="1,8,64", help="segments (default: 1,8,64)")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("expected a CUDA device; found none; run this on a machine that has one", file=sys.stderr)
        return 2
    report = measure([int(batch) for batch in options.batches.split(",")], getattr(torch, options.dtype))
    print(table(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if report["lost"]:
        print("the last of them took the GPU from this process: nothing after it was measured", file=sys.stderr)
    return 1 if any("error" in row for row in report["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())

"""The other side: the plain networks of `nuwaxl.train` with torch's SDPA, eager or through torch.compile.

What is timed is a step of a batch (the network for the prompt and the negative prompt as one batch, guidance, update),
the decoding of a window, and through torch.compile the whole render, depth by depth, after a short one. A render is
also added up from its parts in the opponent's favour: every segment at the cheapest share of a batch that was measured,
no scheduling, no preparation, no text.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nuwaxl.bench.gpu.model import Workload, networks, new_job
from nuwaxl.bench.plain import PlainNetworks, batches, render
from nuwaxl.engine import Plan
from nuwaxl.engine.runners.base import Segments
from nuwaxl.engine.windows import decode_windows
from nuwaxl.errors import NuwaxlError
from nuwaxl.kernels import ops

_REPEATS = 5
_WARM_UP = 3  # calls of each size before the clock: one may compile, the next records a CUDA graph


def measure(
    work: Workload,
    device: torch.device,
    dtype: torch.dtype,
    mode: str,
    sizes: list[int],
    folder: Path,
    news: Callable[[dict[str, Any]], None],
) -> None:
    """Time the plain networks in batches of `sizes`; `mode` is "eager", or a mode of torch.compile ("max-autotune",
    "reduce-overhead"), which renders too, in batches of the first size at most: `filled_wall_s` once this is compiled,
    when batches are filled up to it, and `wall_s` with all sizes.
    """
    text, mtd, tklvae = networks(work.config, device)
    for network in (mtd, tklvae):
        network.to(dtype=dtype)
        for parameter in network.parameters():
            if parameter.ndim == 4:  # of convolutions, in the layout that cuDNN prefers
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    latents = np.random.default_rng(0).standard_normal((1, *latent_shape(work)), np.float32)
    figures: dict[str, Any] = {"mode": mode, "batch_sizes": [], "step_ms": []}
    with torch.no_grad(), without_operators():
        with _NoOperators():  # type: ignore[no-untyped-call]
            checked = PlainNetworks(text, mtd, tklvae, device, "eager")
            _stepping(checked, work, 1)()
            checked.decode(latents)
        torch.backends.cudnn.benchmark = True  # from now on: what was run above is not timed
        plain = PlainNetworks(text, mtd, tklvae, device, mode)
        for size in sizes:
            plain.sizes = sorted({*plain.sizes, size})
            seconds, first_s = _seconds(_stepping(plain, work, size), device)
            figures["batch_sizes"].append(size)
            figures["step_ms"].append(1e3 * seconds)
            figures[f"first_call_of_{size}_s"] = first_s
            news(figures | _total(work, figures))
            if size == sizes[0]:
                seconds, first_s = _seconds(lambda: plain.begin_decode(latents), device)
                figures |= {"decode_ms": 1e3 * seconds, "first_decode_s": first_s}
                news(figures | _total(work, figures))
            if mode != "eager" and size in (sizes[0], sizes[-1]):
                render(new_job(before(work, plain, sizes[0]), folder, _WARM_UP), plain, sizes[0])
                wall_s, compiled = _render_s(work, plain, sizes[0], folder)
                # The gate's is the one with every size: filled up to 8, a segment alone takes as long as 8.
                name = "wall" if size == sizes[-1] else "filled_wall"
                figures |= {f"{name}_s": wall_s, f"{name}_compiled": compiled}
                news(figures | _total(work, figures))


def sizes_of(work: Workload, most: int) -> list[int]:
    """Of the batches that a render in batches of at most `most` has, `most` first."""
    return sorted({len(batch) for batch in batches(Plan(work.frames, work.config.mtd.length), most)}, reverse=True)


def before(work: Workload, plain: PlainNetworks, most: int) -> Workload:
    """The fewest frames that have a batch of every size that the whole has, and some windows: rendered before the clock
    begins, as ours are, in a few steps."""
    length = work.config.mtd.length

    def run_as(frames: int) -> set[int]:
        return {plain.filled(len(batch)) for batch in batches(Plan(frames, length), most)}

    every = run_as(work.frames)
    shorter = range(_WARM_UP * length, work.frames, length)
    return replace(work, frames=next((frames for frames in shorter if run_as(frames) == every), work.frames))


def without_operators() -> Any:
    """Keep the networks from the operators, which they call by themselves on a GPU."""
    return patch.object(ops, "on_triton", lambda *_: False)


class _NoOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses the operators of `nuwaxl.kernels`: they are what the opponent is compared with."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "nuwaxl":
            raise NuwaxlError(f"expected the plain network for comparison; found {func} in it")
        return func(*args, **(kwargs or {}))


def latent_shape(work: Workload) -> tuple[int, int, int, int]:
    """Of one segment: (L, c, h, w)."""
    c = work.config.mtd
    return c.length, c.latent_channels, c.latent_height, c.latent_width


def _stepping(plain: PlainNetworks, work: Workload, size: int) -> Callable[[], None]:
    """A call moves a batch of random segments by one step."""
    random, c, shape = np.random.default_rng(0), work.config.mtd, latent_shape(work)

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape, np.float32)

    batch = plain.start(
        Segments(
            x=normal(size, *shape),
            prompt=normal(size, c.length, c.prompt_tokens, c.prompt_dim),
            negative=normal(size, c.prompt_tokens, c.prompt_dim),
            condition=normal(size, *shape),
            mask=np.ones((size, shape[0], 1, *shape[2:]), np.float32),
        )
    )
    row = random.random(6)
    return lambda: batch.step(900, row, 7.5)


def _render_s(work: Workload, plain: PlainNetworks, most: int, folder: Path) -> tuple[float, int]:
    """Seconds, and what torch compiled in them, which would not be fair."""
    job = new_job(work, folder)
    compiled, began = _graphs(), perf_counter()
    render(job, plain, most)
    return perf_counter() - began, _graphs() - compiled


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Median of a few calls, and the first call's time, in which torch compiles."""

    def timed() -> float:
        began = perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - began

    first = timed()
    timed(), timed()
    return statistics.median(timed() for _ in range(_REPEATS)), first


def _total(work: Workload, figures: dict[str, Any]) -> dict[str, Any]:
    """A whole render from its parts; without decoding as long as that was not measured."""
    length = work.config.mtd.length
    cheapest_ms = min(ms / batch for ms, batch in zip(figures["step_ms"], figures["batch_sizes"], strict=True))
    segments = len(Plan(work.frames, length))
    windows = len(decode_windows(work.frames, length, 0))
    total_ms = segments * work.steps * cheapest_ms + windows * figures.get("decode_ms", 0.0)
    return {"total_s": total_ms / 1e3, "how": "extrapolated", "segments": segments, "windows": windows}

"""The other side: the plain networks of `nuwaxl.train` with torch's SDPA, eager or through torch.compile.

What is timed is a step of a batch (the network for the prompt and the negative prompt as one batch, guidance, update)
and the decoding of a window. A whole render is added up from these in the opponent's favour: every segment at the
cheapest share of a batch that was measured, no scheduling, no preparation, no text.
"""

import statistics
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nuwaxl.bench.gpu.model import Workload, networks
from nuwaxl.engine import Plan
from nuwaxl.engine.windows import decode_windows
from nuwaxl.errors import NuwaxlError
from nuwaxl.export.graphs import update
from nuwaxl.kernels import ops
from nuwaxl.train.networks.injection import Injection
from nuwaxl.train.networks.mtd import MTD, Prepared

_REPEATS = 5


def measure(
    work: Workload,
    device: torch.device,
    dtype: torch.dtype,
    mode: str,
    batches: list[int],
    news: Callable[[dict[str, Any]], None],
) -> None:
    """Time the plain networks; `mode` is "eager", or a mode of torch.compile ("max-autotune", "reduce-overhead")."""
    _, mtd, tklvae = networks(work.config, device)
    for network in (mtd, tklvae):
        network.to(dtype=dtype)
        for parameter in network.parameters():
            if parameter.ndim == 4:  # of convolutions, in the layout that cuDNN prefers
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    figures: dict[str, Any] = {"mode": mode, "batch_sizes": [], "step_ms": []}
    decode: Any = tklvae.decode
    timed: Any = step
    if mode != "eager":
        timed, decode = (torch.compile(call, mode=mode, fullgraph=True, dynamic=False) for call in (timed, decode))
    with torch.no_grad(), without_operators():
        with _NoOperators():  # type: ignore[no-untyped-call]
            step(mtd, *_inputs(work, mtd, 1, device, dtype))
            tklvae.decode(torch.randn(1, *latent_shape(work), device=device, dtype=dtype))
        torch.backends.cudnn.benchmark = True  # from now on: what was run above is not timed
        for batch in batches:
            inputs = _inputs(work, mtd, batch, device, dtype)
            seconds, first_s = _seconds(partial(timed, mtd, *inputs), device)
            figures["batch_sizes"].append(batch)
            figures["step_ms"].append(1e3 * seconds)
            figures[f"first_call_of_{batch}_s"] = first_s
            del inputs
            news(figures | _total(work, figures))
        latents = torch.randn(1, *latent_shape(work), device=device, dtype=dtype)
        seconds, first_s = _seconds(lambda: decode(latents), device)
        figures |= {"decode_ms": 1e3 * seconds, "first_decode_s": first_s}
        news(figures | _total(work, figures))


def without_operators() -> Any:
    """Keep the networks from the operators, which they call by themselves on a GPU."""
    return patch.object(ops, "on_triton", lambda *_: False)


class _NoOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses the operators of `nuwaxl.kernels`: they are what the opponent is compared with."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "nuwaxl":
            raise NuwaxlError(f"expected the plain network for comparison; found {func} in it")
        return func(*args, **(kwargs or {}))


def step(
    mtd: MTD, x: Tensor, history: Tensor, timestep: Tensor, coefficients: Tensor, guidance: Tensor, prepared: Prepared
) -> tuple[Tensor, Tensor]:
    """A guided step of x (b, L, c, h, w), float32; `prepared` is for the batch of both prompts, 2b."""
    dtype = mtd.conv_in.weight.dtype
    cond, uncond = mtd.denoise(torch.cat([x, x]).to(dtype), torch.cat([timestep, timestep]), prepared).float().chunk(2)
    return update(x, history, torch.zeros_like(x), cond, uncond, coefficients, guidance)


def _inputs(work: Workload, mtd: MTD, batch: int, device: torch.device, dtype: torch.dtype) -> list[Any]:
    c = work.config.mtd
    x = torch.randn(batch, *latent_shape(work), device=device)
    prompt = torch.randn(2 * batch, c.length, c.prompt_tokens, c.prompt_dim, device=device, dtype=dtype)
    condition = torch.cat([x, x]).to(dtype)
    prepared = mtd.prepare(prompt, condition, torch.ones_like(condition[:, :, :1]))
    # In the layout that the convolutions use.
    last = [
        Injection(*(tensor.contiguous(memory_format=torch.channels_last) for tensor in one))
        for one in prepared.injections
    ]
    rows = torch.rand(batch, device=device)
    return [x, x.clone(), 900 * rows, torch.rand(batch, 6, device=device), rows, Prepared(last, prepared.keys_values)]


def latent_shape(work: Workload) -> tuple[int, int, int, int]:
    """Of one segment: (L, c, h, w)."""
    c = work.config.mtd
    return c.length, c.latent_channels, c.latent_height, c.latent_width


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

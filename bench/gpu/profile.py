"""Where the time of a call goes: torch's profiler, as a table of the kernels that take most."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_CALLS, _SHOWN = 3, 25


def write_profile(call: Callable[[], object], path: Path, title: str, gpu: int | None) -> None:
    """Run `call` a few times and write what it spent its time on: kernels on the GPU of a number, whoever launches
    them, or operators of torch on the CPU.

    Raises:
        RuntimeError: the profiler saw nothing, or may not look.
    """
    on_gpu = gpu is not None

    def drain() -> None:
        if on_gpu:
            torch.cuda.synchronize(gpu)

    call()
    drain()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(_CALLS):
            call()
        drain()
    spent: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events() or []:
        microseconds = _own_us(event, on_gpu)
        if microseconds > 0:
            spent[event.name].append(microseconds)
    total = sum(sum(times) for times in spent.values())
    if not spent:
        raise RuntimeError("expected torch's profiler to see what ran; found no event of it")
    lines = [
        f"# {title}",
        "",
        f"{total / _CALLS / 1e3:.3f} ms a call in {'kernels' if on_gpu else 'operators'}, {_CALLS} calls",
        "",
        "| share | ms a call | times a call | name |",
        "| ---: | ---: | ---: | --- |",
    ]
    for name, times in sorted(spent.items(), key=lambda item: -sum(item[1]))[:_SHOWN]:
        share = sum(times) / total
        lines.append(f"| {share:.1%} | {sum(times) / _CALLS / 1e3:.3f} | {len(times) / _CALLS:g} | `{name[:90]}` |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _own_us(event: Any, on_gpu: bool) -> float:
    """Microseconds of an event that is one of those counted, else 0."""
    if on_gpu:
        return float(event.time_range.elapsed_us()) if event.device_type.name == "CUDA" else 0.0
    return float(event.self_cpu_time_total)

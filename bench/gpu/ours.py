"""Our side of the end-to-end benchmark: the engine renders the workload on one device, and the baseline after it."""

import statistics
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from nuwaxl.bench.gpu.flops import step_flop
from nuwaxl.bench.gpu.model import Workload, open_engine, story
from nuwaxl.bench.gpu.profile import write_profile
from nuwaxl.bench.measure import run
from nuwaxl.engine import CostModel, Engine, Plan, RenderStats
from nuwaxl.engine.devices import GPU_KINDS, Worker
from nuwaxl.engine.probe import Probe
from nuwaxl.engine.request import AUTOREGRESSIVE_OVERLAP
from nuwaxl.engine.windows import decode_windows

_SPARE_S = 20.0  # kept for writing and for leaving
_SURE = 2  # times its estimate: what a render with the one before it does not take


def measure(
    work: Workload,
    devices: str,
    folder: Path,
    deadline: float,
    news: Callable[[dict[str, Any]], None],
    bundles: list[Path],
    max_batch: int,
) -> None:
    """Render on `devices`, then the autoregressive baseline, in full where there is time for it until `deadline`.

    Every finding is given to `news` as soon as it is there. The profile of a step comes last, since CUPTI leaves what
    follows slower; but first where the render may not come to its end.
    """
    began = monotonic()
    figures: dict[str, Any] = {"devices": devices}
    news(figures)
    with open_engine(work, devices, folder / f"model-{work.pixels}", bundles) as engine:
        figures |= {
            "precision": "bfloat16" if devices.startswith("torch:cuda") else engine.bundle.manifest.precision,
            "open_s": monotonic() - began,
        }
        news(figures)
        costs = engine.costs(max_batch)[0]
        figures |= {
            "ready_s": monotonic() - began,
            "batch_sizes": costs.batch_sizes,
            "step_ms": [1e3 * seconds for seconds in costs.steps_s],
            "decode_ms": 1e3 * costs.decode_s,
        }
        news(figures)
        if deadline - monotonic() - _SPARE_S < _SURE * _least_s(work, costs):
            figures |= _profile(engine, work, costs.batch_sizes[-1], folder, devices)
            news(figures)
        # One render before the clock: sizes of batches that the costs did not need are captured, buffers made.
        _render(engine, work.frames // 16, max_batch)
        figures["warm_s"] = monotonic() - began
        news(figures)
        stats = _render(engine, work.frames, max_batch)
        figures |= _render_figures(work, stats)
        if devices.startswith("torch:cuda"):
            figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        news(figures)
        left_s = deadline - monotonic() - _SPARE_S
        figures |= _autoregressive(engine, work, costs.steps_s[0], stats, left_s)
        news(figures)
        if "profile" not in figures:
            figures |= _profile(engine, work, costs.batch_sizes[-1], folder, devices)
            news(figures)


def _render(engine: Engine, frames: int, max_batch: int, method: Any = "tree") -> RenderStats:
    return run(engine.render(story(), frames=frames, max_batch=max_batch, method=method), None, lambda clip: None)


def _least_s(work: Workload, costs: CostModel) -> float:
    """Seconds of a render by the measured costs, every segment at the cheapest share of a batch."""
    length = work.config.mtd.length
    cheapest_s = min(seconds / size for size, seconds in zip(costs.batch_sizes, costs.steps_s, strict=True))
    windows = len(decode_windows(work.frames, length, 0))
    return len(Plan(work.frames, length)) * work.steps * cheapest_s + windows * costs.decode_s


def _render_figures(work: Workload, stats: RenderStats) -> dict[str, Any]:
    """What the render took, and the rate of the steps that moved the most segments."""
    flop = step_flop(work.config)
    most = max(step.segments for step in stats.steps_ms)
    full_ms = statistics.median(step.ms for step in stats.steps_ms if step.segments == most)
    return {
        "frames": stats.frames,
        "segments": stats.segments,
        "steps": stats.steps,
        "wall_s": stats.wall_s,
        **{f"{phase}_s": seconds for phase, seconds in stats.phases_s.items()},
        "batch": most,
        "batch_step_ms": full_ms,
        "flop": flop,
        "tflop_s": most * flop["executed"] / full_ms / 1e9,
        "tflop_s_of_network": most * flop["network"] / full_ms / 1e9,
    }


def _autoregressive(
    engine: Engine, work: Workload, alone_s: float, stats: RenderStats, left_s: float
) -> dict[str, Any]:
    """The baseline's time: rendered where the estimate fits into the time left, else the estimate."""
    windows = len(Plan.autoregressive(work.frames, work.config.mtd.length, AUTOREGRESSIVE_OVERLAP))
    wall_s, how = windows * work.steps * alone_s + stats.phases_s["decode"], "extrapolated"
    if wall_s < left_s:
        wall_s, how = _render(engine, work.frames, 1, "autoregressive").wall_s, "measured"
    return {"ar_wall_s": wall_s, "ar_how": how, "ar_windows": windows, "ar_reduction": 1 - stats.wall_s / wall_s}


def _profile(engine: Engine, work: Workload, batch: int, folder: Path, devices: str) -> dict[str, str]:
    """Where the time of a step goes, by kernel: the file's name, or why there is none. Nothing of ONNX Runtime on a
    processor, which torch's profiler does not see."""
    worker = engine.workers[0]
    gpu = _gpu(worker)
    if gpu is None and worker.plugin is None:
        return {}
    name = f"profile-{devices.replace(':', '-').replace('/', '-')}-{work.pixels}.md"
    title = f"one step of {batch} segments at {work.pixels} px on {devices}"
    try:
        probe = Probe(engine._runners[0], engine.bundle.manifest.network, batch)
        write_profile(probe.step, folder / name, title, gpu)
    except Exception as error:  # a machine may refuse its counters, and each runtime has its errors; the times stand
        return {"profile": f"none: {error}"}
    return {"profile": name}


def _gpu(worker: Worker) -> int | None:
    """The number of a worker's GPU."""
    if worker.plugin is not None:
        device = worker.plugin.partition(":")[2].partition("/")[0]
        return torch.device(device).index or 0 if device.startswith("cuda") else None
    return worker.index if worker.kind in GPU_KINDS else None

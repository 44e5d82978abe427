"""What a render cost, from the engine's own records: peak memory, percentiles, and the lower bound."""

import math
import platform
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path

import numpy as np

from nuwaxl import __version__
from nuwaxl.engine import Clip, RenderStats, Video
from nuwaxl.engine.runners.onnxruntime import load_onnxruntime
from nuwaxl.engine.stats import StepRecord


def run(video: Video, path: Path | None, on_clip: Callable[[Clip], None]) -> RenderStats:
    """Render once, into an mp4 file if there is a path, and return what the engine measured.

    Raises:
        RenderError: the render failed.
    """
    if path is not None:
        video.save(path, on_clip)
    else:
        with closing(iter(video)) as clips:
            for clip in clips:
                on_clip(clip)
    return video.stats


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The 50th, 90th and 99th percentile, interpolated linearly between neighbours."""
    p50, p90, p99 = np.percentile(values, (50, 90, 99))
    return {"p50": float(p50), "p90": float(p90), "p99": float(p99)}


def diffusion_times_s(calls: Iterable[StepRecord], steps: int) -> tuple[float, float]:
    """From the calls of the step graph, the times (c1, c) that the lower bound is made of, in seconds.

    c1 is the fastest diffusion alone: `steps` times the fastest call with one segment, which every render
    has, since the global diffusion is alone. c is the cheapest a segment can be had for: `steps` times the
    lowest share of a segment in any call.
    """
    calls = list(calls)
    alone_ms = min(call.ms for call in calls if call.segments == 1)
    cheapest_ms = min(call.ms / call.segments for call in calls)
    return steps * alone_ms / 1000, steps * cheapest_ms / 1000


def lower_bound_s(depths: Sequence[int], devices: int, alone_s: float, cheapest_s: float) -> float:
    """Seconds that no schedule of the tree can beat: max over depth j of j * c1 + ceil(n_j / D) * c.

    A segment at depth j has j ancestors, which run one after the other. Only then can the first of the n_j
    segments at depth j or below start, and some device of the D gets at least ceil(n_j / D) of them.

    Args:
        depths: number of segments at every depth.
        devices: D.
        alone_s: c1, a diffusion alone.
        cheapest_s: c, the cheapest time a segment.
    """
    return max(j * alone_s + math.ceil(sum(depths[j:]) / devices) * cheapest_s for j in range(len(depths)))


def peak_rss_mib() -> float:
    """The most memory this process has held resident so far, in MiB.

    All of the engine is in the process: Python, the runtime's sessions with their weights, latents, clips and
    the video encoder.
    """
    try:
        # getrusage would include what the parent held when it started this process; VmHWM does not.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) / 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)


def versions() -> dict[str, str]:
    """Versions of what takes part in a render."""
    return {
        "nuwaxl": __version__,
        "python": platform.python_version(),
        "onnxruntime": str(load_onnxruntime().__version__),
        "numpy": np.__version__,
        "av": metadata.version("av"),
    }

"""The result of a bench run: as a JSON document, and as a few lines to read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nuwaxl.bench.costs import measured_costs, schedule_figures
from nuwaxl.bench.measure import diffusion_times_s, lower_bound_s, percentiles
from nuwaxl.bench.scaling import SimulatedPoint
from nuwaxl.cli import say
from nuwaxl.engine import RenderStats
from nuwaxl.engine.stats import BatchRecord

SCHEMA = "nuwaxl-bench/1"


@dataclass(frozen=True)
class Result:
    """The JSON document, key by key; docs/bench.md defines each."""

    schema: str
    frames: int
    segments: int
    depths: list[int]
    devices: list[str]
    policy: str
    steps: int
    guidance: float
    seed: int
    wall_s: float
    frames_per_s: float
    phases_s: dict[str, float]
    device_busy_s: dict[str, float]
    batches: list[BatchRecord]
    step_ms: dict[str, float]
    lower_bound_s: float
    efficiency: float
    schedule: dict[str, float]
    cost_model: dict[str, Any]
    peak_rss_mib: float
    versions: dict[str, str]
    bundle_sha256: str
    simulate: list[dict[str, float]] | None = None
    compare: dict[str, dict[str, float]] | None = None

    @classmethod
    def of(
        cls, stats: RenderStats, *, peak_rss_mib: float, versions: Mapping[str, str], bundle_sha256: str
    ) -> "Result":
        """The result of a finished render."""
        alone_s, cheapest_s = diffusion_times_s(stats.steps_ms, stats.steps)
        costs = measured_costs(stats)
        bound_s = lower_bound_s(stats.depths, len(stats.devices), alone_s, cheapest_s)
        return cls(
            schema=SCHEMA,
            frames=stats.frames,
            segments=stats.segments,
            depths=stats.depths,
            devices=stats.devices,
            policy=stats.policy,
            steps=stats.steps,
            guidance=stats.guidance,
            seed=stats.seed,
            wall_s=stats.wall_s,
            frames_per_s=stats.frames_per_s,
            phases_s=stats.phases_s,
            device_busy_s=stats.device_busy_s,
            batches=stats.batches,
            step_ms=percentiles([call.ms for call in stats.steps_ms]),
            lower_bound_s=bound_s,
            efficiency=bound_s / stats.wall_s,
            schedule=schedule_figures(stats, costs),
            cost_model=costs.table(),
            peak_rss_mib=peak_rss_mib,
            versions=dict(versions),
            bundle_sha256=bundle_sha256,
        )

    def to_json(self) -> str:
        """The document. Times are rounded to microseconds; a batch takes one line."""
        table = {key: value for key, value in _rounded(asdict(self)).items() if value is not None}
        batches = ",\n".join(f"  {json.dumps(batch)}" for batch in table["batches"])
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()]
        lines[list(table).index("batches")] = f' "batches": [\n{batches}\n ]'
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def summary(self) -> str:
        """A few lines for people, without a line break at the end."""
        diffusions = [batch for batch in self.batches if batch.kind == "diffuse"]
        steps_ms = ", ".join(f"{name} {value:.1f}" for name, value in self.step_ms.items())
        busy = ", ".join(f"{name} {busy / self.wall_s:.1%}" for name, busy in self.device_busy_s.items())
        lines = {
            "frames": f"{self.frames}",
            "segments": f"{self.segments} ({' + '.join(map(str, self.depths))}), {self.steps} steps each",
            "wall": f"{self.wall_s:.1f} s, {self.frames_per_s:.1f} frames/s",
            "phases": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.phases_s.items()),
            "busy": busy,
            "batches": f"{len(diffusions)} of {self.segments / len(diffusions):.1f} segments on average, "
            f"policy {self.policy}",
            "step": f"{steps_ms} ms",
            "efficiency": f"{self.efficiency:.1%} of the lower bound, {self.lower_bound_s:.1f} s",
            "schedule": f"{self.schedule['makespan_s']:.1f} s, {self.schedule['ratio']:.3f} times the bound that these "
            f"costs leave, {self.schedule['lower_bound_s']:.1f} s",
            "peak memory": f"{self.peak_rss_mib:.0f} MiB",
            "bundle": f"{self.bundle_sha256[:12]}, nuwaxl {self.versions['nuwaxl']}, "
            f"onnxruntime {self.versions['onnxruntime']}",
        }
        return "\n".join(f"{name:<12} {text}" for name, text in lines.items())


def point_tables(
    points: Sequence[SimulatedPoint], executed: Mapping[int, float] | None = None
) -> list[dict[str, float]]:
    """Simulated points as they stand in the JSON document: keys without a value are left out; `executed_s` is what
    the render took that was run on as many devices."""
    tables = []
    for point in points:
        table = {key: value for key, value in asdict(point).items() if value is not None}
        if executed and point.devices in executed:
            table["executed_s"] = executed[point.devices]
        tables.append({key: _rounded(value) for key, value in table.items()})
    return tables


def print_points(points: Sequence[Mapping[str, float]] | None) -> None:
    """The simulated points as a table for people."""
    if not points:
        return
    columns = {
        "devices": "{:d}",
        "makespan_s": "{:.2f} s",
        "lower_bound_s": "{:.2f} s",
        "efficiency": "{:.1%}",
        "ar_makespan_s": "{:.2f} s",
        "reduction": "{:.2%}",
        "executed_s": "{:.2f} s",
    }
    shown = [name for name in columns if any(name in point for point in points)]
    rows = [[columns[name].format(point[name]) if name in point else "" for name in shown] for point in points]
    titles = [name.removesuffix("_s").replace("_", " ") for name in shown]
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    for row in [titles, *rows]:
        say("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value

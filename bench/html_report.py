"""A run as one page of HTML that needs nothing else: no network, no script, light and dark."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources

from nuwaxl.bench.charts import SizeBin, bar_rows, curve, distributions, histogram, size_bins
from nuwaxl.bench.measure import percentiles
from nuwaxl.bench.report import Result
from nuwaxl.bench.scaling import ArComparison, SimulatedPoint
from nuwaxl.bench.svg import duration, legend
from nuwaxl.bench.timeline import timeline
from nuwaxl.engine.stats import StepRecord

# A page that is passed on must not do anything, whatever text has come into it.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def html_report(
    result: Result,
    steps: Sequence[StepRecord],
    sheet_png: bytes | None,
    comparison: ArComparison | None = None,
    simulation: Sequence[SimulatedPoint] | None = None,
) -> str:
    """The page. Sections without data are left out.

    Args:
        result: the figures and the batches.
        steps: every call of the step graph.
        sheet_png: the contact sheet.
        comparison: what the autoregressive baseline took.
        simulation: the same render on the virtual clock, for several numbers of devices.
    """
    bins = size_bins(steps)
    sections = [
        _section("Timeline", "What each device did. Rest the pointer on a bar for its segments.", timeline(result)),
        _pair(_sizes(bins), _latencies(bins)),
        _pair(_phases(result), _comparison(result, comparison) if comparison else ""),
        _simulation(simulation, _executed(result)) if simulation else "",
        _sheet(sheet_png) if sheet_png is not None else "",
        _section("The run", "", _figures(result)),
    ]
    title = f"{result.frames:,} frames in {duration(result.wall_s)}"
    css = resources.files("nuwaxl.bench").joinpath("report.css").read_text(encoding="utf-8")
    body = f"<h1>{escape(title)}</h1>\n{_about(result)}\n{_tiles(result, comparison)}\n" + "\n".join(
        filter(None, sections)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>nuwaxl: {escape(title)}</title>
<style>
{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _section(title: str, lead: str, content: str) -> str:
    """`content` is HTML, the rest is text."""
    lead = f'<p class="lead">{escape(lead)}</p>\n' if lead else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{lead}{content}\n</section>"


def _pair(*sections: str) -> str:
    """Sections beside each other where the window is wide enough."""
    return '<div class="pair">\n' + "\n".join(filter(None, sections)) + "\n</div>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    return f'<div class="scroll"><table>\n<tr>{cells}</tr>\n{lines}</table></div>'


def _about(result: Result) -> str:
    parts = [
        f"nuwaxl {result.versions.get('nuwaxl', '')}",
        f"{len(result.devices)} device{'s' * (len(result.devices) != 1)}",
        f"policy {result.policy}",
        f"{result.steps} steps a segment",
        f"guidance {result.guidance:g}",
        f"seed {result.seed}",
    ]
    said = " \u00b7 ".join(parts)
    return f'<p class="about">{escape(said)}</p>'


def _tiles(result: Result, comparison: ArComparison | None) -> str:
    tree = " + ".join(f"{count:,}" for count in result.depths)
    entries = [
        ("Frames a second", f"{result.frames_per_s:.3g}", f"{result.frames:,} frames"),
        ("Efficiency", f"{result.efficiency:.1%}", f"lower bound {duration(result.lower_bound_s)}"),
        ("Segments", f"{result.segments:,}", f"{tree} by depth"),
        ("Step, median", duration(result.step_ms["p50"] / 1000), f"p90 {duration(result.step_ms['p90'] / 1000)}"),
        ("Peak memory", f"{result.peak_rss_mib:,.0f} MiB", "of the process"),
    ]
    if comparison is not None:
        entries.insert(1, ("Reduction", f"{comparison.reduction:.1%}", "of the autoregressive wall time"))
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>\n"
        for name, value, more in entries
    )
    return f'<dl class="tiles">\n{tiles}</dl>'


def _sizes(bins: Sequence[SizeBin]) -> str:
    calls = sum(len(size.ms) for size in bins)
    return _section("Batch sizes", f"{calls:,} calls of the step graph, by the segments they moved.", histogram(bins))


def _latencies(bins: Sequence[SizeBin]) -> str:
    picture, note = distributions(bins)
    rows = []
    for size in bins:
        if size.ms:
            times = [f"{value:,.1f}" for value in percentiles(size.ms).values()]
            cheapest = f"{min(size.ms_a_segment):,.1f}"
            rows.append([size.label, f"{len(size.ms):,}", *times, cheapest])
    table = _table(["segments", "calls", "p50 ms", "p90 ms", "p99 ms", "best ms a segment"], rows)
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    lead = "Time of one call, by the segments in it; the line is the median."
    return _section("Step latencies", lead, picture + note + table)


def _phases(result: Result) -> str:
    colours = {"diffuse": "d1", "decode": "decode"}
    rows = [(name, spent, duration(spent), colours.get(name, "other")) for name, spent in result.phases_s.items()]
    lead = "Time of work. Diffusion and decoding are summed over the devices, so they may exceed the wall time."
    return _section("Phases", lead, bar_rows(rows, "Time of work by phase"))


def _comparison(result: Result, comparison: ArComparison) -> str:
    rows = [
        ("this run", result.wall_s, duration(result.wall_s), "accent"),
        ("autoregressive", comparison.wall_s, duration(comparison.wall_s), "other"),
    ]
    lead = (
        f"{comparison.windows:,} sliding windows of the same network, sampler and devices, each after the one before. "
        f"Reduction of the wall time: {comparison.reduction:.2%}."
    )
    picture = bar_rows(rows, "Wall time of this run and of the autoregressive baseline")
    return _section("Against the autoregressive baseline", lead, picture)


def _executed(result: Result) -> dict[float, float]:
    """Seconds that the run took which was also simulated, by its devices."""
    tables = result.simulate or []
    return {table["devices"]: table["executed_s"] for table in tables if "executed_s" in table}


def _simulation(points: Sequence[SimulatedPoint], executed: Mapping[float, float]) -> str:
    devices = [point.devices for point in points]
    times: list[tuple[str, list[float | None]]] = [("accent", [point.makespan_s for point in points])]
    times.insert(0, ("limit", [point.lower_bound_s for point in points]))
    shares: list[tuple[str, list[float | None]]] = [("accent", [point.efficiency for point in points])]
    keys, share_keys = [("accent", "makespan"), ("limit", "lower bound")], [("accent", "efficiency")]
    head, compared = ["devices", "makespan", "lower bound", "efficiency"], False
    if any(point.ar_makespan_s is not None for point in points):
        compared = True
        times.insert(0, ("other", [point.ar_makespan_s for point in points]))
        shares.insert(0, ("other", [point.reduction for point in points]))
        keys.append(("other", "autoregressive"))
        share_keys.append(("other", "reduction against autoregressive"))
        head += ["autoregressive", "reduction"]
    if executed:
        head.append("executed")
    rows = []
    for point in points:
        row = [f"{point.devices:,}", duration(point.makespan_s), duration(point.lower_bound_s)]
        row.append(f"{point.efficiency:.1%}")
        if compared:
            row.append("" if point.ar_makespan_s is None else duration(point.ar_makespan_s))
            row.append("" if point.reduction is None else f"{point.reduction:.2%}")
        if executed:
            row.append(duration(executed[point.devices]) if point.devices in executed else "")
        rows.append(row)
    left = legend(keys) + curve(devices, times, "Makespan over the number of devices", shares=False)
    right = legend(share_keys) + curve(devices, shares, "Shares over the number of devices", shares=True)
    charts = f'<div class="pair inner">\n<div>{left}</div>\n<div>{right}</div>\n</div>\n'
    lead = "The same policy on a virtual clock: what this render would take on other numbers of devices."
    return _section("Simulated devices", lead, charts + _table(head, rows))


def _sheet(png: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
    lead = "Frames spread evenly over the video, with number and prompt under each."
    return _section("Contact sheet", lead, f'<img alt="Frames of the video" src="{source}">')


def _figures(result: Result) -> str:
    rows = {
        "wall time": f"{result.wall_s:.3f} s",
        "lower bound": f"{result.lower_bound_s:.3f} s",
        "step": ", ".join(f"{name} {value:,.2f} ms" for name, value in result.step_ms.items()),
        "batches": f"{sum(batch.kind == 'diffuse' for batch in result.batches):,} of diffusion, "
        f"{sum(batch.kind == 'decode' for batch in result.batches):,} of decoding",
        "devices": ", ".join(result.devices),
        "versions": ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        "bundle": f"sha256 {result.bundle_sha256}",
    }
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>\n" for name, said in rows.items())
    return f'<dl class="figures">\n{entries}</dl>'

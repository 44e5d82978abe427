"""nuwaxl-bench: render a long video, measure it, and report."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib import resources

from nuwaxl.bench.costs import load_costs, measured_costs
from nuwaxl.bench.html_report import html_report
from nuwaxl.bench.measure import peak_rss_mib, run, versions
from nuwaxl.bench.outputs import Outputs, check_outputs
from nuwaxl.bench.report import SCHEMA, Result, point_tables, print_points
from nuwaxl.bench.scaling import ArComparison, SimulatedPoint
from nuwaxl.bench.sheet import ContactSheet
from nuwaxl.bench.simulation import VirtualRender, simulated_point
from nuwaxl.bench.trace import chrome_trace
from nuwaxl.cli import Parser, positive_int, said_beside, say
from nuwaxl.cli import run as run_command
from nuwaxl.engine import Bundle, Engine, Plan, Story, Task, Video, demo_bundle
from nuwaxl.engine.cli import add_render_arguments, task_of
from nuwaxl.engine.devices import available_cores
from nuwaxl.engine.progress_bars import ProgressBars
from nuwaxl.engine.request import resolve, resolve_schedule
from nuwaxl.files import write_file

PROG = "nuwaxl-bench"
DEFAULT_FRAMES = 1024
MAX_DEVICES = 2**16

_DESCRIPTION = """\
Render a long video and measure it: how long, how much memory, and how near to what the steps allow.

Without options it renders 1024 frames of the bundled story with the demo bundle, on two workers where there
are two cores (--devices cpu:2). It prints a report; files are written where options name them.

--simulate-devices predicts the same render on other numbers of devices: the scheduler that runs renders, on a
virtual clock, with the costs that this run measured. With --cost-model FILE the costs are given, and nothing is
rendered: {"batch_sizes": [1, 8], "diffusion_s": [2.0, 5.0]}, seconds of a whole diffusion by batch size."""

_EPILOG = """\
exit status: 0 all was rendered and written, 1 the render failed, 2 bad arguments or input, 130 interrupted,
143 terminated"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.cost_model is not None:
        if not arguments.simulate_devices:
            parser.error("expected --simulate-devices with --cost-model; found none; say how many devices")
        for name in ("out", "sheet", "trace", "report"):
            if getattr(arguments, name) is not None:
                parser.error(f"expected no --{name} with --cost-model, which renders nothing; found one; remove it")
    return run_command(PROG, lambda: _bench(arguments))


def bundled_story() -> Story:
    """The story that is rendered unless another is given."""
    with resources.as_file(resources.files("nuwaxl.bench") / "stories" / "demo.toml") as path:
        return Story.load(path)


def _parser() -> Parser:
    parser = Parser(prog=PROG, description=_DESCRIPTION, epilog=_EPILOG)
    parser.add_argument(
        "--frames",
        type=positive_int,
        default=DEFAULT_FRAMES,
        metavar="N",
        help=f"number of frames (default: {DEFAULT_FRAMES})",
    )
    add_render_arguments(parser)
    parser.set_defaults(devices="cpu:2" if available_cores() > 1 else "cpu")
    parser.add_argument("--story", metavar="FILE", help="the story, .toml or .jsonl (default: a bundled one)")
    parser.add_argument("--json", metavar="FILE", help="write the measurements to this file")
    parser.add_argument("--out", metavar="FILE", help="write the video to this .mp4 file")
    parser.add_argument(
        "--sheet",
        metavar="FILE",
        help="write a contact sheet to this .png file (default with --out: beside the video)",
    )
    parser.add_argument(
        "--simulate-devices",
        type=_device_counts,
        metavar="D[,D...]",
        help="simulate the render on so many devices, by the costs of this run",
    )
    parser.add_argument(
        "--cost-model", metavar="FILE", help="simulate by the costs in this .json file instead, and render nothing"
    )
    parser.add_argument(
        "--compare",
        choices=["ar"],
        help="ar: run the autoregressive baseline as well, on the same devices; and simulate it",
    )
    parser.add_argument("--trace", metavar="FILE", help="write a Chrome trace, which opens in Perfetto, to this file")
    parser.add_argument("--report", metavar="FILE", help="write a page with timeline and charts to this .html file")
    return parser


def _bench(arguments: argparse.Namespace) -> None:
    outputs = check_outputs(
        json=arguments.json,
        video=arguments.out,
        sheet=arguments.sheet,
        trace=arguments.trace,
        report=arguments.report,
        reads=[arguments.story, arguments.cost_model],
    )
    with said_beside(outputs.paths):
        if arguments.cost_model is None:
            _measure(arguments, outputs)
        else:
            _predict(arguments, outputs)


def _measure(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Render, and simulate by what that took where it is asked for."""
    story = bundled_story() if arguments.story is None else Story.load(arguments.story)
    comparison = None
    with ExitStack() as stack:
        engine = stack.enter_context(Engine.open(arguments.bundle, devices=arguments.devices, tf32=arguments.tf32))
        task = task_of(arguments, story)
        plan = engine.resolve(task).plan
        bars = stack.enter_context(ProgressBars())
        video = _video(engine, arguments, task, bars)
        sheet = ContactSheet(story, frames=video.frames, height=video.height, width=video.width)
        bars.before(engine, len(plan), arguments.max_batch)
        stats = run(video, outputs.video, sheet.add)
        peak_mib = peak_rss_mib()
        if arguments.compare == "ar":
            baseline = _video(engine, arguments, replace(task, method="autoregressive", depth=None), None)
            ar = run(baseline, None, lambda clip: None)
            comparison = ArComparison(ar.wall_s, ar.segments, 1 - stats.wall_s / ar.wall_s)
    result = Result.of(
        stats,
        peak_rss_mib=peak_mib,
        versions=versions(),
        bundle_sha256=engine.bundle.sha256,
    )
    points: list[SimulatedPoint] = []
    if arguments.simulate_devices:
        virtual = _virtual(arguments, engine.bundle, plan, stats.steps)
        counts = sorted({*arguments.simulate_devices, len(stats.devices)})
        points = [simulated_point(virtual, measured_costs(stats), count, arguments.compare == "ar") for count in counts]
        executed = {len(stats.devices): result.schedule["makespan_s"]}
        result = replace(result, simulate=point_tables(points, executed))
    if comparison is not None:
        result = replace(result, compare={"ar": asdict(comparison)})
    png = sheet.png() if outputs.sheet is not None or outputs.report is not None else b""
    if outputs.sheet is not None:
        write_file(outputs.sheet, png)
    if outputs.json is not None:
        write_file(outputs.json, result.to_json().encode())
    if outputs.trace is not None:
        write_file(outputs.trace, chrome_trace(stats.batches, [plan], stats.devices).encode())
    if outputs.report is not None:
        write_file(outputs.report, html_report(result, stats.steps_ms, png, comparison, points).encode())
    say(result.summary())
    print_points(result.simulate)
    if comparison is not None:
        took = f"{comparison.windows} windows one after another, {comparison.wall_s:.1f} s"
        change = f"{abs(comparison.reduction):.1%} {'less' if comparison.reduction >= 0 else 'more'}"
        say(f"{'baseline':<12} {took}: {change} without")
    if outputs.paths:
        say(f"{'written':<12} {', '.join(map(str, outputs.paths))}")


def _predict(arguments: argparse.Namespace, outputs: Outputs) -> None:
    """Simulate by given costs; nothing is rendered."""
    bundle = Bundle.open(demo_bundle() if arguments.bundle is None else arguments.bundle)
    story = bundled_story() if arguments.story is None else Story.load(arguments.story)
    request = resolve(bundle.manifest, task_of(arguments, story))
    costs = load_costs(arguments.cost_model, request.steps)
    virtual = _virtual(arguments, bundle, request.plan, request.steps)
    points = [simulated_point(virtual, costs, count, arguments.compare == "ar") for count in arguments.simulate_devices]
    tables = point_tables(points)
    if outputs.json is not None:
        document = {
            "schema": SCHEMA,
            "frames": request.frames,
            "segments": len(request.plan),
            "depths": list(request.plan.counts),
            "policy": virtual.policy,
            "steps": request.steps,
            "cost_model": costs.table(),
            "simulate": tables,
            "bundle_sha256": bundle.sha256,
        }
        write_file(outputs.json, (json.dumps(document, indent=1) + "\n").encode())
    counts = " + ".join(map(str, request.plan.counts))
    say(f"{'frames':<12} {request.frames}")
    say(f"{'segments':<12} {len(request.plan)} ({counts}), {request.steps} steps each, policy {virtual.policy}")
    print_points(tables)
    if outputs.paths:
        say(f"{'written':<12} {', '.join(map(str, outputs.paths))}")


def _video(engine: Engine, arguments: argparse.Namespace, task: Task, progress: ProgressBars | None) -> Video:
    return engine.render(**vars(task), policy=arguments.policy, max_batch=arguments.max_batch, progress=progress)


def _virtual(arguments: argparse.Namespace, bundle: Bundle, plan: Plan, steps: int) -> VirtualRender:
    schedule = resolve_schedule(arguments.policy, arguments.max_batch)
    overlap = bundle.manifest.network.decode_overlap
    return VirtualRender(plan, steps, schedule.policy, schedule.max_batch, overlap)


def _device_counts(text: str) -> list[int]:
    """Argument type: numbers of devices, "1,2,4"."""
    counts = [positive_int(part) for part in text.split(",")]
    if max(counts) > MAX_DEVICES:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_DEVICES} devices; found {max(counts)}")
    return counts


if __name__ == "__main__":
    sys.exit(main())

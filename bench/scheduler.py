"""What the scheduler costs and how good its schedules are, on the virtual clock: `python -m nuwaxl.bench.scheduler`.

Figures, with their limits:

- processor time and memory a segment of scheduling a million of them: 5 us and 200 bytes;
- makespan over the lower bound for 1, 2, 4, ..., 1024 devices: 1.05, for enough segments that every device could
  have full batches (8 a device, or max_batch of them where that is more), and for plans twice and eight times that.

The lower bound takes every segment at the cheapest share of any batch. No schedule does that where a device has fewer
segments than fill its batches, so the limit is 1.05 of the larger of it and `attainable_bound_s`.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from nuwaxl.bench.measure import lower_bound_s, peak_rss_mib
from nuwaxl.cli import Parser, run, say
from nuwaxl.engine._core import CostModel, Plan, simulate
from nuwaxl.errors import NuwaxlError
from nuwaxl.files import check_file, write_file

PROG = "python -m nuwaxl.bench.scheduler"
LENGTH = 16
STEPS = 10
DEVICES = tuple(2**i for i in range(11))
PLAN_SIZES = (1, 2, 8)  # in full batches a device

MOST_RATIO = 1.05
MOST_CPU_US = 5.0
MOST_BYTES = 200.0
MANY_SEGMENTS = 1_000_000


@dataclass(frozen=True)
class Model:
    """A kind of device: its name, its cost model, and the largest batch that it takes."""

    name: str
    cost: CostModel
    max_batch: int


def models() -> dict[str, Model]:
    """The kinds of devices that are measured, by name."""
    kinds = (
        Model("flat", CostModel([1], [0.1]), 8),
        Model("saturating-8", CostModel([1, 8], [8e-3, 15e-3]), 8),
        Model("saturating-16", CostModel([1, 16], [8e-3, 23e-3]), 16),
        # The demo bundle on a core of the machine of docs/bench.md.
        Model("demo-cpu", CostModel([1, 2, 8], [0.1152, 0.2371, 0.8452]), 8),
    )
    return {model.name: model for model in kinds}


@dataclass(frozen=True)
class Makespan:
    """A schedule of one video on `devices` alike devices."""

    model: str
    devices: int
    segments: int
    makespan_s: float
    lower_bound_s: float
    attainable_bound_s: float

    @property
    def ratio(self) -> float:
        """Makespan over the lower bound."""
        return self.makespan_s / self.lower_bound_s

    @property
    def missed(self) -> bool:
        """Whether the makespan is over its limit."""
        return self.makespan_s > MOST_RATIO * max(self.lower_bound_s, self.attainable_bound_s)


@dataclass(frozen=True)
class Cost:
    """Processor time and memory of scheduling `segments` on `devices` devices."""

    devices: int
    segments: int
    cpu_us: float
    bytes: float

    @property
    def missed(self) -> bool:
        """Whether one of the two is over its limit."""
        return self.cpu_us > MOST_CPU_US or self.bytes > MOST_BYTES


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 1 if a figure is missed."""
    parser = Parser(prog=PROG, description=__doc__, epilog="exit status: 0 all is within its limit, 1 something is not")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument(
        "--segments", type=int, default=MANY_SEGMENTS, metavar="N", help="segments whose cost is measured"
    )
    arguments = parser.parse_args(argv)
    return run(PROG, lambda: _bench(arguments))


def attainable_bound_s(depths: Sequence[int], devices: int, model: Model, steps: int) -> float:
    """Seconds that no schedule can beat that keeps a segment on its device once it has begun.

    Max over depth j of j * c1 + steps * f(ceil(n_j / D)): some device has at least that many of the n_j segments at
    depth j or below, and q segments take it at least f(q), the least sum of step times of batches that add up to q.
    Joining a running batch does not help: of the steps t, t + steps, t + 2 * steps, ... a segment takes part in
    exactly one, whatever t is, so the batches of those steps add up to q.
    """
    most = math.ceil(sum(depths) / devices)
    least = [0.0]
    for count in range(1, most + 1):
        sizes = range(1, min(model.max_batch, count) + 1)
        least.append(min(model.cost.step_s(size) + least[count - size] for size in sizes))
    alone_s = model.cost.step_s(1)
    return steps * max(j * alone_s + least[math.ceil(sum(depths[j:]) / devices)] for j in range(len(depths)))


def plan_of(segments: int) -> Plan:
    """The shortest video with at least so many segments."""
    few, enough = 0, LENGTH * segments
    while enough - few > 1:
        frames = (few + enough) // 2
        if len(Plan(frames, LENGTH)) < segments:
            few = frames
        else:
            enough = frames
    return Plan(enough, LENGTH)


def makespan(model: Model, devices: int, segments: int) -> Makespan:
    """Schedule a video of at least so many segments."""
    plan = plan_of(segments)
    result = simulate([plan], policy="eager", devices=[model.cost] * devices, max_batch=model.max_batch, steps=STEPS)
    cheapest_s = min(model.cost.step_s(size) / size for size in range(1, model.max_batch + 1))
    return Makespan(
        model=model.name,
        devices=devices,
        segments=len(plan),
        makespan_s=result.makespan_s,
        lower_bound_s=lower_bound_s(plan.counts, devices, STEPS * model.cost.step_s(1), STEPS * cheapest_s),
        attainable_bound_s=attainable_bound_s(plan.counts, devices, model, STEPS),
    )


def cost(devices: int, segments: int) -> Cost:
    """Schedule many segments, and measure the processor time, the clock's own with it, and the growth in memory."""
    plan = plan_of(segments)
    model = models()["saturating-8"]
    before_mib = peak_rss_mib()
    result = simulate([plan], policy="eager", devices=[model.cost] * devices, max_batch=model.max_batch, steps=STEPS)
    grown = (peak_rss_mib() - before_mib) * 2**20
    return Cost(devices, len(plan), 1e6 * result.cpu_s / len(plan), grown / len(plan))


def _bench(arguments: argparse.Namespace) -> None:
    json_file = None if arguments.json is None else check_file(arguments.json)
    costs = [cost(64, arguments.segments)]
    say(f"{'scheduling':<16}{'devices':>8}{'segments':>10}{'us/segment':>12}{'bytes/segment':>15}")
    for spent in costs:
        say(
            f"{'':<16}{spent.devices:>8}{spent.segments:>10}{spent.cpu_us:>12.2f}{spent.bytes:>15.1f}"
            f"{_mark(spent.missed)}"
        )
    say(f"{'makespan / bound':<16}{'devices':>8}{'segments':>10}{'lower':>12}{'attainable':>15}")
    makespans = []
    for model in models().values():
        for size in PLAN_SIZES:
            for devices in DEVICES:
                took = makespan(model, devices, size * max(8, model.max_batch) * devices)
                makespans.append(took)
                attained = took.makespan_s / took.attainable_bound_s
                say(
                    f"{model.name:<16}{devices:>8}{took.segments:>10}{took.ratio:>12.4f}{attained:>15.4f}"
                    f"{_mark(took.missed)}"
                )
    figures: list[Cost | Makespan] = [*costs, *makespans]
    missed = sum(figure.missed for figure in figures)
    if json_file is not None:
        table = {
            "costs": [asdict(spent) for spent in costs],
            "makespans": [asdict(took) for took in makespans],
            "missed": missed,
        }
        write_file(json_file, (json.dumps(table, indent=1) + "\n").encode())
    if missed:
        raise NuwaxlError(f"{missed} of {len(figures)} figures are over their limits")


def _mark(missed: bool) -> str:
    return "  MISSED" if missed else ""


if __name__ == "__main__":
    sys.exit(main())

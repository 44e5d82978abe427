"""What the scheduler costs and how good its schedules are, on the virtual clock: `python -m nuwaxl.bench.scheduler`.

Figures, with their limits:

- processor time and memory a segment of scheduling a million of them: 5 us and 200 bytes;
- makespan over the lower bound for 1, 2, 4, ..., 1024 devices: 1.05, for every number of segments a device from 8 to 32
  and some up to 256.

The lower bound takes every segment at the cheapest share of any batch. No schedule does that where what a device has to
do does not fill batches of that size, so the limit is 1.05 of the larger of it and `attainable_bound_s`. Of both bounds
it is printed how far off the makespan is at worst, and from how many segments a device on the lower one is kept to.

And what joining is worth: how much longer the same takes without it, and how much later the first frames of several
videos come, by the policy that wants those early.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from nuwaxl.bench.measure import lower_bound_s, peak_rss_mib
from nuwaxl.cli import Parser, run, said_beside, say
from nuwaxl.engine._core import CostModel, Plan, simulate
from nuwaxl.errors import NuwaxlError
from nuwaxl.files import check_file, write_file

PROG = "python -m nuwaxl.bench.scheduler"
LENGTH = 16
STEPS = 10
DEVICES = tuple(2**i for i in range(11))
SEGMENTS_A_DEVICE = (*range(8, 33), 40, 48, 64, 96, 128, 192, 256)

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
    unjoined_s: float  # the makespan where no segment joins a batch under way

    @property
    def ratio(self) -> float:
        """Makespan over the lower bound."""
        return self.makespan_s / self.lower_bound_s

    @property
    def attained(self) -> float:
        """Makespan over the larger of the two bounds."""
        return self.makespan_s / max(self.lower_bound_s, self.attainable_bound_s)

    @property
    def unjoined(self) -> float:
        """How much longer it takes without joining: 1 is as long."""
        return self.unjoined_s / self.makespan_s

    @property
    def missed(self) -> bool:
        """Whether the makespan is over its limit."""
        return self.attained > MOST_RATIO


@dataclass(frozen=True)
class FirstFrames:
    """When the first frames of `videos` videos are there, on average, by the policy `latency`."""

    model: str
    devices: int
    videos: int
    first_frames_s: float
    unjoined_s: float

    @property
    def unjoined(self) -> float:
        """How much longer it takes without joining."""
        return self.unjoined_s / self.first_frames_s


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


@cache
def cheapest_batches_s(model: Model, most: int) -> list[float]:
    """Seconds of a step of the cheapest batches that add up to 0, 1, ..., `most` segments."""
    least = [0.0]
    for count in range(1, most + 1):
        sizes = range(1, min(model.max_batch, count) + 1)
        least.append(min(model.cost.step_s(size) + least[count - size] for size in sizes))
    return least


def attainable_bound_s(depths: Sequence[int], devices: int, model: Model, steps: int) -> float:
    """Seconds that no schedule can beat that keeps a segment on its device once it has begun.

    Max over depth j of j * c1 + steps * least time of q segments. Some device has q = ceil(n_j / D) or more of the n_j
    segments at depth j or below; count its calls of the step graph that hold any of them. Of the calls t, t + steps,
    t + 2 * steps, ... a segment takes part in exactly one, whatever t is: joining a running batch does not help. So
    their batches add up to q. And the first of them holds no more than the segments of depth j itself, if the device
    begins at j * c1: deeper ones are not ready before (j + 1) * c1, and waiting for them takes c1.
    """
    alone_s = model.cost.step_s(1)
    least = cheapest_batches_s(model, math.ceil(sum(depths) / devices))

    def from_depth_s(j: int) -> float:
        count = math.ceil(sum(depths[j:]) / devices)
        firsts = range(1, min(depths[j], model.max_batch, count) + 1)
        at_once_s = min(model.cost.step_s(size) + least[count - size] for size in firsts)
        return steps * (j * alone_s + min(at_once_s, alone_s + least[count]))

    return max(map(from_depth_s, range(len(depths))))


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

    def seconds(joining: bool) -> float:
        costs = [model.cost] * devices
        return simulate(
            [plan], policy="eager", devices=costs, max_batch=model.max_batch, steps=STEPS, joining=joining
        ).makespan_s

    cheapest_s = min(model.cost.step_s(size) / size for size in range(1, model.max_batch + 1))
    return Makespan(
        model=model.name,
        devices=devices,
        segments=len(plan),
        makespan_s=seconds(joining=True),
        lower_bound_s=lower_bound_s(plan.counts, devices, STEPS * model.cost.step_s(1), STEPS * cheapest_s),
        attainable_bound_s=attainable_bound_s(plan.counts, devices, model, STEPS),
        unjoined_s=seconds(joining=False),
    )


def first_frames(model: Model, devices: int, videos: int) -> FirstFrames:
    """Schedule so many videos of 1024 frames that all are there from the beginning."""

    def seconds(joining: bool) -> float:
        costs, plans = [model.cost] * devices, [Plan(1024, LENGTH)] * videos
        result = simulate(
            plans, policy="latency", devices=costs, max_batch=model.max_batch, steps=STEPS, joining=joining
        )
        return sum(result.first_frames_s) / videos

    return FirstFrames(model.name, devices, videos, seconds(joining=True), seconds(joining=False))


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
    with said_beside([] if json_file is None else [json_file]):
        _measure(arguments.segments, json_file)


def _measure(segments: int, json_file: Path | None) -> None:
    costs = [cost(64, segments), cost(1024, segments)]
    say(f"{'scheduling':<16}{'devices':>8}{'segments':>10}{'us/segment':>12}{'bytes/segment':>15}")
    for spent in costs:
        say(
            f"{'':<16}{spent.devices:>8}{spent.segments:>10}{spent.cpu_us:>12.2f}{spent.bytes:>15.1f}"
            f"{_mark(spent.missed)}"
        )
    say(f"{'worst of all D':<16}{'segments a device':>20}{'/ lower':>10}{'/ attainable':>14}{'unjoined /':>12}")
    makespans: list[Makespan] = []
    for model in models().values():
        ratios = {}
        for size in SEGMENTS_A_DEVICE:
            rows = [makespan(model, devices, size * devices) for devices in DEVICES]
            makespans += rows
            ratios[size] = max(row.ratio for row in rows)
            attained, unjoined = max(row.attained for row in rows), max(row.unjoined for row in rows)
            say(
                f"{model.name:<16}{size:>20}{ratios[size]:>10.4f}{attained:>14.4f}{unjoined:>12.4f}"
                f"{_mark(any(row.missed for row in rows))}"
            )
        over = [size for size, ratio in ratios.items() if ratio > MOST_RATIO]
        kept = [size for size in SEGMENTS_A_DEVICE if size > max(over, default=0)]
        say(f"{model.name:<16} within {MOST_RATIO} of the lower bound from {kept[0] if kept else 'more'} on")
    say(f"{'first frames':<16}{'devices':>8}{'videos':>12}{'mean s':>10}{'unjoined /':>12}")
    early = [first_frames(model, devices, 16) for model in models().values() for devices in (1, 4)]
    for row in early:
        say(f"{row.model:<16}{row.devices:>8}{row.videos:>12}{row.first_frames_s:>10.3f}{row.unjoined:>12.3f}")
    figures: list[Cost | Makespan] = [*costs, *makespans]
    missed = sum(figure.missed for figure in figures)
    if json_file is not None:
        table = {
            "costs": [asdict(spent) for spent in costs],
            "makespans": [asdict(took) for took in makespans],
            "first_frames": [asdict(row) for row in early],
            "missed": missed,
        }
        write_file(json_file, (json.dumps(table, indent=1) + "\n").encode())
    if missed:
        raise NuwaxlError(f"{missed} of {len(figures)} figures are over their limits")


def _mark(missed: bool) -> str:
    return "  MISSED" if missed else ""


if __name__ == "__main__":
    sys.exit(main())

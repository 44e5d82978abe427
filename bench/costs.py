"""What a diffusion costs by batch size: from a finished render, or from a file."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nuwaxl.engine import CostModel, RenderStats
from nuwaxl.engine.checks import read_text, shown, whole_number
from nuwaxl.engine.request import MAX_BATCH
from nuwaxl.errors import InputError
from nuwaxl.formats import parse_json


@dataclass(frozen=True)
class DiffusionCosts:
    """Seconds of a whole diffusion of each batch size, all its steps and what precedes them; and of a decode window,
    0 where that is not known."""

    batch_sizes: tuple[int, ...]
    diffusion_s: tuple[float, ...]
    decode_s: float = 0.0

    @property
    def alone_s(self) -> float:
        """c1: a diffusion alone; in a batch, where noise had one end sooner there, so that bounds stay bounds."""
        alone_s = CostModel(list(self.batch_sizes), list(self.diffusion_s)).step_s(1)
        return min(alone_s, *self.diffusion_s)

    @property
    def cheapest_s(self) -> float:
        """c: the cheapest time a segment, over the batch sizes."""
        return min(seconds / size for size, seconds in zip(self.batch_sizes, self.diffusion_s, strict=True))

    def model(self, steps: int) -> CostModel:
        """For a scheduler, whose costs are those of one of `steps` steps."""
        return CostModel(list(self.batch_sizes), [seconds / steps for seconds in self.diffusion_s], self.decode_s)

    def table(self) -> dict[str, Any]:
        """As it stands in a JSON document, and as load_costs reads it."""
        return {
            "batch_sizes": list(self.batch_sizes),
            "diffusion_s": list(self.diffusion_s),
            "decode_s": self.decode_s,
        }


def measured_costs(stats: RenderStats) -> DiffusionCosts:
    """The costs of a finished render: the average over its batches of each size, so that they add up to its time."""
    seconds: defaultdict[int, float] = defaultdict(float)
    steps: defaultdict[int, int] = defaultdict(int)
    decodes = [batch.end_s - batch.start_s for batch in stats.batches if batch.kind == "decode"]
    for batch in stats.batches:
        if batch.kind == "diffuse":
            seconds[len(batch.segments)] += batch.end_s - batch.start_s
            steps[len(batch.segments)] += batch.steps
    sizes = sorted(size for size in steps if steps[size])
    return DiffusionCosts(
        tuple(sizes),
        tuple(stats.steps * seconds[size] / steps[size] for size in sizes),
        sum(decodes) / len(decodes),
    )


def load_costs(path: str | os.PathLike[str], steps: int) -> DiffusionCosts:
    """Read a cost model: {"batch_sizes": [1, 2], "diffusion_s": [1.0, 1.5]}, optionally with "decode_s"; or a document
    of nuwaxl-bench that has one as `cost_model`, for diffusions of that many steps.

    Raises:
        InputError: the file cannot be read or holds something else, or a document's diffusions have other steps.
    """
    expected = f'{{"batch_sizes": [1, 2, ...], "diffusion_s": [...]}} in {path}'
    fix = "write the seconds of a whole diffusion for every batch size, or name a document of nuwaxl-bench"
    try:
        table = parse_json(read_text(Path(path), "a readable cost model"))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(expected=expected, found=str(error), fix=fix) from error
    if isinstance(table, Mapping) and isinstance(table.get("cost_model"), Mapping):
        if table.get("steps", steps) != steps:
            raise InputError(
                expected=f"costs of diffusions of {steps} steps in {path}",
                found=f"those of {shown(table['steps'])} steps",
                fix="give those as --steps, or measure again",
            )
        table = table["cost_model"]
    for key in ("batch_sizes", "diffusion_s"):
        numbers = table.get(key) if isinstance(table, Mapping) else None
        if not isinstance(numbers, list) or not all(isinstance(number, int | float) for number in numbers):
            raise InputError(expected=expected, found=f"no list of numbers {key}", fix=fix)
    sizes = [whole_number(f"batch_sizes in {path}", size, least=1, most=MAX_BATCH) for size in table["batch_sizes"]]
    try:
        costs = DiffusionCosts(tuple(sizes), tuple(table["diffusion_s"]), float(table.get("decode_s", 0.0)))
        for each in (1, steps):  # both are asked for later
            costs.model(each)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(expected=expected, found=str(error), fix=fix) from error
    return costs


def schedule_figures(stats: RenderStats, costs: DiffusionCosts) -> dict[str, float]:
    """How near the schedule came to what its own costs allow: `makespan_s` from the first batch to the last, decoding
    included, `lower_bound_s` that no schedule of the same work at these costs can beat, and `ratio`, the first by the
    second."""
    windows = sum(batch.kind == "decode" for batch in stats.batches)
    bound_s = work_bound_s(stats.depths, len(stats.devices), costs, windows)
    makespan_s = max(batch.end_s for batch in stats.batches) - min(batch.start_s for batch in stats.batches)
    return {"makespan_s": makespan_s, "lower_bound_s": bound_s, "ratio": makespan_s / bound_s}


def work_bound_s(depths: Sequence[int], devices: int, costs: DiffusionCosts, windows: int) -> float:
    """max over depth j of j * c1 + (n_j * c + windows * decode_s) / D, seconds.

    As measure.lower_bound_s, with the decoding of the windows as work: all of it waits for segments of the lowest
    depth. Not rounded up to whole segments, since a device that takes newcomers between steps shares them.
    """
    decode_s = windows * costs.decode_s
    return max(
        j * costs.alone_s + (sum(depths[j:]) * costs.cheapest_s + decode_s) / devices for j in range(len(depths))
    )

"""Renders on the virtual clock: the scheduler that runs them, on devices that nobody needs to have."""

from dataclasses import dataclass

from nuwaxl.bench.costs import DiffusionCosts
from nuwaxl.bench.measure import lower_bound_s
from nuwaxl.bench.scaling import SimulatedPoint
from nuwaxl.engine import Plan
from nuwaxl.engine._core import simulate
from nuwaxl.engine.request import AUTOREGRESSIVE_OVERLAP, Policy
from nuwaxl.engine.windows import decode_windows


@dataclass(frozen=True)
class VirtualRender:
    """What is simulated.

    Attributes:
        plan: of the video.
        steps: denoising steps a segment.
        policy, max_batch: as for a render.
        decode_overlap: of the bundle's decoder, see engine.windows.
    """

    plan: Plan
    steps: int
    policy: Policy
    max_batch: int
    decode_overlap: int


def simulated_point(render: VirtualRender, costs: DiffusionCosts, devices: int, compare_ar: bool) -> SimulatedPoint:
    """The render on `devices` devices of the same costs; and the autoregressive baseline of the same video."""
    makespan_s = _makespan_s(render, render.plan, costs, devices)
    bound_s = lower_bound_s(render.plan.counts, devices, costs.alone_s, costs.cheapest_s)
    ar_makespan_s = reduction = None
    if compare_ar:
        baseline = Plan.autoregressive(render.plan.frames, render.plan.length, AUTOREGRESSIVE_OVERLAP)
        ar_makespan_s = _makespan_s(render, baseline, costs, devices)
        reduction = 1 - makespan_s / ar_makespan_s
    return SimulatedPoint(devices, makespan_s, bound_s, bound_s / makespan_s, ar_makespan_s, reduction)


def _makespan_s(render: VirtualRender, plan: Plan, costs: DiffusionCosts, devices: int) -> float:
    windows = None
    if costs.decode_s > 0:
        windows = [[window.needs for window in decode_windows(plan.frames, plan.length, render.decode_overlap)]]
    return simulate(
        [plan],
        policy=render.policy,
        devices=[costs.model(render.steps)] * devices,
        max_batch=min(render.max_batch, costs.batch_sizes[-1]),  # what larger ones take is not known
        steps=render.steps,
        decode_windows=windows,
        decode_ahead=2 * devices,
    ).makespan_s

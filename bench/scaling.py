"""What is known about other numbers of devices and the other way to render: plain data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ArComparison:
    """The same film rendered by the autoregressive baseline, on the same devices.

    Attributes:
        wall_s: what the baseline took, in seconds.
        windows: sliding windows it ran, one after the other.
        reduction: 1 - wall / wall_s, with the wall time of this run.
    """

    wall_s: float
    windows: int
    reduction: float


@dataclass(frozen=True)
class SimulatedPoint:
    """The render on the virtual clock, on a number of devices. Times are seconds.

    Attributes:
        devices: D.
        makespan_s: from the start to the end of the last piece of work.
        lower_bound_s: what no schedule can beat.
        efficiency: lower_bound_s / makespan_s.
        ar_makespan_s: the same for the autoregressive baseline, where it was asked for.
        reduction: 1 - makespan_s / ar_makespan_s.
    """

    devices: int
    makespan_s: float
    lower_bound_s: float
    efficiency: float
    ar_makespan_s: float | None = None
    reduction: float | None = None

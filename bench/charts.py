"""The charts of the report besides the timeline: bars, histogram, distributions and curves."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nuwaxl.bench.svg import duration, figure, line, log_ticks, plain, tag, text, ticks
from nuwaxl.engine.stats import StepRecord

MAX_BINS = 16
_WIDTH = 520


@dataclass(frozen=True)
class SizeBin:
    """The calls of the step graph with `low` to `high` segments; their times in milliseconds."""

    low: int
    high: int
    ms: list[float]
    ms_a_segment: list[float]

    @property
    def label(self) -> str:
        """The sizes, as on an axis."""
        return f"{self.low}" if self.low == self.high else f"{self.low}\u2013{self.high}"


def size_bins(steps: Sequence[StepRecord]) -> list[SizeBin]:
    """Calls by the number of their segments: one bin a size up to 16 of them, then as many sizes a bin as needed."""
    width = -(-max(step.segments for step in steps) // MAX_BINS)
    bins = []
    for low in range(1, MAX_BINS * width + 1, width):
        own = [step for step in steps if low <= step.segments < low + width]
        per_segment = [step.ms / step.segments for step in own]
        bins.append(SizeBin(low, low + width - 1, [step.ms for step in own], per_segment))
    return bins[: max(place for place, size in enumerate(bins) if size.ms) + 1]


def bar_rows(rows: Sequence[tuple[str, float, str, str]], label: str) -> str:
    """Horizontal bars: (name, value, what is written beside it, class)."""
    left, right, pitch = 132, 150, 36
    scale = (_WIDTH - left - right) / max(value for _, value, _, _ in rows)
    parts = []
    for row, (name, value, written, class_) in enumerate(rows):
        base = row * pitch + pitch / 2 + 4
        parts.append(text(0, base, name))
        parts.append(tag("rect", x=left, y=row * pitch + 5, width=value * scale, height=pitch - 10, class_=class_))
        parts.append(text(left + value * scale + 8, base, written, class_="number"))
    return figure("".join(parts), _WIDTH, pitch * len(rows), label)


def histogram(bins: Sequence[SizeBin]) -> str:
    """How many calls had each size."""
    left, top, height, bottom = 44, 20, 190, 44
    calls = max(len(size.ms) for size in bins)
    marks = [mark for mark in ticks(calls, 5) if mark == int(mark)]
    pitch = (_WIDTH - left) / len(bins)
    width = min(pitch * 0.7, 64)
    roomy = pitch > 7 * max(4, *(len(size.label) for size in bins))  # for text at every bar
    parts = []
    for mark in marks:
        y = top + height * (1 - mark / calls)
        parts += [line(left, y, _WIDTH, y, "grid"), text(left - 8, y + 4, plain(mark), "end", "number")]
    for place, size in enumerate(bins):
        x, tall = left + (place + 0.5) * pitch, height * len(size.ms) / calls
        title = tag("title", f"{len(size.ms)} calls with {size.label} segments")
        parts.append(tag("rect", title, x=x - width / 2, y=top + height - tall, width=width, height=tall, class_="bar"))
        if roomy and size.ms:
            parts.append(text(x, top + height - tall - 6, f"{len(size.ms):,}", "middle", "number"))
        if roomy or place % 2 == 0:
            parts.append(text(x, top + height + 18, size.label, "middle", "number"))
    parts.append(text(left + (_WIDTH - left) / 2, top + height + 38, "segments in a call", "middle", "muted"))
    return figure("".join(parts), _WIDTH, top + height + bottom, "Calls of the step graph by number of segments")


def distributions(bins: Sequence[SizeBin]) -> tuple[str, str]:
    """For each size, the outline of how its times are distributed and a line at the median; and what is not drawn."""
    bins = [size for size in bins if size.ms]
    left, pitch, columns = 44, 44, 96
    # The slowest call of a shared machine may be ten times the usual one, which would leave a picture of nothing.
    end_ms = 1.15 * max(float(np.percentile(size.ms, 99)) for size in bins)
    scale = (_WIDTH - left - 8) / end_ms
    bottom = pitch * len(bins)
    parts = []
    for mark in ticks(end_ms, 8):
        x = left + mark * scale
        parts += [line(x, 0, x, bottom + 4, "grid"), text(x, bottom + 20, plain(mark), "middle", "number")]
    for row, size in enumerate(bins):
        floor = (row + 1) * pitch - 4
        counts, _ = np.histogram(size.ms, bins=columns, range=(0, end_ms))
        # The lowest box holds the outline of a single call, which is a needle otherwise.
        heights = np.convolve(counts, (0.25, 0.5, 0.25), mode="same")
        heights *= (pitch - 10) / max(heights.max(), 1e-9)
        step = (_WIDTH - left - 8) / columns
        points = [(left + (place + 0.5) * step, floor - tall) for place, tall in enumerate(heights)]
        outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in [(left, floor), *points, (_WIDTH - 8, floor)])
        median = float(np.median(size.ms))
        parts.append(tag("polygon", points=outline, class_="ridge"))
        parts.append(line(left, floor, _WIDTH - 8, floor, "axis"))
        x = left + median * scale
        parts.append(line(x, floor - pitch + 8, x, floor, "median"))
        side = "end" if x > _WIDTH * 0.8 else "start"
        written = duration(median / 1000)
        parts.append(text(x + (6 if side == "start" else -6), floor - pitch + 18, written, side, "number halo"))
        parts.append(text(left - 8, floor - 6, size.label, "end", "number"))
    parts.append(text(left + (_WIDTH - left) / 2, bottom + 40, "ms a call", "middle", "muted"))
    slower = sum(sum(ms > end_ms for ms in size.ms) for size in bins)
    calls = "1 call" if slower == 1 else f"{slower} calls"
    note = f"Not drawn: {calls} slower than {duration(end_ms / 1000)}." if slower else ""
    return figure("".join(parts), _WIDTH, bottom + 44, "Times of the calls by number of segments"), note


def curve(
    devices: Sequence[int], series: Sequence[tuple[str, Sequence[float | None]]], label: str, *, shares: bool
) -> str:
    """Lines over the number of devices, on a logarithmic axis.

    Args:
        series: (class, one value for each number of devices or None where there is none).
        shares: values are at most 1, shown as per cent from 0; else seconds above 0 on a logarithmic axis.
    """
    left, top, right, height = 64, 12, 16, 220
    values = [value for _, row in series for value in row if value is not None]
    marks, y_of = _share_axis(values) if shares else _time_axis(values)
    low, high = math.log2(min(devices)), math.log2(max(devices))

    def place(count: int, value: float) -> tuple[float, float]:
        part = (math.log2(count) - low) / (high - low) if high > low else 0.5
        return left + part * (_WIDTH - left - right), top + height * (1 - y_of(value))

    parts = []
    for mark in marks:
        y = place(devices[0], mark)[1]
        written = f"{mark:.0%}" if shares else duration(mark)
        parts += [line(left, y, _WIDTH, y, "grid"), text(left - 8, y + 4, written, "end", "number")]
    written_to = -math.inf
    for count in sorted(set(devices)):
        x = place(count, values[0])[0]
        parts.append(line(x, top + height, x, top + height + 5, "axis"))
        if x - written_to > 34:
            parts.append(text(x, top + height + 20, f"{count}", "middle", "number"))
            written_to = x
    parts.append(text(left + (_WIDTH - left) / 2, top + height + 40, "devices", "middle", "muted"))
    for class_, row in series:
        known = sorted((count, value) for count, value in zip(devices, row, strict=True) if value is not None)
        points = [place(count, value) for count, value in known]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(tag("polyline", points=joined, class_=f"curve {class_}"))
        for (count, value), (x, y) in zip(known, points, strict=True):
            said = f"{count} devices: {f'{value:.2%}' if shares else duration(value)}"
            parts.append(tag("circle", tag("title", said), cx=x, cy=y, r=3.5, class_=f"mark {class_}"))
    return figure("".join(parts), _WIDTH, top + height + 44, label)


def _share_axis(values: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Marks, and the height (0 to 1) of a value: from 0, or below it where a value is negative, to 1."""
    bottom = min(0.0, math.floor(min(values) * 4) / 4)
    step = 0.25 * math.ceil((1 - bottom) / 2)
    count = math.ceil((1 - bottom) / step)
    marks = [1 - number * step for number in range(count, -1, -1)]
    return marks, lambda value: (value - marks[0]) / (1 - marks[0])


def _time_axis(values: Sequence[float]) -> tuple[list[float], Callable[[float], float]]:
    """Marks, and the height (0 to 1) of a value, logarithmic. Few marks are shown, whatever the range."""
    marks = log_ticks(min(values), max(values))
    low, high = math.log(marks[0]), math.log(marks[-1])
    shown = marks if len(marks) <= 8 else [marks[0], *marks[3:-1:3], marks[-1]]
    return shown, lambda value: (math.log(value) - low) / (high - low)

"""The timeline of a run: a row a device, a bar a batch, coloured by depth."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from nuwaxl.bench.report import Result
from nuwaxl.bench.sheet import spread
from nuwaxl.bench.svg import duration, figure, legend, line, plain, tag, text, ticks
from nuwaxl.engine.stats import BatchRecord

MAX_BARS = 8000  # a bar takes up to 450 bytes of the page
MAX_ROWS = 32
MAX_NAMED = 12  # segments that a tooltip lists
DEEPEST_COLOUR = 6

_WIDTH, _LEFT, _RIGHT, _AXIS, _NAME = 1080, 128, 56, 26, 17


@dataclass(frozen=True)
class Bar:
    """What is drawn: a batch, or several neighbours too narrow to be told apart."""

    batches: list[BatchRecord]

    @property
    def start_s(self) -> float:
        """Start of the first batch."""
        return self.batches[0].start_s

    @property
    def end_s(self) -> float:
        """End of the last batch."""
        return self.batches[-1].end_s

    @property
    def colour(self) -> str:
        """Class of what took most of the time."""
        took: Counter[str] = Counter()
        for batch in self.batches:
            took[colour(batch)] += max(1, round((batch.end_s - batch.start_s) * 1e9))
        return took.most_common(1)[0][0]

    @property
    def title(self) -> str:
        """The tooltip."""
        when = f"{self.start_s:.3f} to {self.end_s:.3f} s ({duration(self.end_s - self.start_s)})"
        if len(self.batches) > 1:
            kinds = Counter(_kind(batch) for batch in self.batches)
            parts = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
            return f"{len(self.batches)} batches: {parts}\n{when}"
        batch = self.batches[0]
        if batch.kind == "decode":
            return f"decode window {_named(batch)}\n{when}"
        return f"diffuse x{len(batch.segments)}, depth {batch.depth}\n{when}\nsegments {_named(batch)}"


def timeline(result: Result) -> str:
    """The section: what was left out or drawn together, the legend and the picture."""
    shown = [result.devices[row] for row in spread(len(result.devices), MAX_ROWS)]
    end_s = max([result.wall_s, *(batch.end_s for batch in result.batches)])
    rows: dict[str, list[BatchRecord]] = {name: [] for name in shown}
    for batch in result.batches:
        if batch.device in rows:
            rows[batch.device].append(batch)
    count = sum(map(len, rows.values()))
    quantum_s = 2 * end_s * len(rows) / MAX_BARS if count > MAX_BARS else 0.0
    drawn = {name: list(merge(batches, quantum_s)) for name, batches in rows.items()}
    bars = sum(map(len, drawn.values()))
    notes = []
    if len(shown) < len(result.devices):
        notes.append(f"{len(shown)} of {len(result.devices):,} devices are drawn, spread evenly over the list.")
    if bars < count:
        notes.append(
            f"{count:,} batches are drawn as {bars:,} bars: neighbours that fit into {duration(quantum_s)} are one "
            "bar, in the colour of what took most of the time."
        )
    note = f'<p class="note">{escape(" ".join(notes))}</p>' if notes else ""
    return _legend(result) + _picture(result, drawn, end_s) + note


def merge(batches: Sequence[BatchRecord], quantum_s: float) -> Iterator[Bar]:
    """Bars of one device, in order; neighbours are one bar as long as it is no longer than `quantum_s`.

    Two bars that follow each other are longer than that together, so a device has at most 2 * wall / quantum
    of them, and one.
    """
    group: list[BatchRecord] = []
    for batch in sorted(batches, key=lambda batch: batch.start_s):
        if group and batch.end_s - group[0].start_s > quantum_s:
            yield Bar(group)
            group = []
        group.append(batch)
    if group:
        yield Bar(group)


def colour(batch: BatchRecord) -> str:
    """Class of a batch."""
    return "decode" if batch.kind == "decode" else f"d{min(batch.depth, DEEPEST_COLOUR)}"


def _picture(result: Result, rows: dict[str, list[Bar]], end_s: float) -> str:
    pitch = 34 if len(rows) <= 8 else 18
    scale = (_WIDTH - _LEFT - _RIGHT) / end_s
    bottom = _AXIS + pitch * len(rows)
    marks = ticks(end_s, 10)
    parts = [line(_LEFT + mark * scale, _AXIS - 4, _LEFT + mark * scale, bottom, "grid") for mark in marks]
    parts += [text(_LEFT + mark * scale, _AXIS - 10, f"{plain(mark)} s", "middle") for mark in marks]
    parts.append(text(_WIDTH, _AXIS - 10, "busy", "end"))
    for row, (name, bars) in enumerate(rows.items()):
        top = _AXIS + row * pitch
        base = top + pitch / 2 + 4
        short = name if len(name) <= _NAME else f"{name[: _NAME - 1]}\u2026"
        parts.append(tag("g", tag("title", escape(name)) + text(0, base, short, class_="name")))
        parts.append(text(_WIDTH, base, f"{result.device_busy_s.get(name, 0) / end_s:.0%}", "end", "number"))
        parts.append(tag("rect", x=_LEFT, y=top + 2, width=end_s * scale, height=pitch - 4, class_="idle"))
        parts += [_rectangle(bar, scale, top + 2, pitch - 4) for bar in bars]
    bound = _LEFT + result.lower_bound_s * scale
    if 0 < result.lower_bound_s < end_s:
        parts.append(line(bound, _AXIS - 4, bound, bottom + 6, "bound"))
        side = "end" if bound > _WIDTH / 2 else "start"
        parts.append(text(bound + 4 - 8 * (side == "end"), bottom + 16, "lower bound", side))
    label = f"What each of {len(rows)} devices did over {end_s:.1f} seconds"
    return figure("".join(parts), _WIDTH, bottom + 22, label)


def _rectangle(bar: Bar, scale: float, top: float, height: float) -> str:
    width = (bar.end_s - bar.start_s) * scale
    # A hairline between neighbours, unless it would eat the bar.
    shown = width - 0.6 if width > 3 else max(width, 0.3)
    return tag(
        "rect",
        tag("title", escape(bar.title)),
        x=_LEFT + bar.start_s * scale,
        y=top,
        width=shown,
        height=height,
        class_=bar.colour,
    )


def _legend(result: Result) -> str:
    entries = []
    for depth in range(len(result.depths)):
        if depth == DEEPEST_COLOUR and depth + 1 < len(result.depths):
            entries.append((f"d{depth}", f"depth {depth} and below"))
            break
        entries.append((f"d{depth}", "depth 0, the global diffusion" if depth == 0 else f"depth {depth}"))
    return legend([*entries, ("decode", "decoding"), ("idle", "idle")])


def _kind(batch: BatchRecord) -> str:
    return "decode" if batch.kind == "decode" else f"depth {batch.depth}"


def _named(batch: BatchRecord) -> str:
    """The batch's segments or windows, with their job if several videos are rendered."""
    named = [f"{number} of job {job}" if batch.jobs else f"{number}" for job, number in batch.items[:MAX_NAMED]]
    more = len(batch.segments) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")

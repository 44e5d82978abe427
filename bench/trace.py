"""A render as a Chrome trace, which Perfetto opens.

Google, "Trace Event Format": an object with a list of events. Used here are metadata (phase M), complete events
(X) and flows (s and f with one id, drawn as an arrow). A viewer binds a flow event to the span that is open on its
row at that moment; the times of this file are therefore whole nanoseconds, and flows lie inside their spans.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from nuwaxl.engine import Plan
from nuwaxl.engine.stats import BatchRecord

_PROCESS = 1
_Event = dict[str, Any]


def chrome_trace(batches: Iterable[BatchRecord], plans: Sequence[Plan], devices: Sequence[str]) -> str:
    """The trace, as JSON: a row a device, a span a batch, an arrow from each parent to each of its children.

    An arrow leaves the last span of the parent and enters the first span of the child; a segment that is in no
    batch, because it was rendered in an earlier run, has none.

    Args:
        batches: what ran, in any order.
        plans: the plan of each job.
        devices: their names, in the order of the rows; others that ran batches follow.
    """
    batches = sorted(batches, key=lambda batch: (batch.start_s, batch.end_s))
    names = dict.fromkeys([*devices, *(batch.device for batch in batches)])
    rows = {name: number for number, name in enumerate(names, 1)}
    events = [_span(batch, plans, rows[batch.device]) for batch in batches] + list(_flows(batches, plans, rows))
    events.sort(key=lambda event: (event["ts"], event["ph"] != "X"))
    for event in events:
        for key in ("ts", "dur"):
            if key in event:
                event[key] /= 1000  # microseconds, as the format has it
    lines = ",\n".join(json.dumps(event) for event in [*_metadata(rows), *events])
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _metadata(rows: dict[str, int]) -> Iterator[_Event]:
    """Names and order of the rows."""
    place = {"ph": "M", "pid": _PROCESS}
    yield {**place, "tid": 0, "name": "process_name", "args": {"name": "nuwaxl"}}
    for name, row in rows.items():
        yield {**place, "tid": row, "name": "thread_name", "args": {"name": name}}
        yield {**place, "tid": row, "name": "thread_sort_index", "args": {"sort_index": row}}


def _span(batch: BatchRecord, plans: Sequence[Plan], row: int) -> _Event:
    start = _ns(batch.start_s)
    event = {"ph": "X", "pid": _PROCESS, "tid": row, "ts": start, "dur": _ns(batch.end_s) - start, "cat": batch.kind}
    if batch.kind == "decode":
        windows = [{"job": job, "window": window} for job, window in batch.items]
        return {**event, "name": f"decode {', '.join(map(str, batch.segments))}", "args": {"windows": windows}}
    name = f"diffuse x{len(batch.segments)}, depth {batch.depth}"
    return {**event, "name": name, "args": {"segments": [_describe(plans[job], job, n) for job, n in batch.items]}}


def _describe(plan: Plan, job: int, number: int) -> dict[str, Any]:
    segment = plan.segment(number)
    last = segment.first_frame + (plan.length - 1) * segment.stride
    frames = f"{segment.first_frame} to {last}" + (f", every {segment.stride}" if segment.stride > 1 else "")
    return {"job": job, "segment": number, "depth": segment.depth, "index": segment.index, "frames": frames}


def _flows(batches: Sequence[BatchRecord], plans: Sequence[Plan], rows: dict[str, int]) -> Iterator[_Event]:
    """Start and end of each arrow. `batches` are in order of their start."""
    first: dict[tuple[int, int], BatchRecord] = {}
    last: dict[tuple[int, int], BatchRecord] = {}
    for batch in batches:
        if batch.kind == "diffuse":
            for item in batch.items:
                first.setdefault(item, batch)
                last[item] = batch
    arrows = 0
    for (job, number), child in first.items():
        parent = last.get((job, plans[job].segment(number).parent))
        if parent is None:
            continue
        arrows += 1
        flow = {"pid": _PROCESS, "cat": "tree", "name": "parent", "id": arrows}
        # One nanosecond inside, as a span is closed at its end.
        leave = max(_ns(parent.start_s), _ns(parent.end_s) - 1)
        enter = min(_ns(child.start_s) + 1, max(_ns(child.start_s), _ns(child.end_s) - 1))
        yield {**flow, "ph": "s", "tid": rows[parent.device], "ts": leave}
        yield {**flow, "ph": "f", "bp": "e", "tid": rows[child.device], "ts": enter}


def _ns(seconds: float) -> int:
    """Whole nanoseconds: spans that touch still touch when rounded, and never overlap."""
    return round(seconds * 1e9)

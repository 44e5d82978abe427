"""The trace keeps every rule of the Trace Event Format that the viewers rely on."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from nuwaxl.bench.trace import chrome_trace
from nuwaxl.engine import Plan
from nuwaxl.engine.stats import BatchRecord

Event = dict[str, Any]
Bench = Callable[..., int]


def check(text: str) -> list[Event]:
    """The events of a trace, after checking what a viewer takes for granted."""
    document = json.loads(text)
    assert document["displayTimeUnit"] in ("ms", "ns")
    events: list[Event] = document["traceEvents"]
    timed = [event for event in events if event["ph"] != "M"]
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
    rows = {event["tid"] for event in events if event["name"] == "thread_name"}
    for event in events:
        assert event["ph"] in "MXsf"
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["name"], str)
        if event["ph"] == "M":
            key = "sort_index" if event["name"] == "thread_sort_index" else "name"
            assert event["name"] in ("process_name", "thread_name", "thread_sort_index")
            assert list(event["args"]) == [key]
        else:
            assert event["ts"] >= 0
            assert event["tid"] in rows
            # Nanoseconds, which the viewers keep: finer parts of a microsecond would be rounded by each in its way.
            assert event["ts"] * 1000 == pytest.approx(round(event["ts"] * 1000), abs=1e-3)
    for spans in spans_by_row(events).values():
        assert all(span["dur"] > 0 for span in spans)
        assert all(ns(end_of(before)) <= ns(after["ts"]) for before, after in pairwise(spans))
    check_flows(events)
    return events


def check_flows(events: list[Event]) -> None:
    """Every arrow has one start and one end of the same name and category, each strictly inside one span."""
    keys = {"s": set(), "f": set()}  # type: dict[str, set[tuple[Any, ...]]]
    began: dict[tuple[Any, ...], float] = {}
    for event in events:
        if event["ph"] not in keys:
            continue
        key = (event["cat"], event["name"], event["id"])
        assert key not in keys[event["ph"]], "an id is used twice"
        keys[event["ph"]].add(key)
        assert span_around(events, event)
        if event["ph"] == "s":
            began[key] = event["ts"]
        else:
            assert event["bp"] == "e"  # otherwise it is bound to the next span, not to the one around it
            assert began[key] < event["ts"]
    assert keys["s"] == keys["f"]


def span_around(events: list[Event], event: Event) -> Event:
    """The one span on the event's row that is open at its time."""
    here = [
        span
        for span in events
        if span["ph"] == "X" and span["tid"] == event["tid"] and span["ts"] < event["ts"] < end_of(span)
    ]
    assert len(here) == 1
    return here[0]


def spans_by_row(events: list[Event]) -> dict[int, list[Event]]:
    """Complete events of each row, in the order of the file."""
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["tid"]].append(event)
    return rows


def end_of(span: Event) -> float:
    return float(span["ts"] + span["dur"])


def ns(microseconds: float) -> int:
    return round(microseconds * 1000)


def arrows(events: list[Event]) -> list[tuple[Event, Event]]:
    """The spans that each arrow leaves and enters."""
    ends = {event["id"]: event for event in events if event["ph"] == "f"}
    return [
        (span_around(events, event), span_around(events, ends[event["id"]])) for event in events if event["ph"] == "s"
    ]


def holds(span: Event, job: int, segment: int) -> bool:
    return any((entry["job"], entry["segment"]) == (job, segment) for entry in span["args"]["segments"])


def joined_run(plans: list[Plan], devices: int, seed: int) -> list[BatchRecord]:
    """A made-up run of several videos in which devices take a second segment while the first is on its way.

    Two segments share a device as [a], [a, b], [b]: three batches, with a and b in two of them each.
    """
    chance = random.Random(seed)
    free = [0.0] * devices
    done: dict[tuple[int, int], float] = {}
    batches = []
    waiting = [(plan.segment(n).depth, job, n) for job, plan in enumerate(plans) for n in range(len(plan))]
    waiting.sort()
    while waiting:
        count = 2 if len(waiting) > 1 and waiting[0][0] == waiting[1][0] else 1
        taken, waiting = [(job, n) for _, job, n in waiting[:count]], waiting[count:]
        device = free.index(min(free))
        parents = [(job, plans[job].segment(n).parent) for job, n in taken]
        start = max([free[device], *(done.get(parent, 0.0) for parent in parents)])
        depth = plans[taken[0][0]].segment(taken[0][1]).depth
        for held in [taken] if count == 1 else [taken[:1], taken, taken[1:]]:
            end = start + chance.uniform(1e-6, 0.3)
            jobs, segments = [job for job, _ in held], [n for _, n in held]
            batches.append(BatchRecord("diffuse", depth, segments, f"cpu#{device}", start, end, jobs))
            done.update(dict.fromkeys(held, end))
            start = free[device] = end
    chance.shuffle(batches)
    return batches


@pytest.mark.parametrize(("devices", "seed"), [(1, 0), (2, 1), (5, 2), (16, 3)])
def test_arrows_lead_from_the_last_span_of_the_parent_to_the_first_of_the_child(devices: int, seed: int) -> None:
    plans = [Plan(60, 4), Plan(9, 4), Plan(1, 4)]
    batches = joined_run(plans, devices, seed)
    events = check(chrome_trace(batches, plans, [f"cpu#{number}" for number in range(devices)]))
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(batches)

    def of(job: int, segment: int) -> list[Event]:
        return [span for span in spans if holds(span, job, segment)]

    expected = Counter()
    for job, plan in enumerate(plans):
        for number in range(1, len(plan)):
            last, first = of(job, plan.segment(number).parent)[-1], of(job, number)[0]
            expected[last["tid"], last["ts"], first["tid"], first["ts"]] += 1
    found = Counter((out["tid"], out["ts"], into["tid"], into["ts"]) for out, into in arrows(events))
    assert found == expected
    assert sum(found.values()) == sum(len(plan) - 1 for plan in plans)
    assert any(len(of(0, number)) == 2 for number in range(len(plans[0])))


def test_a_span_says_what_ran_when_and_where() -> None:
    batches = [
        BatchRecord("diffuse", 0, [0], "gpu", 0.25, 1.5),
        BatchRecord("diffuse", 1, [1, 3], "cpu", 1.5, 2.0),
        BatchRecord("decode", -1, [17], "gpu", 2.0, 2.000001),
    ]
    events = check(chrome_trace(batches, [Plan(10, 4)], ["cpu", "gpu"]))
    spans = [event for event in events if event["ph"] == "X"]
    named = [(span["name"], span["cat"], span["tid"], span["ts"], span["dur"]) for span in spans]
    assert named == [
        ("diffuse x1, depth 0", "diffuse", 2, 250_000, 1_250_000),
        ("diffuse x2, depth 1", "diffuse", 1, 1_500_000, 500_000),
        ("decode 17", "decode", 2, 2_000_000, 1),
    ]
    assert [span["args"] for span in spans] == [
        {"segments": [{"job": 0, "segment": 0, "depth": 0, "index": 0, "frames": "0 to 9, every 3"}]},
        {
            "segments": [
                {"job": 0, "segment": 1, "depth": 1, "index": 0, "frames": "0 to 3"},
                {"job": 0, "segment": 3, "depth": 1, "index": 2, "frames": "6 to 9"},
            ]
        },
        {"windows": [{"job": 0, "window": 17}]},
    ]


def test_rows_are_named_and_ordered_as_the_devices_are_listed_and_idle_ones_are_there() -> None:
    batches = [BatchRecord("decode", -1, [0], name, 0.0, 1.0) for name in ("late", "b")]
    events = check(chrome_trace(batches, [Plan(4, 4)], ["b", "a"]))
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names == ["b", "a", "late"]
    order = [event["args"]["sort_index"] for event in events if event["name"] == "thread_sort_index"]
    assert order == sorted(set(order))
    assert [event["args"]["name"] for event in events if event["name"] == "process_name"] == ["nuwaxl"]


def test_a_segment_whose_parent_ran_in_an_earlier_run_has_no_arrow() -> None:
    batches = [BatchRecord("diffuse", 1, [1, 2], "cpu", 0.0, 1.0)]
    events = check(chrome_trace(batches, [Plan(10, 4)], ["cpu"]))
    assert {event["ph"] for event in events} == {"M", "X"}


def test_jobs_that_do_not_fit_the_segments_are_refused() -> None:
    batches = [BatchRecord("diffuse", 0, [0], "cpu", 0.0, 1.0, [0, 1])]
    with pytest.raises(ValueError, match="zip"):
        chrome_trace(batches, [Plan(4, 4)], ["cpu"])


def test_a_real_run_leaves_a_trace_of_all_its_batches(bench: Bench, own_story: Path, tmp_path: Path) -> None:
    files = ["--trace", tmp_path / "t.json", "--json", tmp_path / "b.json"]
    assert bench("--story", own_story, "--frames", 60, "--devices", "cpu:2", *files) == 0
    document = json.loads((tmp_path / "b.json").read_text())
    events = check((tmp_path / "t.json").read_text())
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == len(document["batches"])
    for span, batch in zip(spans, sorted(document["batches"], key=lambda batch: batch["start_s"]), strict=True):
        assert span["ts"] / 1e6 == pytest.approx(batch["start_s"], abs=1e-6)
        assert end_of(span) / 1e6 == pytest.approx(batch["end_s"], abs=1e-6)
    plan = Plan(60, 4)
    for out, into in arrows(events):
        assert any(holds(out, 0, plan.segment(entry["segment"]).parent) for entry in into["args"]["segments"])
    assert len(arrows(events)) == len(plan) - 1

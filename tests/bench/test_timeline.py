"""The timeline of the report: bars where batches ran, and a page that stays small."""

from dataclasses import replace

import pytest

from nuwaxl.bench.report import Result
from nuwaxl.bench.timeline import MAX_BARS, MAX_ROWS, merge, timeline
from nuwaxl.engine.stats import BatchRecord
from tests.bench.page import RESULT, bars, figures, whole


def test_a_bar_lies_where_its_batch_ran() -> None:
    page = whole()
    shown = bars(page)
    assert [bar.get("class") for bar in shown] == ["d0", "d1", "decode", "d1"]  # row by row
    x, width = ([float(bar.attrib[key]) for bar in shown] for key in ("x", "width"))
    per_second = x[1] - x[0]  # from 1 s to 3 s
    per_second /= 2
    assert [(place - x[0]) / per_second + 1 for place in x] == pytest.approx([1, 3, 5, 3], abs=0.01)
    assert [wide / per_second for wide in width] == pytest.approx([2, 2, 4, 3], abs=0.02)  # less a hairline
    tops = [float(bar.attrib["y"]) for bar in shown]
    assert tops[0] == tops[1] == tops[2] < tops[3]
    titles = [bar.findtext("title") for bar in shown]
    assert titles[3] == "diffuse x2, depth 1\n3.000 to 6.000 s (3 s)\nsegments 1, 2"
    assert titles[2] == "decode window 0\n5.000 to 9.000 s (4 s)"
    bound = next(line for line in figures(page)[0].iter("line") if line.get("class") == "bound")
    assert (float(bound.attrib["x1"]) - x[0]) / per_second + 1 == pytest.approx(4.0, abs=0.01)


def test_tooltips_name_the_job_where_there_are_several_and_not_too_many_segments() -> None:
    batches = [
        BatchRecord("diffuse", 1, [4, 4], "cpu#0", 0.0, 1.0, [0, 3]),
        BatchRecord("diffuse", 1, list(range(100, 140)), "cpu#1", 0.0, 1.0),
    ]
    first, second = (bar.findtext("title") or "" for bar in bars(whole(replace(RESULT, batches=batches))))
    assert first.endswith("segments 4 of job 0, 4 of job 3")
    assert second.endswith("110, 111 and 28 more")


def many_batches(devices: int, each: int) -> Result:
    """A run of short batches that fill all devices for 100 s."""
    names = [f"gpu#{number}" for number in range(devices)]
    length = 100 / each
    segments, jobs = list(range(1_000_000, 1_000_016)), list(range(100_000, 100_016))
    batches = [
        BatchRecord("diffuse", 1 + place % 3, segments, name, place * length, (place + 1) * length, jobs)
        for name in names
        for place in range(each)
    ]
    return replace(
        RESULT, devices=names, batches=batches, wall_s=100.0, device_busy_s=dict.fromkeys(names, 100.0), depths=[1] * 4
    )


@pytest.mark.parametrize(("devices", "each"), [(1, 8000), (1, 15_000), (8, 2000), (40, 400), (500, 20)])
def test_a_run_of_many_batches_takes_little_and_says_what_is_left_out(devices: int, each: int) -> None:
    section = timeline(many_batches(devices, each))
    assert len(section) < 4_000_000
    shown = bars(section)
    rows = min(devices, MAX_ROWS)
    assert len({bar.attrib["y"] for bar in shown}) == rows
    assert (f"{rows} of {devices:,} devices are drawn" in section) == (devices > MAX_ROWS)
    titles = [bar.findtext("title") or "" for bar in shown]
    together = [int(title.split(" batches")[0]) for title in titles if " batches: " in title]
    assert sum(together) + len(shown) - len(together) == rows * each
    if rows * each > MAX_BARS:
        assert MAX_BARS / 4 < len(shown) <= MAX_BARS + rows
        assert f"{rows * each:,} batches are drawn as {len(shown):,} bars" in section
    else:
        assert not together
        assert " bars: " not in section


def test_a_run_of_few_batches_is_drawn_batch_by_batch() -> None:
    section = timeline(many_batches(4, 100))
    assert len(bars(section)) == 400
    assert "are drawn" not in section


def test_neighbours_are_drawn_as_one_in_the_colour_of_what_took_most_of_the_time() -> None:
    batches = [
        BatchRecord("diffuse", 1, [1], "cpu#0", 0.0, 1.0),
        BatchRecord("decode", -1, [0], "cpu#0", 1.0, 1.4),
        BatchRecord("decode", -1, [1], "cpu#0", 1.4, 1.8),
        BatchRecord("diffuse", 2, [2], "cpu#0", 1.8, 9.0),
        BatchRecord("decode", -1, [2], "cpu#0", 9.0, 9.5),
    ]
    merged = list(merge(batches[::-1], 2.0))
    assert [(len(bar.batches), bar.start_s, bar.end_s, bar.colour) for bar in merged] == [
        (3, 0.0, 1.8, "d1"),
        (1, 1.8, 9.0, "d2"),
        (1, 9.0, 9.5, "decode"),
    ]
    assert merged[0].title.startswith("3 batches: 1 of depth 1, 2 of decode\n0.000 to 1.800 s")
    assert [bar.batches for bar in merge(batches, 0.0)] == [[batch] for batch in batches]

"""What the charts stand on: bins of sizes, round marks on axes, times for people."""

from collections import Counter

import pytest

from nuwaxl.bench.charts import size_bins
from nuwaxl.bench.svg import duration, log_ticks, plain, ticks
from nuwaxl.engine.stats import StepRecord


@pytest.mark.parametrize("largest", [1, 2, 16, 17, 40, 1000])
def test_every_call_is_in_one_bin_of_its_size_and_there_are_at_most_16(largest: int) -> None:
    steps = [StepRecord(1 + place * 7 % largest, float(place)) for place in range(3 * largest)]
    bins = size_bins(steps)
    assert 1 <= len(bins) <= 16
    assert all(bins[place].high + 1 == bins[place + 1].low for place in range(len(bins) - 1))
    assert bins[0].low == 1
    assert bins[-1].low <= max(step.segments for step in steps) <= bins[-1].high
    for size in bins:
        assert Counter(size.ms) == Counter(step.ms for step in steps if size.low <= step.segments <= size.high)
    if largest <= 16:
        assert all(size.low == size.high for size in bins)


@pytest.mark.parametrize("end", [0.003, 0.999, 1.0, 7.0, 8.0, 51.5, 1000.0, 123456.7])
def test_ticks_are_round_begin_at_0_and_reach_nearly_to_the_end(end: float) -> None:
    marks = ticks(end)
    assert marks[0] == 0
    assert 3 <= len(marks) <= 9
    assert marks[-1] <= end * (1 + 1e-6)
    assert marks[-1] + marks[1] > end
    assert f"{marks[1]:e}"[0] in "125"


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (3.6, 86.0), (0.002, 4e6), (1000.0, 1000.0), (9.99, 10.01)])
def test_logarithmic_ticks_enclose_the_values(low: float, high: float) -> None:
    marks = log_ticks(low, high)
    assert len(marks) >= 2
    assert marks == sorted(set(marks))
    assert marks[0] <= low * (1 + 1e-6)
    assert marks[-1] >= high * (1 - 1e-6)


def test_durations_are_written_in_units_for_people() -> None:
    said = [duration(seconds) for seconds in (0.0123, 0.9999, 51.46, 119.0, 453.0, 8100.0, 3.6e7)]
    assert said == ["12.3 ms", "1 s", "51.5 s", "119 s", "7.55 min", "2.2 h", "10,000.0 h"]


def test_numbers_of_an_axis_have_no_exponent() -> None:
    assert [plain(value) for value in (0.0, 3 * 0.1, 0.002, 15_000.0, 2e6)] == [
        "0",
        "0.3",
        "0.002",
        "15,000",
        "2,000,000",
    ]

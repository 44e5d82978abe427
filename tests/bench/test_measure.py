"""The numbers: lower bound, step times, percentiles, peak memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from nuwaxl.bench.measure import diffusion_times_s, lower_bound_s, peak_rss_mib, percentiles, versions
from nuwaxl.engine.stats import StepRecord


@pytest.mark.parametrize(
    ("depths", "devices", "alone_s", "cheapest_s", "expected"),
    [
        ([1], 1, 3.0, 3.0, 3.0),
        ([1], 8, 3.0, 2.0, 2.0),
        # 75 segments on one device: 75 * 2; from depth 1: 3 + 74 * 2; from depth 2: 6 + 69 * 2.
        ([1, 5, 69], 1, 3.0, 2.0, 151.0),
        # Two devices: ceil(75 / 2) * 2 = 76; 3 + 37 * 2 = 77; 6 + ceil(69 / 2) * 2 = 76.
        ([1, 5, 69], 2, 3.0, 2.0, 77.0),
        # Batches save nothing: 38; 1 + 37; 2 + 35.
        ([1, 5, 69], 2, 1.0, 1.0, 38.0),
        # One device for each segment: the path from the root to a leaf.
        ([1, 5, 69], 75, 3.0, 2.0, 8.0),
        ([1, 15, 225], 1000, 1.0, 1.0, 3.0),
    ],
)
def test_the_lower_bound_of_plans_worked_out_by_hand(
    depths: list[int], devices: int, alone_s: float, cheapest_s: float, expected: float
) -> None:
    assert lower_bound_s(depths, devices, alone_s, cheapest_s) == pytest.approx(expected)


def test_the_diffusion_times_are_the_fastest_call_alone_and_the_lowest_share_of_a_segment() -> None:
    calls = [StepRecord(1, 12.0), StepRecord(1, 10.0), StepRecord(4, 30.0), StepRecord(2, 9.0)]
    alone_s, cheapest_s = diffusion_times_s(iter(calls), steps=20)
    assert alone_s == pytest.approx(0.2)
    assert cheapest_s == pytest.approx(20 * 0.0045)


def test_where_batches_cost_more_a_segment_alone_is_the_cheapest() -> None:
    assert diffusion_times_s([StepRecord(1, 10.0), StepRecord(8, 88.0)], steps=100) == (1.0, 1.0)


def test_percentiles_are_interpolated() -> None:
    assert percentiles([4.0, 1.0, 3.0, 2.0]) == pytest.approx({"p50": 2.5, "p90": 3.7, "p99": 3.97})
    assert percentiles([7.0]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0}


def peak_of(code: str) -> float:
    """Peak memory that a fresh interpreter reports of itself after running `code`."""
    report = f"{code}\nfrom nuwaxl.bench.measure import peak_rss_mib\nprint(peak_rss_mib())"
    command = [sys.executable, "-c", report]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


def test_the_peak_of_memory_counts_what_was_freed_again() -> None:
    idle = peak_of("")
    assert 10 < idle < 500
    assert 190 < peak_of("b = b'x' * (300 << 20); del b") - idle < 310


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="elsewhere getrusage is all there is")
def test_the_peak_of_memory_is_not_inherited_from_the_parent() -> None:
    held = b"x" * (600 << 20)
    assert peak_rss_mib() > 600
    assert peak_of("") < 500
    assert len(held) == 600 << 20


def test_versions_name_what_takes_part_in_a_render() -> None:
    found = versions()
    assert list(found) == ["nuwaxl", "python", "onnxruntime", "numpy", "av"]
    assert all(value[0].isdecimal() for value in found.values())

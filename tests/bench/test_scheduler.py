"""The scheduler's figures: the bound that can be attained, and the command that measures."""

import itertools
import json
from pathlib import Path

import pytest

from nuwaxl.bench import scheduler
from nuwaxl.bench.scheduler import Model, attainable_bound_s, first_frames, makespan, models, plan_of
from nuwaxl.engine._core import CostModel, simulate

MODELS = tuple(models())


def test_the_attainable_bound_of_plans_worked_out_by_hand() -> None:
    wide = Model("wide", CostModel([1, 8], [8.0, 15.0]), 8)
    # Nine on one device: a batch of eight and one alone, or any other two: 2 * 7 + 9.
    assert attainable_bound_s([9], 1, wide, steps=1) == pytest.approx(23.0)
    # Four must end before the others can begin: a first batch of them, though 63 would fill batches but for one.
    assert attainable_bound_s([1, 4, 59], 1, wide, steps=10) == pytest.approx(10 * (8 + 11 + 8 * 7 + 59))
    # Or the device waits for one of them elsewhere, and has six full batches.
    assert attainable_bound_s([1, 1, 48], 1, wide, steps=1) == pytest.approx(8 + 8 + 6 * 15)
    # One, then fifteen over four devices: 8 and a batch of four.
    assert attainable_bound_s([1, 15], 4, wide, steps=10) == pytest.approx(10 * (8 + 11))


@pytest.mark.parametrize("name", MODELS)
def test_no_schedule_beats_the_attainable_bound_nor_that_the_lower_one(name: str) -> None:
    model = models()[name]
    for segments, devices in itertools.product((1, 2, 9, 17, 40), (1, 2, 3, 8)):
        row = makespan(model, devices, segments)
        assert row.makespan_s >= row.attainable_bound_s * (1 - 1e-9)
        assert row.attainable_bound_s >= row.lower_bound_s * (1 - 1e-9)
        plan = plan_of(segments)
        assert row.segments == len(plan) >= segments
        level = simulate([plan], policy="level", devices=[model.cost] * devices, max_batch=model.max_batch, steps=10)
        assert level.makespan_s >= row.attainable_bound_s * (1 - 1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_any_number_of_segments_is_scheduled_within_a_twentieth_of_what_can_be_attained(name: str) -> None:
    for devices, segments in itertools.product((1, 2, 8), (8, 9, 13, 19, 25, 29, 40)):
        assert makespan(models()[name], devices, segments * devices).attained <= 1.05


def test_joining_fills_batches_that_began_short() -> None:
    rows = [makespan(models()["saturating-16"], devices, 18 * devices) for devices in (2, 4, 8)]
    assert min(row.unjoined for row in rows) >= 0.95
    assert max(row.unjoined for row in rows) > 1.1


@pytest.mark.parametrize("name", MODELS)
def test_first_frames_come_no_later_by_joining_and_sooner_where_batches_pay(name: str) -> None:
    row = first_frames(models()[name], devices=1, videos=16)
    assert row.unjoined >= 1 - 1e-9
    assert (row.unjoined > 1.5) == name.startswith("saturating")


@pytest.mark.parametrize("name", MODELS)
def test_with_full_batches_for_all_the_lower_bound_is_met_within_a_twentieth(name: str) -> None:
    model = models()[name]
    for devices in (1, 2, 16, 128):
        assert makespan(model, devices, max(8, model.max_batch) * devices).ratio <= 1.05


def test_the_command_measures_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scheduler, "DEVICES", (1, 4))
    monkeypatch.setattr(scheduler, "SEGMENTS_A_DEVICE", (8, 10, 128))
    monkeypatch.setattr(scheduler, "MOST_CPU_US", 1e6)
    monkeypatch.setattr(scheduler, "MOST_BYTES", 1e9)
    out = tmp_path / "figures.json"
    assert scheduler.main(["--segments", "500", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert len(figures["makespans"]) == 2 * len(MODELS) * 3
    assert figures["missed"] == 0
    printed = capsys.readouterr().out
    assert "MISSED" not in printed
    assert "flat             within 1.05 of the lower bound from 8 on" in printed
    assert "saturating-8     within 1.05 of the lower bound from 128 on" in printed


def test_a_missed_figure_is_marked_and_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scheduler, "DEVICES", (1,))
    monkeypatch.setattr(scheduler, "SEGMENTS_A_DEVICE", (8,))
    monkeypatch.setattr(scheduler, "MOST_RATIO", 0.5)
    assert scheduler.main(["--segments", "100"]) == 1
    captured = capsys.readouterr()
    assert "MISSED" in captured.out
    assert "over their limits" in captured.err

"""The result of a run, from measurements made up here and figures worked out by hand."""

import json

import pytest

from nuwaxl.bench.report import Result
from nuwaxl.engine import RenderStats
from nuwaxl.engine.stats import BatchRecord, Recorder, StepRecord

# Seven segments at three depths on two devices; a step takes 10 ms alone, and 20 ms in a batch of four.
STATS = RenderStats(
    frames=12,
    depths=[1, 2, 4],
    steps=10,
    guidance=2.0,
    seed=7,
    policy="eager",
    max_batch=4,
    sampler="ddim",
    devices=["a", "b"],
    wall_s=0.8,
    phases_s={"text": 0.01, "diffuse": 0.5, "decode": 0.1, "encode": 0.02},
    device_busy_s={"a": 0.4, "b": 0.2},
    batches=[
        BatchRecord("diffuse", 0, [0], "a", 0.1, 0.2, steps=10),
        BatchRecord("diffuse", 1, [1], "a", 0.2, 0.3, steps=10),
        BatchRecord("diffuse", 1, [2], "b", 0.2, 0.3, steps=10),
        BatchRecord("diffuse", 2, [3, 4, 5, 6], "a", 0.3, 0.5, steps=10),
        BatchRecord("decode", -1, [0], "b", 0.5, 0.6),
    ],
    steps_ms=[*[StepRecord(1, 10.0)] * 30, *[StepRecord(4, 20.0)] * 10],
)


@pytest.fixture
def result() -> Result:
    return Result.of(STATS, peak_rss_mib=1.5, versions={"nuwaxl": "0"}, bundle_sha256="f")


def test_the_lower_bound_is_that_of_the_runs_own_steps_and_devices(result: Result) -> None:
    # c1 = 10 * 10 ms, c = 10 * 20 ms / 4; of 4 * c, c1 + 3 * c and 2 * c1 + 2 * c the last is the most.
    assert result.lower_bound_s == pytest.approx(0.3)
    assert result.efficiency == pytest.approx(0.3 / 0.8)


def test_the_other_figures_are_those_of_the_run(result: Result) -> None:
    assert (result.segments, result.frames_per_s) == (7, pytest.approx(15))
    assert result.step_ms == {"p50": 10.0, "p90": 20.0, "p99": 20.0}
    assert (result.phases_s, result.device_busy_s) == (STATS.phases_s, STATS.device_busy_s)
    assert result.cost_model["batch_sizes"] == [1, 4]
    assert result.cost_model["diffusion_s"] == pytest.approx([0.1, 0.2])
    assert result.schedule["makespan_s"] == pytest.approx(0.5)


def test_the_document_holds_them_all(result: Result) -> None:
    document = json.loads(result.to_json())
    assert document["schema"] == "nuwaxl-bench/1"
    assert document["lower_bound_s"] == 0.3
    assert document["batches"][3]["segments"] == [3, 4, 5, 6]
    assert "simulate" not in document


def test_a_step_is_recorded_in_milliseconds() -> None:
    recorder = Recorder()
    recorder.step(2, 0.5)
    assert recorder.steps_ms == [StepRecord(2, 500.0)]

"""The virtual clock against times worked out by hand, and cost models as files."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nuwaxl.bench.costs import DiffusionCosts, load_costs, measured_costs, work_bound_s
from nuwaxl.bench.simulation import VirtualRender, simulated_point
from nuwaxl.engine import Engine, Plan, Story
from nuwaxl.errors import InputError

FLAT = DiffusionCosts((1, 2), (2.0, 4.0))
WIDE = DiffusionCosts((1, 4), (2.0, 4.0))


def render(frames: int = 1024, length: int = 16, steps: int = 10, max_batch: int = 16) -> VirtualRender:
    return VirtualRender(Plan(frames, length), steps, "eager", max_batch, decode_overlap=2)


def test_one_device_with_flat_costs_takes_every_diffusion_after_another() -> None:
    point = simulated_point(render(), FLAT, 1, compare_ar=True)
    assert point.makespan_s == pytest.approx(75 * 2.0)
    assert point.lower_bound_s == pytest.approx(75 * 2.0)
    assert point.efficiency == pytest.approx(1.0)
    # 1 + ceil((1024 - 16) / 15) windows, whatever the devices: the paper's some 65 of Table 1.
    assert point.ar_makespan_s == pytest.approx(69 * 2.0)
    assert point.reduction == pytest.approx(1 - 75 / 69)


def test_with_a_device_a_segment_the_depth_of_the_tree_is_what_remains() -> None:
    point = simulated_point(render(), FLAT, 69, compare_ar=True)
    assert point.makespan_s == pytest.approx(3 * 2.0)
    assert point.ar_makespan_s == pytest.approx(69 * 2.0)
    assert point.reduction == pytest.approx(1 - 3 / 69)


def test_batches_fill_a_device() -> None:
    # 1 global alone, 5 locals as 4 + 1 or less, 69 by fours: never cheaper than a second a segment.
    point = simulated_point(render(max_batch=4), WIDE, 1, compare_ar=False)
    assert point.lower_bound_s == pytest.approx(2.0 + 74 * 1.0)
    assert point.lower_bound_s <= point.makespan_s <= 1.05 * point.lower_bound_s
    assert (point.ar_makespan_s, point.reduction) == (None, None)


def test_decoding_takes_its_time_on_the_devices() -> None:
    costs = DiffusionCosts((1,), (2.0,), decode_s=0.5)
    point = simulated_point(render(frames=16), costs, 1, compare_ar=False)
    assert point.makespan_s == pytest.approx(2.0 + 0.5)
    assert work_bound_s([1], 1, costs, windows=1) == pytest.approx(2.5)


def test_a_film_of_a_million_frames_on_a_thousand_devices() -> None:
    plan = Plan(1_000_000, 16, 6)
    film = VirtualRender(plan, 25, "eager", 16, decode_overlap=2)
    point = simulated_point(film, DiffusionCosts((1, 8), (1.0, 2.0)), 1000, compare_ar=False)
    assert 1 <= point.makespan_s / point.lower_bound_s < 1.2


def test_the_costs_of_a_render_add_up_to_its_time(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as engine:
        video = engine.render(Story([(0, "red sky")]), frames=200, max_batch=4)
        for _ in video:
            pass
    costs = measured_costs(video.stats)
    total = sum(
        batch.steps * costs.diffusion_s[costs.batch_sizes.index(len(batch.segments))] / video.stats.steps
        for batch in video.stats.batches
        if batch.kind == "diffuse"
    )
    assert total == pytest.approx(video.stats.phases_s["diffuse"])
    windows = sum(batch.kind == "decode" for batch in video.stats.batches)
    assert windows * costs.decode_s == pytest.approx(video.stats.phases_s["decode"])


def test_a_cost_model_survives_its_file_alone_and_in_a_document(tmp_path: Path) -> None:
    costs = DiffusionCosts((1, 4), (2.0, 5.0), 0.25)
    for name, table in (("alone.json", costs.table()), ("bench.json", {"cost_model": costs.table(), "steps": 9})):
        (tmp_path / name).write_text(json.dumps(table))
        assert load_costs(tmp_path / name, steps=9) == costs


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"batch_sizes": [1]}',
        '{"batch_sizes": [2, 1], "diffusion_s": [1, 2]}',
        '{"batch_sizes": [1], "diffusion_s": [-1]}',
        '{"batch_sizes": [1], "diffusion_s": ["1"]}',
        '{"batch_sizes": [1, 2], "diffusion_s": [1]}',
        '{"batch_sizes": "one", "diffusion_s": [1]}',
        '{"batch_sizes": [1], "diffusion_s": [1], "decode_s": -1}',
        '{"batch_sizes": [1.5], "diffusion_s": [1]}',
        '{"batch_sizes": [99999999999999999999], "diffusion_s": [1]}',
        '{"batch_sizes": [true], "diffusion_s": [1]}',
        '{"batch_sizes": [1], "diffusion_s": [5e-9]}',
        '{"batch_sizes": [1], "diffusion_s": [2e9]}',
        '{"batch_sizes": [1], "diffusion_s": [NaN]}',
        '{"batch_sizes": [1], "diffusion_s": [1], "decode_s": 1e300}',
    ],
)
def test_what_is_no_cost_model_is_refused_with_what_one_looks_like(tmp_path: Path, text: str) -> None:
    file = tmp_path / "costs.json"
    file.write_text(text)
    with pytest.raises(InputError, match="batch_sizes") as caught:
        load_costs(file, steps=9)
    assert "Error" not in str(caught.value)
    assert "__init__" not in str(caught.value)


def test_a_cost_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="readable cost model"):
        load_costs(tmp_path / "absent.json", steps=9)


def test_costs_that_were_measured_with_other_steps_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"cost_model": DiffusionCosts((1,), (2.0,)).table(), "steps": 2}))
    with pytest.raises(InputError, match=r"of 9 steps in .*; found those of 2 steps"):
        load_costs(file, steps=9)


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_long_simulation_heeds_signals(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals, status: int, said: str
) -> None:
    """This one would take minutes, and longer than a test to hand out the first segments."""
    (tmp_path / "costs.json").write_text('{"batch_sizes": [1, 8], "diffusion_s": [2.0, 5.0]}')
    code = """if True:
        import sys
        from nuwaxl.bench import cli, simulation
        simulate = simulation.simulate
        def begun(*plans, **settings):
            print("begun", flush=True)
            return simulate(*plans, **settings)
        simulation.simulate = begun
        sys.exit(cli.main())"""
    options = ["--frames", "1048576", "--simulate-devices", "65536", "--cost-model", tmp_path / "costs.json"]
    command = [sys.executable, "-c", code, *options, "--bundle", tiny_bundle]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            time.sleep(1)
            process.send_signal(number)
            assert process.communicate(timeout=60) == ("", f"nuwaxl-bench: {said}\n")
            assert process.returncode == status
        finally:
            process.kill()

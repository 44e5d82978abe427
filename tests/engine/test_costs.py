"""Measured costs: they follow the runner, are kept for the next time, and are not trusted when damaged."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Engine, Story, Task
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.costs import cache_folder, measure
from nuwaxl.engine.devices import parse_devices
from nuwaxl.engine.runners.onnxruntime import OnnxRuntimeRunner


class Timed(OnnxRuntimeRunner):
    """By its own clock a step takes 40 ms, and `extra_s` more for every further segment; a decode takes 100 ms.

    `pace` times as long on a slower device.
    """

    clock = 0.0
    extra_s = 0.0
    pace = 1.0
    steps = 0
    decodes = 0
    slow = range(0)  # steps that take three times as long

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        slowly = 3 if self.steps in self.slow else 1
        self.steps += 1
        self.clock += self.pace * slowly * (0.04 + self.extra_s * (len(inputs["x"]) - 1))
        return super().step(inputs)

    def decode(self, latents: Any) -> Any:
        self.decodes += 1
        self.clock += self.pace * 0.1
        return super().decode(latents)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    return tmp_path / "cache"


@pytest.fixture
def runner(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Timed:
    """A runner of known speed."""
    runner = Timed(Bundle.open(tiny_bundle), parse_devices("cpu:1")[0])
    monkeypatch.setattr("nuwaxl.engine.costs.perf_counter", lambda: runner.clock)
    return runner


@pytest.mark.parametrize(
    ("extra_s", "batch_sizes", "step_s", "best"),
    [
        (0.0, [1, 2, 4, 6], [0.04, 0.04, 0.04, 0.04], 6),
        (0.04, [1, 2], [0.04, 0.08], 1),
        (0.03, [1, 2, 4, 6], [0.04, 0.07, 0.13, 0.19], 5),
    ],
)
def test_measured_costs_choose_wide_batches_where_they_pay(
    runner: Timed, tiny_bundle: Path, extra_s: float, batch_sizes: list[int], step_s: list[float], best: int
) -> None:
    runner.extra_s = extra_s
    cost = measure(runner, Bundle.open(tiny_bundle).manifest.network, max_batch=6)
    assert cost.batch_sizes == batch_sizes
    assert cost.steps_s == pytest.approx(step_s)
    assert cost.decode_s == pytest.approx(0.1)
    assert cost.best_batch(6) == best


class Filled(Timed):
    """Fills batches up to 1, 2, 4 or 6 segments."""

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.clock += self.extra_s * (self.rows(len(inputs["x"])) - len(inputs["x"]))
        return super().step(inputs)

    def rows(self, count: int) -> int:
        return next(size for size in (1, 2, 4, 6, 12, 24) if size >= count)


@pytest.mark.parametrize(
    ("extra_s", "max_batch", "seconds", "best"),
    [
        (0.0, 6, [0.04] * 6, 6),
        (0.03, 6, [0.04, 0.07, 0.13, 0.13, 0.19, 0.19], 6),
        (0.03, 5, [0.04, 0.07, 0.13, 0.13, 0.19], 4),  # five cost as much as six
        (0.04, 24, [0.04, 0.08], 1),  # nothing is gained from two on: nor is it by more
        (0.02, 8, [0.04, 0.06, 0.1, 0.1, 0.14, 0.14, 0.26, 0.26], 6),  # eight take the time of twelve
    ],
)
def test_a_batch_costs_what_it_is_filled_up_to(
    tiny_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra_s: float,
    max_batch: int,
    seconds: list[float],
    best: int,
) -> None:
    bundle = Bundle.open(tiny_bundle)
    runner = Filled(bundle, parse_devices("cpu:1")[0])
    runner.extra_s = extra_s
    monkeypatch.setattr("nuwaxl.engine.costs.perf_counter", lambda: runner.clock)
    cost = measure(runner, bundle.manifest.network, max_batch)
    assert cost.steps_s == pytest.approx(seconds)
    assert cost.batch_sizes == [*range(1, len(seconds) + 1)]
    assert cost.best_batch(max_batch) == best


@pytest.mark.parametrize(("pace", "steps", "decodes"), [(1.0, 8, 3), (1000.0, 4, 2)])
def test_a_slow_device_is_measured_once_after_it_was_warmed_up(
    runner: Timed, tiny_bundle: Path, pace: float, steps: int, decodes: int
) -> None:
    runner.extra_s, runner.pace = 0.04, pace
    cost = measure(runner, Bundle.open(tiny_bundle).manifest.network, max_batch=6)
    assert cost.steps_s == pytest.approx([0.04 * pace, 0.08 * pace])
    assert cost.decode_s == pytest.approx(0.1 * pace)
    assert (runner.steps, runner.decodes) == (steps, decodes)


@pytest.mark.parametrize("burst", [range(4), range(4, 10), range(2, 5), range(1, 20, 3)])
@pytest.mark.parametrize(("extra_s", "best"), [(0.04, 1), (0.005, 6)])
def test_what_else_the_machine_does_meanwhile_does_not_change_the_batches(
    runner: Timed, tiny_bundle: Path, burst: range, extra_s: float, best: int
) -> None:
    """Some of the steps take three times as long."""
    runner.extra_s = extra_s
    runner.slow = burst
    assert measure(runner, Bundle.open(tiny_bundle).manifest.network, max_batch=6).best_batch(6) == best


class Queued(Timed):
    """A device that works by itself, and slows down by a tenth once it was at work for 50 ms on end."""

    later = True
    began = 0.0
    seen: list[Any]

    def start(self, segments: Any) -> Any:
        self.clock += 1.0  # in which it cools down
        self.began = self.clock
        return super().start(segments)

    def step(self, inputs: dict[str, Any]) -> dict[str, Any]:
        self.pace = 1.1 if self.clock - self.began > 0.05 else 1.0
        self.seen.append(inputs["x"])
        return super().step(inputs)

    def begin_decode(self, latents: Any) -> Any:
        video = self.decode(latents)
        return lambda: video


def test_a_device_that_works_by_itself_is_timed_at_work_and_on_noise(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(tiny_bundle)
    runner = Queued(bundle, parse_devices("cpu:1")[0])
    runner.extra_s, runner.seen = 0.03, []
    monkeypatch.setattr("nuwaxl.engine.costs.perf_counter", lambda: runner.clock)
    cost = measure(runner, bundle.manifest.network, max_batch=4)
    assert cost.steps_s == pytest.approx([0.044, 0.077, 0.143])
    for x in runner.seen:
        assert 0.8 < np.std(x) < 1.2
        assert len({row.tobytes() for row in x}) == len(x)


def test_costs_are_kept_and_a_damaged_file_is_measured_again(cache: Path, runner: Timed, tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)

    def costs() -> tuple[Any, int]:
        before = runner.steps
        with Engine(bundle, parse_devices("cpu:1"), (runner,)) as engine:
            return engine.costs(4)[0], runner.steps - before

    first, steps = costs()
    assert steps > 0
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["batch_sizes"] == first.batch_sizes
    again, steps = costs()
    assert steps == 0
    assert (again.batch_sizes, again.steps_s, again.decode_s) == (first.batch_sizes, first.steps_s, first.decode_s)
    file.write_text(file.read_text()[:-3])
    assert costs()[1] > 0
    assert json.loads(file.read_text())["decode_s"] > 0


def test_a_short_film_measures_no_larger_batches_than_it_has_segments_for(
    cache: Path, runner: Timed, tiny_bundle: Path
) -> None:
    """A longer one measures more; what is known of larger batches serves smaller ones, in another process as well."""
    bundle, story, measured = Bundle.open(tiny_bundle), Story([(0, "red sky")]), []
    for frames in (4, 3, 100, 4):
        with Engine(bundle, parse_devices("cpu:1"), (runner,)) as engine:
            segments = len(engine.resolve(Task(story, frames=frames)).plan)
            known = engine.knows_costs(segments)
            list(engine.render(story, frames=frames, steps=1))
            assert engine.knows_costs(segments)
            measured.append((known, engine._costs[0]))
    assert measured == [(False, 1), (True, 1), (False, 16), (True, 1)]
    (file,) = cache.iterdir()
    assert json.loads(file.read_text())["max_batch"] == 16


def test_devices_of_another_speed_do_not_share_costs(cache: Path, tiny_bundle: Path) -> None:
    for devices in ("cpu:1", "cpu:2"):
        with Engine.open(tiny_bundle, devices=devices) as engine:
            assert len(engine.costs(2)) == len(engine.workers)
    assert len(list(cache.iterdir())) == 2  # the two workers of cpu:2 are of one kind


def test_where_nothing_can_be_kept_costs_are_measured_all_the_same(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path / "file" / "cache"))
    with Engine.open(tiny_bundle) as engine:
        assert np.isfinite(engine.costs(2)[0].step_s(1))

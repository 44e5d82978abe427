"""Whole renders of the tiny bundle: the frames are right, and do not depend on how the work was dealt out."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nuwaxl.engine import Engine, Plan, Progress, SamplerName, Story, Task
from nuwaxl.engine._core import CostModel, normal_noise
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.samplers import sampler_table
from nuwaxl.errors import InputError, RenderError

STORY = Story([(0, "red sky"), (9, "blue sea"), (20, "green")])


def render(bundle: Path, frames: int, devices: str = "cpu", **options: Any) -> np.ndarray:
    """All frames of a render."""
    with Engine.open(bundle, devices=devices) as engine:
        return np.concatenate([clip.frames for clip in engine.render(STORY, frames=frames, **options)])


def reference(
    bundle: Path,
    model: Any,
    frames: int,
    *,
    seed: int,
    guidance: float,
    negative: str,
    depth: int,
    sampler: SamplerName = "dpmpp_2m",
) -> np.ndarray:
    """The paper's recursion, one segment after another, in float64."""
    manifest = Bundle.open(bundle).manifest
    table = sampler_table(sampler, manifest.diffusion, 5)
    latents: dict[int, np.ndarray] = {}

    def noise(depth_here: int, index: int, step: int) -> np.ndarray:
        drawn = np.empty((4, 3, 8, 8), dtype=np.float32)
        normal_noise(seed, depth_here, index, step, drawn)
        return drawn.astype(np.float64)

    def generate(depth_here: int, index: int) -> None:
        stride = 3 ** (depth - 1 - depth_here)
        numbers = [3 * stride * index + stride * i for i in range(4)]
        x = noise(depth_here, index, 0)
        known = np.zeros_like(x)
        if depth_here > 0:
            known[0], known[3] = latents[numbers[0]], latents[numbers[3]]
        history = np.zeros_like(x)
        prompts = [STORY.prompt_at(number) for number in numbers]
        steps = zip(table.timesteps, table.coefficients, strict=True)
        for step, (t, (a_x, a_p, c_x, c_0, c_h, c_n)) in enumerate(steps, start=1):
            x0 = a_x * x + a_p * model.predict(x, t, prompts, negative, guidance, known)
            x, history = c_x * x + c_0 * x0 + c_h * history + c_n * noise(depth_here, index, step), x0
        for position, number in enumerate(numbers):
            latents.setdefault(number, x[position])

    for depth_here in range(depth):
        for index in range(3**depth_here):
            if index * 3 ** (depth - depth_here) < frames:
                generate(depth_here, index)
    return np.asarray(model.decode(np.stack([latents[frame] for frame in range(frames)])))


@pytest.mark.parametrize(
    ("frames", "depth", "sampler"),
    [(3, 1, "dpmpp_2m"), (10, 2, "dpmpp_2m"), (28, 3, "dpmpp_2m"), (20, 4, "dpmpp_2m"), (10, 2, "ddpm")],
)
def test_the_video_is_what_the_papers_recursion_gives(
    tiny_bundle: Path, tiny_model: Any, frames: int, depth: int, sampler: SamplerName
) -> None:
    found = render(
        tiny_bundle,
        frames,
        sampler=sampler,
        seed=3,
        guidance=1.5,
        negative_prompt="blurry",
        depth=depth,
        devices="cpu:2",
        max_batch=4,
    )
    asked: dict[str, Any] = {"seed": 3, "guidance": 1.5, "negative": "blurry", "depth": depth, "sampler": sampler}
    expected = reference(tiny_bundle, tiny_model, frames, **asked)
    assert found.shape == (frames, 16, 16, 3)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert expected.std() > 10


def test_devices_batch_size_and_policy_do_not_change_the_video(tiny_bundle: Path) -> None:
    frames = 200
    expected = render(tiny_bundle, frames, "cpu:1", max_batch=1, policy="level").astype(int)
    for devices, max_batch, policy in [
        ("cpu:1", 16, "eager"),
        ("cpu:2", 1, "eager"),
        ("cpu:2", 16, "level"),
        ("cpu:1,cpu:2", 5, "eager"),
    ]:
        found = render(tiny_bundle, frames, devices, max_batch=max_batch, policy=policy)
        assert np.abs(found - expected).max() <= 1, (devices, max_batch, policy)


def test_seed_guidance_steps_sampler_prompt_and_negative_prompt_change_the_video(tiny_bundle: Path) -> None:
    expected = render(tiny_bundle, 12).astype(int)
    np.testing.assert_array_equal(expected, render(tiny_bundle, 12, seed=0))
    for options in (
        {"seed": 1},
        {"seed": 2**64 - 1},
        {"guidance": 0.5},
        {"steps": 4},
        {"sampler": "ddim"},
        {"negative_prompt": "blurry"},
    ):
        assert np.abs(render(tiny_bundle, 12, **options) - expected).max() > 1, options


def test_a_shorter_render_of_the_same_depth_is_the_beginning_of_a_longer_one(tiny_bundle: Path) -> None:
    short = render(tiny_bundle, 11, depth=3)
    assert np.abs(short.astype(int) - render(tiny_bundle, 26, depth=3)[:11]).max() <= 1


@pytest.mark.parametrize(
    ("trained", "frames", "depth", "expected"),
    [(1, 4, None, 1), (1, 5, None, 2), (3, 1, None, 3), (3, 28, None, 3), (3, 29, None, 4), (3, 5, 2, 2), (3, 9, 5, 5)],
)
def test_the_tree_has_the_depth_of_the_training_unless_asked_or_too_short(
    own_bundle: Path, trained: int, frames: int, depth: int | None, expected: int
) -> None:
    set_depth(own_bundle, trained)
    with Engine.open(own_bundle) as engine:
        assert engine.resolve(Task(STORY, frames=frames, depth=depth)).plan.depth == expected


def test_a_depth_that_no_video_is_long_enough_for_is_the_deepest(own_bundle: Path) -> None:
    set_depth(own_bundle, 10**6)
    with Engine.open(own_bundle) as engine:
        assert engine.resolve(Task(STORY, frames=5)).plan.depth == 13  # 3^13 is the first above 2^20


def set_depth(bundle: Path, depth: int) -> None:
    """What the manifest says of the training."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["sampler"]["depth"] = depth
    path.write_text(json.dumps(manifest))


def test_clips_come_in_order_and_cover_the_video(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle, devices="cpu:2") as engine:
        clips = list(engine.render(STORY, frames=50))
    starts = [clip.first_frame for clip in clips]
    assert starts == np.cumsum([0] + [len(clip.frames) for clip in clips])[:-1].tolist()
    assert sum(len(clip.frames) for clip in clips) == 50
    assert all(clip.frames.base is None for clip in clips)  # what is not theirs is not kept in memory


def test_a_video_can_be_iterated_again_and_renders_the_same(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as engine:
        video = engine.render(STORY, frames=15)
        first = np.concatenate([clip.frames for clip in video])
        np.testing.assert_array_equal(first, np.concatenate([clip.frames for clip in video]))


def test_story_settings_are_the_defaults(tiny_bundle: Path) -> None:
    story = Story(STORY.scenes, frames=7, seed=5, fps=8)
    with Engine.open(tiny_bundle) as engine:
        video = engine.render(story)
        found = np.concatenate([clip.frames for clip in video])
        assert (video.frames, video.fps, video.stats.seed) == (7, 8, 5)
        assert engine.render(STORY, frames=1).fps == 16
    np.testing.assert_array_equal(found, render(tiny_bundle, 7, seed=5))


def test_no_batch_is_larger_than_those_that_were_measured(tiny_bundle: Path) -> None:
    """Where two segments gain nothing over one, larger batches are not measured; by the slope they would be as good."""
    with Engine.open(tiny_bundle, devices="cpu:1") as engine:
        engine._costs = (16, [CostModel([1, 2], [1.0, 1.99])])
        video = engine.render(STORY, frames=200, steps=1)
        for _ in video:
            pass
    assert max(step.segments for step in video.stats.steps_ms) == 2


def test_stats_account_for_every_segment_step_and_window(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle, devices="cpu:2") as engine:
        video = engine.render(STORY, frames=100, max_batch=3, steps=4)
        with pytest.raises(RenderError, match="finished render"):
            _ = video.stats
        for _ in video:
            pass
        stats = video.stats
    plan = Plan(100, 4)
    assert stats.depths == list(plan.counts)
    assert stats.segments == len(plan)
    assert (stats.frames, stats.steps, stats.max_batch, stats.policy) == (100, 4, 3, "eager")
    assert (stats.sampler, stats.guidance, stats.seed) == ("dpmpp_2m", 2.0, 0)
    diffuse = [batch for batch in stats.batches if batch.kind == "diffuse"]
    steps: Counter[int] = Counter()
    for batch in diffuse:
        assert len(set(batch.segments)) == len(batch.segments) <= 3
        assert batch.depth == min(plan.segment(s).depth for s in batch.segments)
        assert batch.jobs == [0] * len(batch.segments)
        steps.update(dict.fromkeys(batch.segments, batch.steps))
    assert steps == dict.fromkeys(range(len(plan)), 4)
    decode = [batch for batch in stats.batches if batch.kind == "decode"]
    assert sorted(w for batch in decode for w in batch.segments) == list(range(len(decode)))
    assert all(batch.depth == -1 for batch in decode)
    calls: Counter[int] = Counter()
    for batch in diffuse:
        calls[len(batch.segments)] += batch.steps
    assert Counter(step.segments for step in stats.steps_ms) == calls
    assert all(step.ms > 0 for step in stats.steps_ms)
    assert stats.devices == ["cpu#0", "cpu#1"]
    assert set(stats.device_busy_s) == set(stats.devices)
    assert all(0 <= batch.start_s < batch.end_s <= stats.wall_s for batch in stats.batches)
    busy = sum(stats.device_busy_s.values())
    assert busy == pytest.approx(stats.phases_s["diffuse"] + stats.phases_s["decode"])
    assert stats.phases_s["text"] > 0
    assert stats.phases_s["encode"] == 0


@pytest.mark.parametrize("frames", [30, 31])  # frame 30 is the first of what would be the next segment
def test_progress_rises_to_the_total_of_every_phase(tiny_bundle: Path, frames: int) -> None:
    seen: list[Progress] = []
    with Engine.open(tiny_bundle) as engine:
        for _ in engine.render(STORY, frames=frames, steps=3, progress=seen.append):
            pass
    totals = {"text": 4, "diffuse": 3 * len(Plan(frames, 4)), "decode": frames}
    for phase, total in totals.items():
        done = [progress.done for progress in seen if progress.phase == phase]
        assert done == sorted(done)
        assert done[-1] == total
        assert {progress.total for progress in seen if progress.phase == phase} == {total}


def test_a_slow_consumer_is_told_of_the_last_steps(tiny_bundle: Path) -> None:
    """While it has the first clip all others are made, so that it never waits again."""
    seen: list[Progress] = []
    with Engine.open(tiny_bundle, devices="cpu:2") as engine:
        for clip in engine.render(STORY, frames=9, steps=30, max_batch=1, progress=seen.append):
            if clip.first_frame == 0:
                time.sleep(1.0)
    last = [progress for progress in seen if progress.phase == "diffuse"][-1]
    assert last.done == last.total


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"frames": 0}, "frames: a whole number from 1 to 1048576; found 0"),
        ({"frames": -3}, "found -3"),
        ({"frames": 2.0}, "found 2.0"),
        ({"frames": "9"}, "found '9'"),
        ({"frames": True}, "found True"),
        ({"frames": 2**40}, "from 1 to 1048576"),
        ({}, "none in the story"),
        ({"frames": 29, "depth": 3}, "at most 28 frames"),
        ({"frames": 5, "depth": 0}, "depth"),
        ({"frames": 5, "depth": 1000}, "depth"),
        ({"frames": 5, "steps": 0}, "steps"),
        ({"frames": 5, "steps": 101}, "from 1 to 100"),
        ({"frames": 5, "guidance": -0.1}, "guidance"),
        ({"frames": 5, "guidance": float("nan")}, "guidance"),
        ({"frames": 5, "guidance": float("inf")}, "guidance"),
        ({"frames": 5, "guidance": 1e300}, "guidance: a finite number from 0 to 1000; found 1e+300; change guidance"),
        ({"frames": 5, "guidance": "high"}, "guidance"),
        ({"frames": 5, "seed": -1}, "seed"),
        ({"frames": 5, "seed": 2**64}, "seed"),
        ({"frames": 5, "seed": 0.5}, "seed"),
        ({"frames": 5, "policy": "lazy"}, "one of level, eager"),
        ({"frames": 5, "sampler": "euler"}, "one of dpmpp_2m, ddim"),
        ({"frames": 5, "max_batch": 0}, "max_batch"),
        ({"frames": 5, "negative_prompt": None}, "negative_prompt"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tiny_bundle: Path, options: dict[str, Any], said: str) -> None:
    with Engine.open(tiny_bundle) as engine, pytest.raises(InputError) as caught:
        engine.render(STORY, **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numpys_numbers_are_numbers(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as engine:
        task = Task(STORY, frames=5, guidance=np.float32(1.5))  # type: ignore[arg-type]
        assert type(engine.resolve(task).guidance) is float
        assert engine.render(STORY, frames=np.int64(5)).frames == 5  # type: ignore[arg-type]


def test_a_prompt_in_place_of_a_story_and_a_closed_engine_are_refused(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as engine, pytest.raises(InputError, match="a Story"):
        engine.render("red sky", frames=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="open it again"):
        engine.render(STORY, frames=3)


def test_one_engine_renders_one_video_at_a_time(tiny_bundle: Path) -> None:
    with Engine.open(tiny_bundle) as engine:
        first = iter(engine.render(STORY, frames=60))
        next(first)
        with pytest.raises(RenderError, match="is rendering"):
            next(iter(engine.render(STORY, frames=3)))
        first.close()
        assert sum(len(clip.frames) for clip in engine.render(STORY, frames=3)) == 3

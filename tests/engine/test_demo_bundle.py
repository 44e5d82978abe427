"""The demo bundle that ships: it opens, it is small, and its pixels do not depend on how the work is spread."""

from pathlib import Path

import numpy as np
import pytest

from nuwaxl.engine import Bundle, Engine, Story
from nuwaxl.engine._core import CostModel
from nuwaxl.engine.bundle import demo_bundle
from nuwaxl.engine.story import Scene

STORY = Story(
    scenes=(
        Scene(0, "Mona in the red dress stands on the left in the meadow"),
        Scene(20, "Bruno the blue bear waves on the right on the beach"),
    )
)
WAYS = {
    "one by one": {"devices": "cpu:1", "max_batch": 1, "policy": "level"},
    "two workers": {"devices": "cpu:2", "max_batch": 1, "policy": "eager"},
    "large batches": {"devices": "cpu:1", "max_batch": 16, "policy": "eager"},
    "two workers, level": {"devices": "cpu:2", "max_batch": 16, "policy": "level"},
}


@pytest.fixture
def batches_pay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are as large as they may be, though on a CPU measured costs mostly ask for batches of one."""

    def measured(runner: object, network: object, max_batch: int, check: object) -> CostModel:
        return CostModel([1, 16], [1.0, 1.1])

    monkeypatch.setattr("nuwaxl.engine.costs.measure", measured)
    monkeypatch.setenv("NUWAXL_CACHE", str(tmp_path))


def render(frames: int, steps: int | None, devices: str, max_batch: int, policy: str) -> np.ndarray:
    with Engine.open(devices=devices) as engine:
        video = engine.render(STORY, frames=frames, steps=steps, seed=3, max_batch=max_batch, policy=policy)  # type: ignore[arg-type]
        pictures = np.concatenate([clip.frames for clip in video])
    largest = max(len(batch.segments) for batch in video.stats.batches)
    assert (largest > 1) == (max_batch > 1)
    return pictures


def assert_the_same_however_it_is_run(frames: int, steps: int | None) -> None:
    videos = {name: render(frames, steps, **way) for name, way in WAYS.items()}  # type: ignore[arg-type]
    reference = videos.pop("one by one")
    assert reference.shape == (frames, 64, 64, 3)
    assert reference.std() > 20, "the video is one grey"
    for name, video in videos.items():
        difference = np.abs(video.astype(int) - reference.astype(int))
        assert difference.max() <= 1, f"{name}: {difference.max()} of 255 in {(difference > 1).sum()} values"


@pytest.mark.usefixtures("batches_pay")
def test_pixels_do_not_depend_on_devices_batches_or_policy() -> None:
    assert_the_same_however_it_is_run(frames=46, steps=4)


@pytest.mark.slow
@pytest.mark.usefixtures("batches_pay")
def test_pixels_of_three_depths_at_full_steps_do_not_either() -> None:
    assert_the_same_however_it_is_run(frames=480, steps=None)


def test_another_seed_is_another_video() -> None:
    with Engine.open() as engine:
        first, second = (
            np.concatenate([clip.frames for clip in engine.render(STORY, frames=16, steps=2, seed=seed)])
            for seed in (1, 2)
        )
    assert np.abs(first.astype(int) - second.astype(int)).max() > 10


def test_the_bundle_is_at_most_25_megabytes() -> None:
    folder = demo_bundle()
    assert Bundle.open(folder).manifest.name == "demo"
    assert sum(path.stat().st_size for path in Path(folder).iterdir()) <= 25_000_000

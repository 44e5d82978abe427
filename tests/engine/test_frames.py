"""The frame store."""

import numpy as np
import pytest

from nuwaxl.engine._core import Plan
from nuwaxl.engine.bundle_schema import Network
from nuwaxl.engine.frames import FrameStore

NETWORK = Network(
    length=4,
    latent_channels=2,
    latent_height=3,
    latent_width=5,
    channels=3,
    height=6,
    width=10,
    prompt_tokens=3,
    prompt_dim=2,
    decode_overlap=1,
)


def fill(segment: int) -> np.ndarray:
    """What a segment would generate: its id on every frame, and the position within it."""
    value = 100 * segment + np.arange(4, dtype=np.float32)
    return np.broadcast_to(value[:, None, None, None], (4, 2, 3, 5)).copy()


@pytest.mark.parametrize("frames", [1, 2, 4, 5, 11, 28])
def test_every_frame_holds_what_its_origin_generated(frames: int) -> None:
    plan = Plan(frames, 4, 3)
    store = FrameStore(plan, NETWORK)
    for segment in range(len(plan)):
        store.put(segment, fill(segment))
    for segment in range(len(plan)):
        for frame in plan.frames_of(segment):
            origin = plan.origin_of(int(frame))
            position = plan.frames_of(origin).tolist().index(frame)
            assert np.all(store.gather(np.array([frame])) == 100 * origin + position)


def test_only_generated_frames_are_kept() -> None:
    plan = Plan(5, 4, 3)
    store = FrameStore(plan, NETWORK)
    frames = {int(f) for s in range(len(plan)) for f in plan.frames_of(s)}
    assert store.latents.shape == (len(frames), 2, 3, 5)
    assert store.last_frame == 27
    assert len(frames) < 28
    with pytest.raises(KeyError, match="26"):
        store.gather(np.array([26]))
    with pytest.raises(KeyError, match="28"):
        store.gather(np.array([28]))


def test_the_global_diffusion_knows_nothing_and_a_local_one_its_two_ends() -> None:
    plan = Plan(28, 4, 3)
    store = FrameStore(plan, NETWORK)
    store.put(0, fill(0) + 7)
    condition, mask = store.condition(0)
    assert condition.shape == (4, 2, 3, 5)
    assert not condition.any()
    assert mask.shape == (4, 1, 3, 5)
    assert not mask.any()
    for segment, ends in ((2, [8, 0, 0, 9]), (3, [9, 0, 0, 10])):
        condition, mask = store.condition(segment)
        assert np.all(mask[[0, 3]] == 1)
        assert np.all(mask[1:3] == 0)
        assert np.all(condition[1:3] == 0)
        assert condition[:, 0, 0, 0].tolist() == ends


def test_a_window_of_the_autoregressive_method_knows_the_end_of_the_one_before() -> None:
    plan = Plan.autoregressive(9, 4, 2)
    store = FrameStore(plan, NETWORK)
    for segment in range(len(plan)):
        condition, mask = store.condition(segment)
        known = [] if segment == 0 else [0, 1]
        assert np.flatnonzero(mask[:, 0, 0, 0]).tolist() == known
        assert np.all(condition[known] == store.gather(plan.frames_of(segment)[known]))
        assert not condition[len(known) :].any()
        store.put(segment, fill(segment) + 1000)
    made = store.gather(np.arange(9))[:, 0, 0, 0].tolist()
    assert made == [1000, 1001, 1002, 1003, 1102, 1103, 1202, 1203, 1302]


def test_ends_of_a_local_diffusion_stay_as_the_parent_made_them() -> None:
    plan = Plan(28, 4, 3)
    store = FrameStore(plan, NETWORK)
    for segment in range(3):
        store.put(segment, fill(segment))
    assert store.gather(plan.frames_of(1))[:, 0, 0, 0].tolist() == [0, 101, 102, 1]
    assert store.gather(plan.frames_of(2))[:, 0, 0, 0].tolist() == [1, 201, 202, 2]

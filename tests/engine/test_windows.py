"""Decode windows tile the video."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine.windows import decode_windows


@given(st.integers(1, 300), st.integers(3, 32), st.data())
def test_windows_give_every_frame_once_in_order_with_the_context_that_there_is(
    frames: int, length: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, (length - 1) // 2))
    windows = decode_windows(frames, length, overlap)
    given_frames = [w.frames[w.offset : w.offset + w.count] for w in windows]
    assert np.concatenate(given_frames).tolist() == list(range(frames))
    assert all(len(w.frames) == length and w.count >= 1 for w in windows)
    if frames >= length:
        assert all(np.all(np.diff(w.frames) == 1) for w in windows)
    for window in windows:
        first, last = window.needs
        assert 0 <= first <= last < frames
        assert window.offset >= overlap or first == 0
        assert length - window.offset - window.count >= overlap or last == frames - 1


def test_in_the_middle_the_hop_is_the_length_without_both_overlaps() -> None:
    windows = decode_windows(100, 16, 4)
    starts = [int(w.frames[0]) for w in windows]
    assert starts[:4] == [0, 8, 16, 24]
    assert starts[-1] == 84


def test_a_video_shorter_than_a_window_repeats_its_last_frame() -> None:
    (window,) = decode_windows(2, 5, 1)
    assert window.frames.tolist() == [0, 1, 1, 1, 1]
    assert (window.first, window.count, window.needs) == (0, 2, (0, 1))

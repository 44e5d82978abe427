"""Noise as a function of (seed, depth, index, step) and nothing else."""

import itertools
import math
import threading

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine._core import normal_noise

SHAPE = (16, 4, 8, 8)  # (L, c, h, w)


def noise(seed: int, depth: int, index: int, step: int, shape: tuple[int, ...] = SHAPE) -> npt.NDArray[np.float32]:
    out = np.full(shape, np.nan, np.float32)
    normal_noise(seed, depth, index, step, out)
    return out


seeds = st.integers(0, 2**64 - 1)
words = st.integers(0, 2**32 - 1)


@given(seeds, words, words, words)
def test_the_same_arguments_give_the_same_finite_noise(seed: int, depth: int, index: int, step: int) -> None:
    first = noise(seed, depth, index, step)
    assert np.isfinite(first).all()
    assert np.array_equal(first, noise(seed, depth, index, step))


def test_noise_does_not_depend_on_the_slot_of_the_batch_it_is_written_to() -> None:
    alone = noise(7, 2, 31, 5)
    batch = np.zeros((3, *SHAPE), np.float32)
    for slot, index in enumerate((4, 9, 31)):
        normal_noise(7, 2, index, 5, batch[slot])
    assert np.array_equal(batch[2], alone)
    assert np.array_equal(batch[0], noise(7, 2, 4, 5))


def test_noise_does_not_depend_on_the_thread_or_the_order() -> None:
    alone = [noise(7, 1, index, 0) for index in range(8)]
    drawn: dict[int, npt.NDArray[np.float32]] = {}

    def draw(indices: list[int]) -> None:
        for index in indices:
            drawn[index] = noise(7, 1, index, 0)

    threads = [threading.Thread(target=draw, args=(indices,)) for indices in ([7, 5, 3, 1], [6, 4, 2, 0])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(drawn[index], alone[index]) for index in range(8))


def test_every_neighbouring_key_gives_unrelated_noise() -> None:
    keys = list(itertools.product((0, 1, 2**32), (0, 1, 2), (0, 1, 2), (0, 1, 2)))
    draws = np.stack([noise(*key, shape=(2048,)) for key in keys])
    correlation = np.corrcoef(draws) - np.eye(len(keys))
    # 2048 values: a correlation has a standard deviation of 0.022, and there are some three thousand of them.
    assert np.abs(correlation).max() < 0.13


def test_noise_is_standard_normal() -> None:
    values = np.sort(noise(2026, 1, 2, 3, (1_000_000,)).astype(np.float64))
    n = values.size
    assert abs(values.mean()) < 5 / math.sqrt(n)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((values**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov: the distance to the normal distribution passes 1.95 / sqrt(n) once in a thousand.
    sample = values[:: n // 10_000]
    ranks = np.arange(0, n, n // 10_000) / n
    expected = np.array([0.5 * (1 + math.erf(value / math.sqrt(2))) for value in sample])
    assert np.abs(ranks - expected).max() < 1.95 / math.sqrt(n)


def test_values_of_one_draw_are_independent_of_their_neighbours() -> None:
    values = noise(1, 0, 0, 0, (1_000_000,)).astype(np.float64)
    for lag in (1, 2, 3, 4, 8):
        assert abs((values[:-lag] * values[lag:]).mean()) < 5 / math.sqrt(values.size)
        # Box-Muller pairs share a radius: the squares must be independent as well.
        assert abs(((values[:-lag] ** 2 - 1) * (values[lag:] ** 2 - 1)).mean()) < 5 * 2 / math.sqrt(values.size)


def test_an_empty_array_is_left_alone() -> None:
    assert noise(1, 2, 3, 4, (0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((-1, 0, 0, 0), "seed between 0 and 18446744073709551615; found -1"),
        ((2**64, 0, 0, 0), "found 18446744073709551616"),
        ((0, -1, 0, 0), "depth between 0 and 4294967295"),
        ((0, 0, 2**32, 0), "index between 0 and 4294967295"),
        ((0, 0, 0, -3), "step between 0 and 4294967295; found -3"),
    ],
)
def test_a_number_out_of_range_is_refused(arguments: tuple[int, int, int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        normal_noise(*arguments, np.zeros(4, np.float32))


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4), np.int32),
        np.zeros((4, 4), np.float32)[:, ::2],
        np.zeros((4, 3), np.float32).T,
    ],
    ids=["float64", "int32", "strided", "transposed"],
)
def test_an_array_that_would_be_filled_wrongly_is_refused_and_left_alone(
    out: npt.NDArray[np.float32],
) -> None:
    with pytest.raises(ValueError, match="expected out as a C-contiguous float32 array"):
        normal_noise(0, 0, 0, 0, out)
    assert not out.any()


def test_an_array_that_cannot_be_written_to_is_refused() -> None:
    out = np.zeros(4, np.float32)
    out.flags.writeable = False
    with pytest.raises(TypeError):
        normal_noise(0, 0, 0, 0, out)
    assert not out.any()

"""The gate: what it lets through, what it refuses, and what it says."""

import numpy as np
import pytest

pytest.importorskip("torch")

from nuwaxl.export.parity import Parity, ParityError, compare

EXPECTED = np.linspace(-3, 3, 4000, dtype=np.float32).reshape(2, 2000)
PIXELS = np.arange(4000, dtype=np.int64).reshape(2, 2000).astype(np.uint8)


def test_equal_values_pass_with_no_error() -> None:
    assert compare("here", EXPECTED.copy(), EXPECTED) == Parity()
    assert compare("here", PIXELS.copy(), PIXELS) == Parity()


def test_the_relative_error_is_that_of_the_whole_output() -> None:
    assert compare("here", EXPECTED * np.float32(1 + 5e-5), EXPECTED).relative == pytest.approx(5e-5, rel=0.05)
    with pytest.raises(ParityError, match=r"^here: relative error 2\.\d+e-04 against torch; the limit is 1e-04$"):
        compare("here", EXPECTED * np.float32(1 + 2e-4), EXPECTED)


def test_a_zero_output_must_be_exactly_zero() -> None:
    zeros = np.zeros_like(EXPECTED)
    assert compare("here", zeros.copy(), zeros) == Parity()
    with pytest.raises(ParityError, match="relative error inf"):
        compare("here", zeros + np.float32(1e-9), zeros)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_refused_on_either_side(bad: float) -> None:
    broken = EXPECTED.copy()
    broken[1, 7] = bad
    with pytest.raises(ParityError, match="ONNX Runtime are not finite"):
        compare("here", broken, EXPECTED)
    with pytest.raises(ParityError, match="torch are not finite"):
        compare("here", EXPECTED, broken)


def off(count: int, by: int) -> np.ndarray:
    """PIXELS with `count` values changed; those at 250 and above are left alone."""
    changed = PIXELS.copy()
    places = np.flatnonzero(changed.ravel() < 250)[:count]
    changed.ravel()[places] += by
    return changed


def test_pixels_may_differ_by_one_in_one_of_a_thousand() -> None:
    assert compare("here", off(4, 1), PIXELS) == Parity(pixels=0.001)
    with pytest.raises(ParityError, match=r"up to 1 from torch.s, 0\.0013 on average; the limits are 1 and 0\.001"):
        compare("here", off(5, 1), PIXELS)
    with pytest.raises(ParityError, match="up to 2 from"):
        compare("here", off(1, 2), PIXELS)


def test_a_wrap_around_from_0_to_255_is_not_a_small_difference() -> None:
    with pytest.raises(ParityError, match="up to 255 from"):
        compare("here", np.array([255], np.uint8), np.array([0], np.uint8))


def test_another_shape_or_type_is_refused() -> None:
    with pytest.raises(ParityError, match=r"float32 \(2000, 2\), torch float32 \(2, 2000\)"):
        compare("here", EXPECTED.T, EXPECTED)
    with pytest.raises(ParityError, match="float64"):
        compare("here", EXPECTED.astype(np.float64), EXPECTED)

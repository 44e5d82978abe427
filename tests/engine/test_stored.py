"""Arrays in the types that a graph's tensors are stored in, against torch's."""

import numpy as np
import pytest

from nuwaxl.engine.bundle_schema import TensorSpec
from nuwaxl.engine.runners.stored import from_stored, to_stored


def test_bfloat16_is_rounded_to_the_nearest_even_and_read_back() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.standard_normal(10_000) * 10.0 ** rng.integers(-30, 30, 10_000),
            [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1.00390625, 1.01171875, 1e-45],
        ]
    ).astype(np.float32)
    expected = torch.tensor(values).to(torch.bfloat16)
    stored = to_stored(values, "bfloat16")
    assert stored.dtype == np.uint16
    np.testing.assert_array_equal(from_stored(stored, "bfloat16"), expected.float().numpy())


def test_a_tensor_is_stored_in_the_type_of_its_spec() -> None:
    spec = TensorSpec("x", ("batch", 2), "float16")
    assert to_stored(np.ones((3, 2), np.float32), spec.dtype).dtype == np.float16

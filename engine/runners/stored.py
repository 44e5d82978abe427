"""Arrays in the types that a graph's tensors are stored in, bfloat16 among them, which numpy has not."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BFLOAT16 = "bfloat16"


def stored(dtype: str) -> np.dtype[Any]:
    """The numpy type with a tensor's bytes; of bfloat16 its bits."""
    return np.dtype(np.uint16) if dtype == _BFLOAT16 else np.dtype(dtype)


def to_stored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as they are stored; to bfloat16 they are rounded to the nearest, of two as near to the even one."""
    if dtype != _BFLOAT16:
        return np.ascontiguousarray(array, dtype=stored(dtype))
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # The rounding of a NaN could carry into an infinity.
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    result: NDArray[Any] = np.where(nan, (bits >> 16) | 0x40, rounded).astype(np.uint16)
    return result


def from_stored(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values of what is stored; bfloat16 as float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == _BFLOAT16 else array

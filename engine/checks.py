"""Checks of single values a caller gives; each returns the value in its plain type or raises InputError."""

import math
import operator
from typing import Any

from nuwaxl.errors import InputError


def whole_number(name: str, value: Any, *, least: int, most: int | None = None, fix: str = "") -> int:
    """`value` as int. A bool, a float, even 16.0, and a string are refused; a numpy integer is not.

    Raises:
        InputError: not a whole number from `least` to `most`.
    """
    expected = f"{name}: a whole number of at least {least}"
    if most is not None:
        expected = f"{name}: a whole number from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least or (most is not None and number > most):
        raise InputError(expected=expected, found=repr(value), fix=fix or f"change {name}")
    return number


def finite_number(name: str, value: Any, *, least: float) -> float:
    """`value` as float.

    Raises:
        InputError: not a finite number of at least `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise InputError(
            expected=f"{name}: a finite number of at least {least:g}", found=repr(value), fix=f"change {name}"
        )
    return float(value)


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`, which must be one of `choices`.

    Raises:
        InputError: any other value.
    """
    if value not in choices:
        raise InputError(expected=f"{name}: one of {', '.join(choices)}", found=repr(value), fix=f"change {name}")
    return str(value)

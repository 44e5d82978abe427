"""Checks of single values a caller gives; each returns the value in its plain type or raises InputError."""

import math
import operator
import os
from numbers import Real
from pathlib import Path
from typing import Any

from nuwaxl.errors import InputError, reason


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
        raise InputError(expected=expected, found=shown(value), fix=fix or f"change {name}")
    return number


def finite_number(name: str, value: Any, *, least: float = -math.inf, most: float = math.inf, fix: str = "") -> float:
    """`value` as float; numpy's numbers are such, too.

    Raises:
        InputError: not a finite number from `least` to `most`.
    """
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an int that no float holds
        number = math.inf
    if not math.isfinite(number) or not least <= number <= most:
        limits = "" if (least, most) == (-math.inf, math.inf) else f" from {least:g} to {most:g}"
        raise InputError(expected=f"{name}: a finite number{limits}", found=shown(value), fix=fix or f"change {name}")
    return number


def encodable_text(name: str, value: Any, *, fix: str) -> str:
    """`value`, a string that can be encoded: JSON may hold halves of surrogate pairs, which no tokenizer takes.

    Raises:
        InputError: not a string, or one of those.
    """
    try:
        if isinstance(value, str):
            value.encode()
            return value
    except UnicodeEncodeError:
        pass
    raise InputError(expected=f"text as {name}", found=shown(value), fix=fix)


def read_text(file: Path, what: str) -> str:
    """The text of a file in UTF-8, without the mark that editors on Windows put in front; `what` names it in errors.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        if os.path.exists(file) and not os.path.isfile(file) and not os.path.isdir(file):  # /dev/zero has no end
            raise OSError("not a regular file")
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            expected=f"UTF-8 text in {file}", found=f"byte {error.start} that is not", fix="save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:  # a ValueError is a name that no file can have
        raise InputError(expected=f"{what} at {file}", found=reason(error), fix="check the path") from error


def shown(value: Any) -> str:
    """What was found, for a message of one line: repr(value), shortened."""
    try:
        found = repr(value)
    except ValueError:  # Python prints no int of more than some thousand digits
        found = "a number of thousands of digits"
    return found if len(found) <= 100 else f"{found[:80]}... ({len(found)} characters)"


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """`value`, which must be one of `choices`.

    Raises:
        InputError: any other value.
    """
    if value not in choices:
        raise InputError(expected=f"{name}: one of {', '.join(choices)}", found=repr(value), fix=f"change {name}")
    return str(value)

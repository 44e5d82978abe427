"""Errors of nuwaxl: what was expected, what was found, what to do."""

import re
from functools import partial
from typing import Any


class NuwaxlError(Exception):
    """Base of every error nuwaxl raises on purpose. Command-line tools print it as one line, without a traceback."""


class InputError(NuwaxlError, ValueError):
    """What the user gave cannot be used; raised before any work starts. Command-line tools exit with status 2."""

    def __init__(self, *, expected: str, found: str, fix: str) -> None:
        super().__init__(f"expected {expected}; found {found}; {fix}")
        self.expected = expected
        self.found = found
        self.fix = fix

    def __reduce__(self) -> tuple[Any, ...]:
        # For pickle: an exception is otherwise made again of its message alone.
        return partial(type(self), expected=self.expected, found=self.found, fix=self.fix), ()


def one_line(message: object) -> str:
    """A message without line breaks."""
    return " ".join(str(message).split())


def reason(error: Exception) -> str:
    """What an exception says, in one line and without the numbers and quotes of the operating system or of libav."""
    said = getattr(error, "strerror", None) or str(error)  # libav's errors need not be of the system's class
    return one_line(re.sub(r" \(os error \d+\)", "", said))


class RenderError(NuwaxlError):
    """A render that had started could not be finished. Command-line tools exit with status 1."""


class RenderCancelled(RenderError):
    """A render was cancelled because somebody asked for that."""


class DeviceLost(RenderError):
    """A device can no longer be used, its process or machine being gone; others can take over its work."""

"""What is drawn and said on stderr while something takes long: nothing where it is closed."""

import os
import sys
import time
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

_FIRST_S, _EVERY_S = 10.0, 60.0  # until the first line, and between two: what is soon done needs none


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def bar(shown: bool = True, **options: Any) -> Any:
    """A bar of tqdm's, drawn if it is to be `shown` and stderr is a terminal; else its `disable` is true."""
    return tqdm(disable=not (shown and on_terminal()), **_size(), **options)


def note(text: str) -> None:
    """Print a line."""
    if sys.stderr is not None:  # print() would take stdout instead
        print(text, file=sys.stderr, flush=True)


class Due:
    """When to say in lines how far something is: after 10 s, then once a minute."""

    def __init__(self) -> None:
        self._at = time.monotonic() + _FIRST_S

    def __call__(self, now: float) -> bool:
        """Whether a line is due at `now`, of time.monotonic(); if so, the next is a minute later."""
        if now < self._at:
            return False
        self._at = now + _EVERY_S
        return True


def _size() -> dict[str, int]:
    """A size where the terminal does not know its own, as on a serial line; else tqdm finds out, and follows it."""
    try:
        known = min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (AttributeError, OSError, ValueError):
        known = False
    return {} if known else {"ncols": 80, "nrows": 24}

"""What a training says of itself while it runs, on stderr: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from tqdm import tqdm

from nuwaxl import terminal


def note(text: str) -> None:
    """Print a line about a training that goes on."""
    terminal.note(f"nuwaxl-train: {text}")


class Progress:
    """Of something with `total` parts, `done` of which are done already; a context. Silent unless `shown`.

    `what` names a part: "step" gives the line "step 20 of 1000: loss 0.1, 3.2 s each, 52:16 to go".
    """

    def __init__(self, what: str, total: int, shown: bool, done: int = 0) -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._bar = terminal.bar(shown and total > done, desc=what, total=total, initial=done)
        self._lines = shown and self._bar.disable  # which it is where stderr is no terminal
        self._began = time.monotonic()
        self._due = terminal.Due()

    def advance(self, parts: int = 1, figures: Mapping[str, float] | None = None) -> None:
        """So many more are done; `figures` are shown beside them."""
        self._done += parts
        self._bar.update(parts)
        if figures:
            self._bar.set_postfix({name: f"{value:.4f}" for name, value in figures.items()}, refresh=False)
        now = time.monotonic()
        if self._lines and self._due(now):
            each = (now - self._began) / (self._done - self._before)
            shown = "".join(f"{name} {value:.4g}, " for name, value in (figures or {}).items())
            left = tqdm.format_interval(each * (self._total - self._done))
            note(f"{self._what} {self._done} of {self._total}: {shown}{each:.3g} s each, {left} to go")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

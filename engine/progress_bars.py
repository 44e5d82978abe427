"""Progress bars of the command-line tools."""

import os
import sys
from types import TracebackType
from typing import Any

from tqdm import tqdm  # type: ignore[import-untyped]

from nuwaxl.engine.engine import Engine
from nuwaxl.engine.stats import Phase, Progress

_UNITS = {"diffuse": "step", "decode": "frame"}


class ProgressBars:
    """A context; call it with every Progress. Draws on stderr, and only where that is a terminal."""

    def __init__(self) -> None:
        self._bars: dict[Phase, Any] = {}
        self._drawn = sys.stderr is not None and sys.stderr.isatty()

    def __enter__(self) -> "ProgressBars":
        return self

    def __call__(self, progress: Progress) -> None:
        """Move the bar of a phase."""
        if not self._drawn or progress.phase not in _UNITS:
            return
        bar = self._bars.get(progress.phase)
        if bar is None:
            bar = self._bars[progress.phase] = tqdm(
                total=progress.total,
                desc=progress.phase,
                unit=_UNITS[progress.phase],
                position=len(self._bars),
                **_size(),
            )
        bar.update(progress.done - bar.n)

    def before(self, engine: Engine, segments: int, max_batch: int | None) -> None:
        """Say what takes time before the first bar moves in a render of so many segments."""
        if self._drawn and not engine.knows_costs(segments, max_batch):
            print("measuring what a step takes on these devices, which is kept for the next time", file=sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for bar in self._bars.values():
            bar.close()


def _size() -> dict[str, int]:
    """A size where the terminal does not know its own, as on a serial line; else tqdm finds out, and follows it."""
    try:
        known = min(os.get_terminal_size(sys.stderr.fileno())) > 0
    except (OSError, ValueError):
        known = False
    return {} if known else {"ncols": 80, "nrows": 24}

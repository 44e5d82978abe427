"""Progress bars of the command-line tools."""

from types import TracebackType
from typing import Any

from nuwaxl.engine.engine import Engine
from nuwaxl.engine.stats import Phase, Progress
from nuwaxl.terminal import bar, note, on_terminal

_UNITS = {"diffuse": "step", "decode": "frame"}


class ProgressBars:
    """A context; call it with every Progress. Draws on stderr, and only where that is a terminal."""

    def __init__(self) -> None:
        self._bars: dict[Phase, Any] = {}
        self._drawn = on_terminal()

    def __enter__(self) -> "ProgressBars":
        return self

    def __call__(self, progress: Progress) -> None:
        """Move the bar of a phase."""
        if not self._drawn or progress.phase not in _UNITS:
            return
        drawn = self._bars.get(progress.phase)
        if drawn is None:
            drawn = self._bars[progress.phase] = bar(
                total=progress.total,
                desc=progress.phase,
                unit=_UNITS[progress.phase],
                position=len(self._bars),
            )
        drawn.update(progress.done - drawn.n)

    def before(self, engine: Engine, segments: int, max_batch: int | None) -> None:
        """Say what takes time before the first bar moves in a render of so many segments."""
        if self._drawn and not engine.knows_costs(segments, max_batch):
            note("measuring what a step takes on these devices, which is kept for the next time")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for drawn in self._bars.values():
            drawn.close()

"""What an export is at and for how long, on stderr: graphs of the paper's size take minutes."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

from nuwaxl.terminal import Due, bar, note, on_terminal

_TICK_S = 1.0


class Stages:
    """A context; call it with the stage that begins, or with nothing where none does.

    On a terminal the stage and its time are a line that goes when it ends. Elsewhere it is one line after 10 s of a
    stage, and one a minute from then on. A thread draws them, since a stage is one call that does not come back to us.
    """

    def __init__(self) -> None:
        self._drawn = on_terminal()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="stages", daemon=True)
        self._bar: Any = None
        self._stage, self._began, self._due = "", 0.0, Due()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __call__(self, stage: str = "") -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.close()
                self._bar = None
            self._stage, self._began = stage, time.monotonic()
            self._due = Due()
            if stage and self._drawn:
                self._bar = bar(desc=stage, bar_format="{desc}  {elapsed}", leave=False)

    def _tick(self) -> None:
        while not self._over.wait(_TICK_S):
            with self._lock:
                now = time.monotonic()
                if self._bar is not None:
                    self._bar.refresh()
                elif self._stage and self._due(now):
                    elapsed = tqdm.format_interval(now - self._began)
                    note(f"nuwaxl-export: {self._stage}  {elapsed}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self()

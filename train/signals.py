"""Ctrl-C and SIGTERM in a process that a launcher started."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from nuwaxl.cli import Terminated

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextmanager
def heed_one_signal() -> Iterator[None]:
    """In a process of accelerate launch or torchrun, the first SIGINT or SIGTERM is the only one, to its end.

    They pass on to their processes what they get, so that a Ctrl-C at the terminal comes twice: the second would stop
    the cleaning up after the first. A process that does not end all the same is killed by its launcher, in 30 s.
    """
    came = False
    before: dict[signal.Signals, Handler] = {}  # there already for a signal that comes while the handlers are set

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before.update(_replace(stop))
    try:
        yield
    finally:
        if not came:
            _restore(before)


@contextmanager
def end_at_signals() -> Iterator[None]:
    """In a process that a launcher started, SIGINT and SIGTERM end it at once meanwhile.

    It is for waiting in C++ for another process, which may never come: no handler in Python is run there.
    """
    before = _replace(signal.SIG_DFL)
    try:
        yield
    finally:
        _restore(before)


def _replace(handler: Handler) -> dict[signal.Signals, Handler]:
    """Handle both so, if a launcher started this process; gives the handlers they had."""
    if "LOCAL_RANK" not in os.environ or threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours: dict[signal.Signals, Handler] = {
        number: found for number, found in before.items() if callable(found)
    }  # not what the starter has ignored
    for number in ours:
        signal.signal(number, handler)
    return ours


def _restore(before: dict[signal.Signals, Handler]) -> None:
    for number, handler in before.items():
        signal.signal(number, handler)

"""Giving renders up from any thread, at any moment: before they begin, while costs are measured, and later."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from nuwaxl.engine.render import Render
from nuwaxl.errors import RenderCancelled


class Attempt:
    """One render, begun or about to begin."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._render: Render | None = None

    def check(self) -> None:
        """Where nothing renders yet, but time passes.

        Raises:
            RenderCancelled: cancel() was called.
        """
        if self._cancelled:
            raise RenderCancelled("expected the render to go on; found it cancelled; render again")

    def began(self, render: Render) -> None:
        """From now on it is this render that is cancelled."""
        with self._lock:
            self._render = render
            if self._cancelled:
                render.cancel()

    def cancel(self) -> None:
        """From any thread."""
        with self._lock:
            self._cancelled = True
            if self._render is not None:
                self._render.cancel()


# Gives the one render of an iteration, and frees the engine afterwards.
Begin = Callable[[Attempt], AbstractContextManager[Render]]


class Attempts:
    """The attempts to render a video, or several together. cancel() is final, so that it cannot come too early."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._cancelled = False
        # No lock: an abandoned iteration ends wherever the garbage collector runs.
        self._under_way: set[Attempt] = set()

    @contextmanager
    def render(self, attempt: Attempt) -> Iterator[Render]:
        """A render that cancel() gives up, and attempt.cancel() alone.

        Raises:
            InputError, RenderError: it cannot begin.
            RenderCancelled: it was cancelled before it began.
        """
        self._under_way.add(attempt)
        try:
            if self._cancelled:
                attempt.cancel()
            attempt.check()
            with self._begin(attempt) as render:
                attempt.began(render)
                yield render
        finally:
            self._under_way.discard(attempt)

    def cancel(self) -> None:
        """Give up what is under way, and whatever would begin later."""
        self._cancelled = True
        for attempt in list(self._under_way):
            attempt.cancel()

"""The process that an object belongs to. Threads, locks and an inference runtime's state do not survive a fork, and
threads in a runtime's C++ must have ended when the interpreter does."""

import atexit
import os
from typing import Protocol

from nuwaxl.errors import InputError


class HomeProcess:
    """The process in which this was made."""

    def __init__(self) -> None:
        self._process = os.getpid()

    @property
    def here(self) -> bool:
        """Whether this is that process, and not one that was forked from it."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Refuse any other process.

        Raises:
            InputError: this process was forked from that one.
        """
        if not self.here:
            raise InputError(
                expected=f"an engine opened in this process ({os.getpid()})",
                found=f"one of process {self._process}, which this one was forked from",
                fix="open an engine after the fork: threads and the runtime's state do not survive one",
            )


class Threaded(Protocol):
    """What has threads that can be stopped."""

    def cancel(self) -> None: ...

    def join(self) -> None: ...


# What is stopped when the interpreter exits, if it was not before.
under_way: set[Threaded] = set()


@atexit.register
def _stop_all() -> None:
    """Threads that the exit tears out of C++ would abort the process."""
    for threaded in list(under_way):
        threaded.cancel()
        threaded.join()

"""The process that an object belongs to. Threads, locks and an inference runtime's state do not survive a fork."""

import os

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

"""What FFmpeg's libraries say of a damaged Matroska or WebM file, which they read on without an error."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import av
import av.logging
from av.container import InputContainer


@contextmanager
def matroska_errors(container: InputContainer) -> Iterator[Callable[[], str | None]]:
    """Gives a function that returns the first error that this thread's reading of `container` has logged so far.

    It is always None for other formats. The log is on no longer than needed: entries of other threads wait for
    Python's lock.
    """
    if "matroska" not in container.format.name:
        yield lambda: None
        return
    level, skip_repeated = av.logging.get_level(), av.logging.get_skip_repeated()
    # Without a handler, entries of other threads would be printed as Python's last resort.
    logger, handler = logging.getLogger("libav"), logging.NullHandler()
    logger.addHandler(handler)
    av.logging.set_skip_repeated(False)  # two files may be damaged in the same words
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as entries:
            yield lambda: next((text.strip() for _, name, text in entries if "matroska" in name), None)
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip_repeated)
        logger.removeHandler(handler)

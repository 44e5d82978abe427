"""Clips for `async for`."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TypeVar

T = TypeVar("T")


async def iterate(clips: Generator[T, None, None], cancel: Callable[[], None]) -> AsyncGenerator[T, None]:
    """What `clips` gives, each awaited in a thread of the event loop's default executor, so that the loop is free.

    However it ends, by an error, `break` or the cancellation of its task, the generator is closed, in a thread too.

    Args:
        cancel: makes next(clips), in another thread, come back soon.
    """
    waiting: asyncio.Future[T | None] | None = None
    try:
        while True:
            waiting = asyncio.ensure_future(asyncio.to_thread(next, clips, None))
            clip = await asyncio.shield(waiting)
            if clip is None:
                return
            yield clip
    finally:
        await asyncio.shield(asyncio.ensure_future(_close(clips, waiting, cancel)))


async def _close(
    clips: Generator[T, None, None], waiting: asyncio.Future[T | None] | None, cancel: Callable[[], None]
) -> None:
    if waiting is not None and not waiting.done():
        cancel()
        await asyncio.wait([waiting])
    if waiting is not None and not waiting.cancelled():
        waiting.exception()  # it was raised already, or nobody waits for it any more
    await asyncio.to_thread(clips.close)

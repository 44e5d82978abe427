"""A video that is rendered when it is iterated over or saved."""

import os
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from time import perf_counter

from nuwaxl.engine.asynchronous import iterate
from nuwaxl.engine.cancellation import Attempt, Attempts, Begin
from nuwaxl.engine.events import Taken
from nuwaxl.engine.job import Clip
from nuwaxl.engine.journal import complete_journal
from nuwaxl.engine.mp4 import Mp4Writer
from nuwaxl.engine.request import Request, Schedule
from nuwaxl.engine.stats import RenderStats
from nuwaxl.errors import RenderError

DEFAULT_FPS = 16.0


class Video:
    """Made by Engine.render; nothing has run yet.

    Iterating gives Clips in order; save writes an mp4 file. Each of the two renders anew.

    Attributes:
        frames, height, width: size of the video.
        fps: frames a second, from the story, else 16.
    """

    def __init__(
        self,
        begin: Begin,
        *,
        request: Request,
        schedule: Schedule,
        devices: list[str],
        height: int,
        width: int,
        fps: float | None,
        content: str,
    ) -> None:
        """`begin` gives the one render of an iteration, and frees the engine afterwards.

        `content`: what is written into the file beside the frames.
        """
        self._attempts = Attempts(begin)
        self._request = request
        self._schedule = schedule
        self._devices = devices
        self._stats: RenderStats | None = None
        self._content = content
        self.frames = request.frames
        self.height = height
        self.width = width
        self.fps = DEFAULT_FPS if fps is None else fps

    def __iter__(self) -> Generator[Clip, None, None]:
        """Render, and give the clips in order. Closing the iterator early stops and joins the workers.

        Raises:
            InputError: the engine was closed meanwhile, or belongs to the process this one was forked from.
            RenderError: the render failed, with what went wrong as its cause, or the engine is rendering
                already.
            RenderCancelled: cancel() was called, or the engine closed.
        """
        return self._whole(Attempt())

    def __aiter__(self) -> AsyncGenerator[Clip, None]:
        """As iterating, for `async for`: the event loop is free while a clip is awaited. Cancelling the task stops
        and joins the workers. Progress is reported in a thread of the loop's default executor."""
        attempt = Attempt()
        return iterate(self._whole(attempt), attempt.cancel)

    def save(self, path: str | os.PathLike[str], on_clip: Callable[[Clip], None] | None = None) -> None:
        """Render into an mp4 file, which appears under its name only when it is complete.

        Args:
            path: where; checked before the render begins.
            on_clip: called with every clip after it was written.

        Raises:
            InputError: the path cannot be written.
            RenderError: the render failed, or the engine is rendering already.
            RenderCancelled: cancel() was called.
        """
        encode_s = 0.0
        with Mp4Writer(path, width=self.width, height=self.height, fps=self.fps, comment=self._content) as writer:
            with closing(self._clips(Attempt())) as clips:
                for clip in clips:
                    before = perf_counter()
                    writer.write(clip.frames)
                    encode_s += perf_counter() - before
                    if on_clip is not None:
                        on_clip(clip)
            before = perf_counter()
        finish_s = perf_counter() - before
        complete_journal(self._request.journal)
        self._stats = self.stats.saved(wall_s=self.stats.wall_s + finish_s, encode_s=encode_s + finish_s)

    def cancel(self) -> None:
        """Give this up, from any thread: within one denoising step the iteration that is running raises
        RenderCancelled, and so does any later one. The engine can be asked for another."""
        self._attempts.cancel()

    @property
    def stats(self) -> RenderStats:
        """Measurements of the last finished render.

        Raises:
            RenderError: none has finished yet.
        """
        if self._stats is None:
            raise RenderError("expected a finished render; found none; iterate over the video or save it first")
        return self._stats

    def _whole(self, attempt: Attempt) -> Generator[Clip, None, None]:
        yield from self._clips(attempt)
        complete_journal(self._request.journal)

    def _clips(self, attempt: Attempt) -> Generator[Clip, None, None]:
        with self._attempts.render(attempt) as render:
            with closing(render.events()) as events:
                for event in events:
                    if isinstance(event, Taken):
                        yield event.clip
                    elif event.error is not None:
                        raise event.error
                    else:
                        restored = event.restored
            self._stats = RenderStats.of(self._request, self._schedule, self._devices, render.recorder, restored)

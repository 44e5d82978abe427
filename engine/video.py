"""A video that is rendered when it is iterated over or saved."""

import os
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from time import perf_counter

from nuwaxl.engine.render import Render
from nuwaxl.engine.stats import RenderStats
from nuwaxl.engine.work import Clip
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
        begin: Callable[[], Render],
        rendering: threading.Lock,
        *,
        frames: int,
        height: int,
        width: int,
        fps: float | None,
    ) -> None:
        """`begin` makes a render; `rendering` is held while one runs: runners serve one at a time."""
        self._begin = begin
        self._rendering = rendering
        self._stats: RenderStats | None = None
        self.frames = frames
        self.height = height
        self.width = width
        self.fps = DEFAULT_FPS if fps is None else fps

    def __iter__(self) -> Generator[Clip, None, None]:
        """Render, and give the clips in order. Closing the iterator early stops and joins the workers.

        Raises:
            RenderError: the render failed, with what went wrong as its cause, or the engine is rendering
                already.
        """
        if not self._rendering.acquire(blocking=False):
            raise RenderError(
                "expected an idle engine; found one that is rendering; finish or close the other one first"
            )
        try:
            render = self._begin()
            yield from render.clips()
            self._stats = render.stats()
        finally:
            self._rendering.release()

    def save(self, path: str | os.PathLike[str], on_clip: Callable[[Clip], None] | None = None) -> None:
        """Render into an mp4 file, which appears under its name only when it is complete.

        Args:
            path: where; checked before the render begins.
            on_clip: called with every clip after it was written.

        Raises:
            InputError: the path cannot be written.
            RenderError: the render failed, or the engine is rendering already.
        """
        # PyAV takes long to import, and those who iterate do not need it.
        from nuwaxl.engine.mp4 import Mp4Writer

        started = perf_counter()
        encode_s = 0.0
        with Mp4Writer(path, width=self.width, height=self.height, fps=self.fps) as writer:
            with closing(iter(self)) as clips:
                for clip in clips:
                    before = perf_counter()
                    writer.write(clip.frames)
                    encode_s += perf_counter() - before
                    if on_clip is not None:
                        on_clip(clip)
            before = perf_counter()
        ended = perf_counter()
        phases_s = {**self.stats.phases_s, "encode": encode_s + ended - before}
        self._stats = replace(self.stats, wall_s=ended - started, phases_s=phases_s)

    @property
    def stats(self) -> RenderStats:
        """Measurements of the last finished render.

        Raises:
            RenderError: none has finished yet.
        """
        if self._stats is None:
            raise RenderError("expected a finished render; found none; iterate over the video or save it first")
        return self._stats

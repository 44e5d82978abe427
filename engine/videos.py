"""Videos that are rendered together."""

import os
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from nuwaxl.engine.asynchronous import iterate
from nuwaxl.engine.cancellation import Attempt, Attempts, Begin
from nuwaxl.engine.events import Ended, Taken
from nuwaxl.engine.job import Clip
from nuwaxl.engine.journal import complete_journal
from nuwaxl.engine.mp4 import Mp4Writer, check_output
from nuwaxl.engine.render import Render
from nuwaxl.engine.request import Request, Task
from nuwaxl.engine.video import DEFAULT_FPS
from nuwaxl.errors import InputError, RenderError


@dataclass(frozen=True)
class VideoResult:
    """How one of several videos fared.

    Attributes:
        frames: of the video.
        error: None if it is complete.
        start_s, end_s: seconds since the render began, from when its first segment could run to its last clip.
        segments: of the video.
        restored: those of them that were not rendered, but taken from a journal.
    """

    frames: int
    error: RenderError | None
    start_s: float
    end_s: float
    segments: int
    restored: int


class Videos:
    """Made by Engine.render_many; nothing has run yet.

    Iterating gives (number of the task, Clip): the clips of each video in order, those of different videos as they
    come. save writes mp4 files. Each of the two renders anew. A video that fails leaves the others alone.
    """

    def __init__(
        self,
        begin: Begin,
        tasks: Sequence[tuple[Task, Request]],
        *,
        height: int,
        width: int,
        contents: Sequence[str],
    ) -> None:
        """`begin` gives the one render of an iteration, and frees the engine afterwards.

        `contents`: of each, what is written into its file beside the frames.
        """
        self._attempts = Attempts(begin)
        self._tasks = tasks
        self._contents = contents
        self.height = height
        self.width = width
        self._results: dict[int, VideoResult] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Generator[tuple[int, Clip], None, None]:
        """Render, and give clips; results says afterwards how each video fared. Closing the iterator early stops
        and joins the workers.

        Raises:
            InputError: the engine was closed meanwhile, or belongs to the process this one was forked from.
            RenderError: the engine is rendering already.
            RenderCancelled: cancel() was called, or the engine closed.
        """
        return self._clips(Attempt())

    def __aiter__(self) -> AsyncGenerator[tuple[int, Clip], None]:
        """As iterating, for `async for`; see Video."""
        attempt = Attempt()
        return iterate(self._clips(attempt), attempt.cancel)

    def save(
        self,
        paths: Sequence[str | os.PathLike[str]],
        on_end: Callable[[int, VideoResult], None] | None = None,
    ) -> list[VideoResult]:
        """Render into mp4 files, one a task, each of which appears under its name only when it is complete.

        Args:
            paths: where; checked before the render begins.
            on_end: called with a task's number and result as soon as its video is complete or has failed.

        Raises:
            InputError: not one path a task, one twice, or one that cannot be written.
            RenderError: the engine is rendering already. Failures of single videos are in their results.
            RenderCancelled: cancel() was called.
        """
        if len(paths) != len(self._tasks):
            raise InputError(
                expected=f"{len(self._tasks)} paths, one a task", found=str(len(paths)), fix="give as many"
            )
        files = [check_output(path) for path in paths]
        given = Counter(map(os.path.realpath, files))
        if twice := [name for name, count in given.items() if count > 1]:
            raise InputError(
                expected="a path of its own for each task", found=f"{twice[0]} more than once", fix="give another name"
            )
        writers: dict[int, Mp4Writer] = {}
        unwritable: set[int] = set()
        try:
            with closing(self._events(Attempt())) as events:
                for render, event in events:
                    number = event.job
                    try:
                        if isinstance(event, Taken):
                            if number in unwritable:  # clips that were there already; FFmpeg crashes on them
                                continue
                            if number not in writers:
                                writers[number] = self._writer(number, files[number]).open()
                            writers[number].write(event.clip.frames)
                        elif event.error is None:
                            writers.pop(number).finish()
                            complete_journal(self._tasks[number][1].journal)
                    except (RenderError, InputError) as error:
                        # Its folder may have gone since the paths were checked.
                        failure = error if isinstance(error, RenderError) else RenderError(str(error))
                        unwritable.add(number)
                        render.fail(number, failure)
                        self._fail(number, failure)
                    if isinstance(event, Ended):
                        if number in writers:
                            writers.pop(number).abort()
                        if on_end is not None:
                            on_end(number, self._results[number])
        finally:
            for writer in writers.values():
                writer.abort()
        return self.results

    def cancel(self) -> None:
        """Give this up, from any thread: within one denoising step the iteration that is running raises
        RenderCancelled, and so does any later one. The engine can be asked for another."""
        self._attempts.cancel()

    @property
    def results(self) -> list[VideoResult]:
        """How each video fared in the last render that came to its end.

        Raises:
            RenderError: none has finished yet.
        """
        if len(self._results) < len(self._tasks):
            raise RenderError("expected a finished render; found none; iterate over the videos or save them first")
        return [self._results[number] for number in range(len(self._tasks))]

    def _clips(self, attempt: Attempt) -> Generator[tuple[int, Clip], None, None]:
        with closing(self._events(attempt)) as events:
            for _, event in events:
                if isinstance(event, Taken):
                    yield event.job, event.clip
                elif event.error is None:
                    complete_journal(self._tasks[event.job][1].journal)

    def _events(self, attempt: Attempt) -> Generator[tuple[Render, Taken | Ended], None, None]:
        with self._attempts.render(attempt) as render, closing(render.events()) as events:
            self._results = {}
            for event in events:
                if isinstance(event, Ended):
                    request = self._tasks[event.job][1]
                    self._results[event.job] = VideoResult(
                        request.frames, event.error, event.start_s, event.end_s, len(request.plan), event.restored
                    )
                yield render, event

    def _writer(self, number: int, file: Path) -> Mp4Writer:
        fps = self._tasks[number][0].story.fps or DEFAULT_FPS
        return Mp4Writer(file, width=self.width, height=self.height, fps=fps, comment=self._contents[number])

    def _fail(self, number: int, error: RenderError) -> None:
        """A video whose file cannot be written is not complete, though all its clips were."""
        if number in self._results:
            self._results[number] = replace(self._results[number], error=error)

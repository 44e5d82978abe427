"""What a render tells the thread that iterates over it."""

from dataclasses import dataclass

from nuwaxl.engine.job import Clip
from nuwaxl.errors import RenderError


@dataclass(frozen=True)
class Taken:
    """The next clip of a job."""

    job: int
    clip: Clip


@dataclass(frozen=True)
class Ended:
    """A job that gives no more clips: it is complete, or failed for the reason given. Times in seconds since the
    render began: from when its segments could run to its last clip. `restored` of its segments were in a journal."""

    job: int
    error: RenderError | None
    start_s: float
    end_s: float
    restored: int

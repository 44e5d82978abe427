"""The script of an episode: who does what, where and when, and the caption of every frame.

A script is a list of shots; a shot stays in one scenery and is a list of beats; in a beat every actor does
one thing. The captions are a function of shot and beat, so that the prompt says what the picture shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

CHARACTERS = {
    "Mona": "Mona in the red dress",
    "Bruno": "Bruno the blue bear",
    "Pip": "Pip the yellow chick",
    "Rex": "Rex the green dinosaur",
}
SCENERIES = {
    "meadow": "in the meadow",
    "beach": "on the beach",
    "mountains": "in the snowy mountains",
    "city": "in the city at night",
    "desert": "in the desert",
}
MARKS = (13.0, 32.0, 51.0)  # pixels from the left edge
_MARK_PHRASES = ("on the left", "in the middle", "on the right")
JUMP_PERIOD = 40  # frames


@dataclass(frozen=True)
class Act:
    """One character's part in a beat; `start` and `end` are indices of MARKS, different only for walks."""

    character: str
    action: str  # "stands", "walks", "waves" or "jumps"
    start: int
    end: int

    @property
    def direction(self) -> int:
        """-1 (to the left), 0 or 1 (to the right)."""
        return (self.end > self.start) - (self.end < self.start)

    @property
    def text(self) -> str:
        where = {-1: "to the left", 0: _MARK_PHRASES[self.start], 1: "to the right"}[self.direction]
        return f"{self.action} {where}"


@dataclass(frozen=True)
class Beat:
    first: int  # frame of the episode
    frames: int
    acts: tuple[Act, ...]


@dataclass(frozen=True)
class Shot:
    first: int  # frame of the episode
    scenery: str
    beats: tuple[Beat, ...]

    @property
    def frames(self) -> int:
        return sum(beat.frames for beat in self.beats)

    def text(self, beat: Beat) -> str:
        """One character is described, two are only named: the caption stays within 18 words."""
        if len(beat.acts) == 1:
            act = beat.acts[0]
            doing = f"{CHARACTERS[act.character]} {act.text}"
        else:
            doing = " and ".join(f"{act.character} {act.text}" for act in beat.acts)
        return f"{doing} {SCENERIES[self.scenery]}"


@dataclass(frozen=True)
class Moment:
    """What one frame shows: `since` frames have passed in this beat of this shot."""

    shot: Shot
    beat: Beat
    since: int

    @property
    def text(self) -> str:
        return self.shot.text(self.beat)


@dataclass(frozen=True)
class Script:
    """A whole episode of `frames` frames; the last shot is cut off where the episode ends."""

    frames: int
    cast: tuple[str, ...]
    shots: tuple[Shot, ...]

    def moments(self) -> Iterator[Moment]:
        """The `frames` moments of the episode, in order."""
        for shot in self.shots:
            for beat in shot.beats:
                for since in range(min(beat.frames, self.frames - beat.first)):
                    yield Moment(shot, beat, since)


def write_script(frames: int, rng: np.random.Generator) -> Script:
    """A random script of `frames` frames with one or two leading characters for the whole episode."""
    leads = 1 if rng.random() < 0.4 else 2
    cast = tuple(str(name) for name in rng.choice(list(CHARACTERS), size=leads, replace=False))
    shots: list[Shot] = []
    scenery, shots_left, first = "", 0, 0
    while first < frames:
        if shots_left == 0:
            scenery = str(rng.choice([name for name in SCENERIES if name != scenery]))
            shots_left = int(rng.integers(1, 5))
        together = leads == 2 and rng.random() < 0.5  # 30 % of all shots
        actors = cast if together else (str(rng.choice(cast)),)
        shot = Shot(first, scenery, _write_beats(first, actors, rng))
        shots.append(shot)
        shots_left -= 1
        first += shot.frames
    return Script(frames, cast, tuple(shots))


def _write_beats(first: int, actors: tuple[str, ...], rng: np.random.Generator) -> tuple[Beat, ...]:
    """Beats of 20 to 90 frames that together last 60 to 400 frames."""
    target = int(rng.integers(60, 311))
    places = [int(place) for place in rng.permutation(len(MARKS))[: len(actors)]]
    beats: list[Beat] = []
    total = 0
    while total < target:
        acts = _choose_acts(actors, places, rng)
        if beats and acts == beats[-1].acts:
            continue
        frames = _duration(acts, rng)
        beats.append(Beat(first + total, frames, acts))
        places = [act.end for act in acts]
        total += frames
    return tuple(beats)


def _choose_acts(actors: tuple[str, ...], places: list[int], rng: np.random.Generator) -> tuple[Act, ...]:
    """One act an actor; at most one walks, to a mark that it reaches without passing another actor."""
    walker, goal = -1, 0
    if rng.random() < 0.45:
        walks = [
            (actor, mark)
            for actor, place in enumerate(places)
            for mark in range(len(MARKS))
            if mark != place
            and not any(min(place, mark) <= other <= max(place, mark) for other in places if other != place)
        ]
        walker, goal = walks[int(rng.integers(len(walks)))]
    acts: list[Act] = []
    for actor, (name, place) in enumerate(zip(actors, places, strict=True)):
        if actor == walker:
            acts.append(Act(name, "walks", place, goal))
        else:
            action = str(rng.choice(["stands", "waves", "jumps"], p=[0.45, 0.3, 0.25]))
            acts.append(Act(name, action, place, place))
    return tuple(acts)


def _duration(acts: tuple[Act, ...], rng: np.random.Generator) -> int:
    """Frames of a beat: a walk goes at 0.5 to 0.8 pixels a frame, jumps are whole, the rest is free."""
    for act in acts:
        if act.action == "walks":
            return round(abs(MARKS[act.end] - MARKS[act.start]) / rng.uniform(0.5, 0.8))
    if any(act.action == "jumps" for act in acts):
        return JUMP_PERIOD * int(rng.integers(1, 3))
    return int(rng.integers(20, 91))

"""How far a build is, from the nested phases that TensorRT reports."""

from __future__ import annotations

from dataclasses import dataclass

# The phase that takes nearly all of the time: a few of its steps are one profile.
_MAIN = "Computing profile costs"


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Progress:
    """Phases that begin, step and end; a phase under way counts as part of one step of its parent."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        self._phases[name] = _Phase(parent, max(steps, 1))

    def step(self, name: str, step: int) -> None:
        """The step of this number, from 0, is done."""
        if name in self._phases:
            self._phases[name].done = step + 1

    def finish(self, name: str) -> None:
        """A phase ends, whatever its steps."""
        self._phases.pop(name, None)

    @property
    def fraction(self) -> float:
        """Of the main phase, between 0 and 1; 0 before it has begun. It never falls."""
        if _MAIN in self._phases:
            self._fraction = max(self._fraction, self._of(_MAIN))
        return self._fraction

    def _of(self, name: str) -> float:
        phase = self._phases[name]
        within = max((self._of(child) for child, each in self._phases.items() if each.parent == name), default=0.0)
        return min((phase.done + within) / phase.steps, 1.0)

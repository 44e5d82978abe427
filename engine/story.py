"""The story: which prompt holds on which frame; optionally, how many frames, how fast, and from which
seed."""

import os
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nuwaxl.engine.checks import encodable_text, finite_number, read_text, shown, whole_number
from nuwaxl.errors import InputError
from nuwaxl.formats import parse_json, parse_toml

MAX_SEED = 2**64 - 1

_EXAMPLE = 'write [[scene]] tables such as: at = 0, prompt = "Fred walks in the park"'
_EXAMPLE_LINE = 'write a line for each caption, such as: {"frame": 0, "text": "Fred walks in the park"}'


@dataclass(frozen=True)
class Scene:
    """A prompt and the frame it holds from, until the next scene or the end."""

    at: int
    prompt: str


@dataclass(frozen=True)
class Story:
    """Prompts over frames.

    The first scene starts at frame 0, the others follow in rising order, and each holds until the next.
    `scenes` may be given as (at, prompt) pairs.

    Raises:
        InputError: no scene, something else than scenes, a prompt that is empty, scenes out of order, or a value out
            of its range.
    """

    scenes: tuple[Scene, ...]
    frames: int | None = None
    fps: float | None = None
    seed: int | None = None

    def __init__(
        self,
        scenes: Iterable[Scene | tuple[int, str]],
        *,
        frames: int | None = None,
        fps: float | None = None,
        seed: int | None = None,
    ) -> None:
        try:
            checked = tuple(scene if isinstance(scene, Scene) else Scene(*scene) for scene in scenes)
        except TypeError as error:
            raise InputError(
                expected="scenes as (at, prompt) pairs",
                found=shown(scenes),
                fix='give a list of pairs such as [(0, "Fred walks in the park")]',
            ) from error
        _check_scenes(checked)
        # Frames in the plain type: others may be numbers of numpy, which JSON has not.
        object.__setattr__(self, "scenes", tuple(Scene(int(scene.at), scene.prompt) for scene in checked))
        frames = None if frames is None else whole_number("frames", frames, least=1)
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "fps", None if fps is None else check_fps(fps))
        object.__setattr__(self, "seed", None if seed is None else check_seed(seed))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Story":
        """Read a story: a .toml of [[scene]] tables (at, prompt) or a caption .jsonl ({"frame": n, "text":
        "..."}).

        Raises:
            InputError: the file cannot be read or does not hold a story; the message names the file.
        """
        file = Path(path)
        suffix = file.suffix.lower()
        if suffix not in (".toml", ".jsonl"):
            raise InputError(
                expected="a story in a .toml or a .jsonl file",
                found=str(file),
                fix="rename or convert the file",
            )
        text = read_text(file, "a readable story")
        if not text.strip():
            fix = _EXAMPLE if suffix == ".toml" else _EXAMPLE_LINE
            raise InputError(expected=f"a story in {file}", found="an empty file", fix=fix)
        try:
            return _from_toml(text) if suffix == ".toml" else _from_jsonl(text)
        except InputError as error:
            raise InputError(expected=f"in {file}, {error.expected}", found=error.found, fix=error.fix) from error

    def prompt_at(self, frame: int) -> str:
        """The prompt that holds on `frame`, which may lie past the end of the story."""
        return self.scenes[bisect_right(self.scenes, frame, key=lambda scene: scene.at) - 1].prompt

    def prompts(self, last_frame: int) -> tuple[str, ...]:
        """The different prompts from frame 0 to `last_frame`, each once, in order of first use."""
        return tuple(dict.fromkeys(scene.prompt for scene in self.scenes if scene.at <= last_frame))


def check_seed(seed: Any) -> int:
    """A seed: a whole number of 64 bits without sign."""
    return whole_number("seed", seed, least=0, most=MAX_SEED)


def check_fps(fps: Any) -> float:
    """Frames a second: 1 to 240."""
    return finite_number("fps", fps, least=1, most=240)


def _check_scenes(scenes: tuple[Scene, ...]) -> None:
    if not scenes:
        raise InputError(expected="at least one scene", found="none", fix=_EXAMPLE)
    for number, scene in enumerate(scenes, start=1):
        whole_number(f"frame of scene {number}", scene.at, least=0)
        prompt = encodable_text(f"a prompt in scene {number}", scene.prompt, fix="say what the scene shows")
        if not prompt.strip():
            raise InputError(expected=f"a prompt in scene {number}", found=repr(prompt), fix="say what the scene shows")
    if scenes[0].at != 0:
        raise InputError(
            expected="the first scene at frame 0",
            found=f"at frame {scenes[0].at}",
            fix="add a scene at frame 0",
        )
    for number, (before, after) in enumerate(pairwise(scenes), start=2):
        if after.at <= before.at:
            raise InputError(
                expected=f"scene {number} after frame {before.at}",
                found=f"frame {after.at}",
                fix="put the scenes in rising order, one a frame",
            )


def _from_toml(text: str) -> Story:
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise InputError(expected="TOML", found=str(error), fix=_EXAMPLE) from error
    _known_keys(table, {"scene", "frames", "fps", "seed"}, "the story")
    entries = table.get("scene", [])
    if not isinstance(entries, list):
        raise InputError(expected="[[scene]] tables", found="a single [scene]", fix="double the brackets: [[scene]]")
    scenes = [_scene(entry, f"scene {number}", "at", "prompt") for number, entry in enumerate(entries, start=1)]
    return Story(scenes, frames=table.get("frames"), fps=table.get("fps"), seed=table.get("seed"))


def _from_jsonl(text: str) -> Story:
    scenes = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                entry = parse_json(line)
            except ValueError as error:
                raise InputError(
                    expected=f"JSON on line {number}",
                    found=str(error),
                    fix=_EXAMPLE_LINE,
                ) from error
            scenes.append(_scene(entry, f"line {number}", "frame", "text"))
    return Story(scenes)


def _scene(entry: Any, where: str, at: str, prompt: str) -> Scene:
    if not isinstance(entry, dict):
        raise InputError(expected=f"{at} and {prompt} in {where}", found=shown(entry), fix=f"give {at} and {prompt}")
    _known_keys(entry, {at, prompt}, where)
    for key in (at, prompt):
        if key not in entry:
            raise InputError(expected=f"{key} in {where}", found=f"only {sorted(entry)}", fix=f"add {key}")
    return Scene(at=entry[at], prompt=entry[prompt])


def _known_keys(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(table.keys() - known)
    if unknown:
        raise InputError(
            expected=f"only {', '.join(sorted(known))} in {where}",
            found=", ".join(unknown),
            fix="remove or correct it",
        )

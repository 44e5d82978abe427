"""The bundled story speaks the language of the demo model, and could be an episode of its cartoons."""

import re
from itertools import pairwise

from nuwaxl.bench.cli import bundled_story
from nuwaxl.engine import Plan
from nuwaxl.train.data.cartoon.script import CHARACTERS, JUMP_PERIOD, MARKS, SCENERIES

CAST = ("Mona", "Bruno")
PLACES = ("on the left", "in the middle", "on the right")
SCENES = bundled_story().scenes
ACT = r"(stands|waves|jumps|walks) (on the left|in the middle|on the right|to the left|to the right)"


def parse(prompt: str) -> tuple[dict[str, tuple[str, str]], str]:
    """Who does what where, and the scenery; checks the words."""
    scenery = next(name for name, phrase in SCENERIES.items() if prompt.endswith(f" {phrase}"))
    doing = prompt.removesuffix(f" {SCENERIES[scenery]}")
    names = CAST if " and " in doing else [name for name in CAST if doing.startswith(CHARACTERS[name])]
    acts = {}
    for name, part in zip(names, doing.split(" and "), strict=True):
        match = re.fullmatch(f"{name if len(names) == 2 else CHARACTERS[name]} {ACT}", part)
        assert match, prompt
        assert (match[1] == "walks") == match[2].startswith("to the"), prompt
        acts[name] = (match[1], match[2])
    return acts, scenery


def test_it_tells_every_frame_that_the_tree_of_1024_frames_reaches() -> None:
    plan = Plan(1024, 16)
    last = int(plan.frames_of(0)[-1])
    assert last == 3375
    assert last - 90 < SCENES[-1].at <= last


def test_it_is_rendered_at_the_speed_and_length_of_the_benchmark() -> None:
    story = bundled_story()
    assert (story.frames, story.fps) == (1024, 16)


def test_every_prompt_is_one_of_the_generators_captions() -> None:
    assert len(SCENES) > 60
    acts = [parse(scene.prompt) for scene in SCENES]
    assert {scenery for _, scenery in acts} == set(SCENERIES)
    assert {name for doing, _ in acts for name in doing} == set(CAST)
    assert {action for doing, _ in acts for action, _ in doing.values()} == {
        "stands",
        "walks",
        "waves",
        "jumps",
    }


def test_the_first_1024_frames_show_several_sceneries_and_both_characters() -> None:
    acts = [parse(scene.prompt) for scene in SCENES if scene.at < 1024]
    assert len({scenery for _, scenery in acts}) >= 4
    assert any(len(doing) == 2 for doing, _ in acts)


def test_scenes_last_as_long_as_actions_do_in_the_cartoons() -> None:
    for scene, following in pairwise(SCENES):
        frames = following.at - scene.at
        assert 20 <= frames <= 90, scene
        acts, _ = parse(scene.prompt)
        if any(action == "walks" for action, _ in acts.values()):
            speeds = [(MARKS[far] - MARKS[0]) / frames for far in (1, 2)]  # one mark on, or two
            assert any(0.5 <= speed <= 0.8 for speed in speeds), scene
        elif any(action == "jumps" for action, _ in acts.values()):
            assert frames % JUMP_PERIOD == 0, scene


def test_characters_stay_where_they_walked_to_within_a_shot() -> None:
    """Where the same characters stay in one scenery, standing on a mark follows from the walk before it."""
    checked = 0
    for scene, following in pairwise(SCENES):
        (before, scenery), (after, next_scenery) = parse(scene.prompt), parse(following.prompt)
        if scenery != next_scenery or before.keys() != after.keys():
            continue
        for name, (action, place) in before.items():
            next_action, next_place = after[name]
            if action != "walks" and next_action != "walks":
                assert place == next_place, following
            elif action != "walks":
                assert next_place != place.replace("on the", "to the"), following  # no walk into the wall
            elif next_action != "walks":
                assert next_place != PLACES[2 if place == "to the left" else 0], following
            checked += 1
    assert checked > 60

"""Stories: which prompt holds on which frame, and what is refused."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nuwaxl.engine.story import Scene, Story
from nuwaxl.errors import InputError

SCENE = '[[scene]]\nat = 0\nprompt = "a"\n'


def load(folder: Path, text: str, name: str = "story.toml") -> Story:
    """Write a story and load it."""
    path = folder / name
    path.write_text(text)
    return Story.load(path)


def test_a_toml_story_gives_scenes_and_settings(tmp_path: Path) -> None:
    text = f'frames = 40\nfps = 12.5\nseed = 18446744073709551\n{SCENE}[[scene]]\nat = 7\nprompt = "b"\n'
    story = load(tmp_path, text)
    assert story.scenes == (Scene(0, "a"), Scene(7, "b"))
    assert (story.frames, story.fps, story.seed) == (40, 12.5, 18446744073709551)


def test_captions_are_a_story_and_hold_until_the_next(tmp_path: Path) -> None:
    story = load(tmp_path, '{"frame": 0, "text": "a"}\n\n{"frame": 5, "text": "b"}\n', "captions.jsonl")
    assert [story.prompt_at(frame) for frame in (0, 4, 5, 10**9)] == ["a", "a", "b", "b"]
    assert story.frames is None


def test_each_prompt_is_listed_once_and_only_if_it_is_reached() -> None:
    story = Story([(0, "a"), (3, "b"), (5, "a"), (9, "c")])
    assert story.prompts(last_frame=8) == ("a", "b")
    assert story.prompts(last_frame=9) == ("a", "b", "c")


@given(st.sets(st.integers(1, 500), max_size=20), st.integers(0, 600))
def test_the_prompt_of_a_frame_is_that_of_the_last_scene_that_began(starts: set[int], frame: int) -> None:
    scenes = [(at, f"scene at {at}") for at in sorted({0, *starts})]
    expected = next(prompt for at, prompt in reversed(scenes) if at <= frame)
    assert Story(scenes).prompt_at(frame) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file"),
        (" \n", "an empty file"),
        ("frames = 3", "at least one scene"),
        ("scene = [", "TOML"),
        ('[scene]\nat = 0\nprompt = "a"', "[[scene]]"),
        ('[[scene]]\nat = 0\nprompt = ""', "a prompt in scene 1"),
        ('[[scene]]\nat = 0\nprompt = "  "', "a prompt in scene 1"),
        ("[[scene]]\nat = 0\nprompt = 3", "a prompt in scene 1"),
        ("[[scene]]\nat = 0", "add prompt"),
        ('[[scene]]\nprompt = "a"', "add at"),
        ('[[scene]]\nat = 4\nprompt = "a"', "first scene at frame 0; found at frame 4"),
        ('[[scene]]\nat = 0.0\nprompt = "a"', "whole number"),
        ('[[scene]]\nat = true\nprompt = "a"', "whole number"),
        ('[[scene]]\nat = "0"\nprompt = "a"', "whole number"),
        ('[[scene]]\nat = -1\nprompt = "a"', "at least 0; found -1"),
        (
            SCENE + '[[scene]]\nat = 9\nprompt = "b"\n[[scene]]\nat = 4\nprompt = "c"',
            "scene 3 after frame 9; found",
        ),
        (
            SCENE + '[[scene]]\nat = 9\nprompt = "b"\n[[scene]]\nat = 9\nprompt = "c"',
            "scene 3 after frame 9; found",
        ),
        (SCENE + "until = 4", "until"),
        ("lenght = 4\n" + SCENE, "lenght"),
        ("frames = 0\n" + SCENE, "frames: a whole number of at least 1; found 0"),
        ("frames = 1.5\n" + SCENE, "found 1.5"),
        ("fps = 0\n" + SCENE, "fps: a finite number from 1 to 240; found 0"),
        ("fps = inf\n" + SCENE, "fps"),
        ("fps = 1000\n" + SCENE, "1 to 240"),
        ("seed = -1\n" + SCENE, "seed"),
        pytest.param("fps = " + "9" * 400 + "\n" + SCENE, "fps", id="fps of 400 digits"),
        pytest.param("frames = " + "9" * 5000 + "\n" + SCENE, "TOML", id="frames of 5000 digits"),
        pytest.param("x = " + "[" * 20_000, "nested too deeply", id="nested"),
    ],
)
def test_a_bad_toml_story_is_refused_in_one_line_that_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert said in message
    assert str(tmp_path / "story.toml") in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an empty file; write a line for each caption"),
        ("hello", "JSON on line 1"),
        ('{"frame": 0, "text": "a"}\n{"frame": 3}', "text in line 2"),
        ('{"frame": 0, "text": "a"}\n[1]', "line 2"),
        ('{"frame": 1, "text": "a"}', "first scene at frame 0"),
        ('{"frame": 0, "text": "a", "score": 1}', "score"),
        ('{"frame": 0, "text": "a"}\n{"frame": 0, "text": "b"}', "scene 2 after frame 0"),
        ('{"frame": NaN, "text": "a"}', "whole number"),
        (r'{"frame": 0, "text": "half a pair: \ud800"}', "a prompt in scene 1"),
        pytest.param("[" * 100_000, "nested too deeply", id="nested"),
    ],
)
def test_bad_captions_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, "captions.jsonl")
    assert said in str(caught.value)


@pytest.mark.parametrize("scenes", ["a red sky", ["a red sky"], {0: "a red sky"}, [(0, "a", 3)], [3], None])
def test_what_are_no_scenes_is_refused(scenes: Any) -> None:
    with pytest.raises(InputError, match=r"pairs; found .*; give a list of pairs such as \[\(0,"):
        Story(scenes)


def test_a_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    assert load(tmp_path, SCENE, "STORY.TOML") == load(tmp_path, '{"frame": 0, "text": "a"}', "STORY.JSONL")


def test_a_story_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Story.load(tmp_path / "absent.toml")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(InputError, match="readable story"):
        Story.load(tmp_path / "folder.toml")
    (tmp_path / "latin.toml").write_bytes(b'prompt = "\xe9"')
    with pytest.raises(InputError, match="UTF-8"):
        Story.load(tmp_path / "latin.toml")
    with pytest.raises(InputError, match=r"\.toml or a \.jsonl"):
        Story.load(tmp_path / "story.txt")
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    with pytest.raises(InputError, match="symbolic links"):
        Story.load(tmp_path / "loop.toml")
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(InputError, match="not a regular file"):
        Story.load(tmp_path / "pipe.toml")
    with pytest.raises(InputError, match="null"):
        Story.load("a\0b.toml")


def test_the_mark_that_some_editors_put_in_front_is_no_part_of_the_story(tmp_path: Path) -> None:
    (tmp_path / "story.toml").write_text(SCENE, encoding="utf-8-sig")
    (tmp_path / "story.jsonl").write_text('{"frame": 0, "text": "a"}', encoding="utf-8-sig")
    for name in ("story.toml", "story.jsonl"):
        assert Story.load(tmp_path / name).scenes == (Scene(0, "a"),)


@given(st.binary(max_size=200))
def test_whatever_is_in_a_file_is_a_story_or_an_input_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("story.toml", "story.jsonl"):
            (Path(folder) / name).write_bytes(content)
            with suppress(InputError):
                Story.load(Path(folder) / name)


def test_a_story_from_python_is_checked_alike() -> None:
    with pytest.raises(InputError, match="at least one scene"):
        Story([])
    with pytest.raises(InputError, match="scene 2 after frame 0"):
        Story([(0, "a"), Scene(0, "b")])

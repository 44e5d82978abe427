"""The cartoon generator: same seed same film, captions say what is seen, characters keep their look."""

import itertools
import json
from pathlib import Path

import av
import numpy as np
import pytest

from nuwaxl.errors import InputError
from nuwaxl.train.cli import main
from nuwaxl.train.data.cartoon import FPS, SIZE, generate
from nuwaxl.train.data.cartoon.characters import COLORS
from nuwaxl.train.data.cartoon.episode import draw_moment, draw_script, episode_script
from nuwaxl.train.data.cartoon.script import CHARACTERS, MARKS, SCENERIES, Act, Beat, Moment, Shot

FRAMES = 200
SEED = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cartoons")
    generate(folder, episodes=1, frames=FRAMES, seed=SEED)
    return folder


def long_scripts(count: int = 24):
    return [episode_script(number, frames=3600, seed=SEED) for number in range(count)]


def picture(name: str, scenery: str, action: str = "stands", start: int = 1, end: int = 1, since: int = 8):
    beat = Beat(0, 40, (Act(name, action, start, end),))
    return draw_moment(Moment(Shot(0, scenery, (beat,)), beat, since), frame=since).astype(int)


def pixels_of(name: str, image: np.ndarray, tolerance: int) -> np.ndarray:
    """Mask (H, W) of the pixels in the character's own colour."""
    return np.abs(image.astype(int) - COLORS[name]).max(axis=-1) <= tolerance


def test_the_same_seed_writes_the_same_files_alone_or_in_two_processes(folder: Path, tmp_path: Path) -> None:
    paths = generate(tmp_path, episodes=2, frames=FRAMES, seed=SEED)
    assert [path.name for path in paths] == ["episode_0000.mp4", "episode_0001.mp4"]
    for name in ("episode_0000.mp4", "episode_0000.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "episode_0001.jsonl").read_text() != (tmp_path / "episode_0000.jsonl").read_text()


def test_another_seed_writes_another_episode() -> None:
    texts = [[m.text for m in episode_script(0, frames=500, seed=seed).moments()] for seed in (0, 1)]
    assert texts[0] != texts[1]


def test_the_mp4_decodes_to_as_many_frames_as_asked_and_to_what_was_drawn(folder: Path) -> None:
    with av.open(str(folder / "episode_0000.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        assert container.streams.video[0].average_rate == FPS
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    drawn = np.stack(list(draw_script(episode_script(0, frames=FRAMES, seed=SEED))))
    assert decoded.shape == drawn.shape == (FRAMES, SIZE, SIZE, 3)
    errors = np.abs(decoded.astype(int) - drawn).mean(axis=(1, 2, 3))
    assert errors.max() < 3.0
    assert np.abs(drawn[0].astype(int) - drawn[-1]).mean() > 3.0, "the film moves, so the errors compare something"


def test_every_frame_has_a_caption_line_and_the_text_changes(folder: Path) -> None:
    lines = (folder / "episode_0000.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["frame"] for entry in entries] == list(range(FRAMES))
    assert len({entry["text"] for entry in entries}) >= 3


def test_long_episodes_fill_exactly_their_frames_with_shots_and_beats_of_the_promised_length() -> None:
    for frames in (3376, 3600):
        assert sum(1 for _ in episode_script(0, frames=frames, seed=SEED).moments()) == frames
    for script in long_scripts():
        assert len(script.shots) >= 9
        for shot in script.shots:
            assert 60 <= shot.frames <= 400
            assert all(20 <= beat.frames <= 90 for beat in shot.beats)


def test_captions_are_short_and_change_with_every_beat() -> None:
    for script in long_scripts():
        for shot in script.shots:
            texts = [shot.text(beat) for beat in shot.beats]
            assert all(len(text.split()) <= 18 for text in texts)
            for (before, text), (beat_before, beat) in zip(
                itertools.pairwise(texts), itertools.pairwise(shot.beats), strict=True
            ):
                assert text != before or (beat_before.acts != beat.acts and "walks" in text)


def test_the_cast_and_the_sceneries_vary_as_promised() -> None:
    scripts = long_scripts()
    assert {len(script.cast) for script in scripts} == {1, 2}
    assert {name for script in scripts for name in script.cast} == set(CHARACTERS)
    shots = [shot for script in scripts for shot in script.shots]
    together = sum(len(shot.beats[0].acts) == 2 for shot in shots) / len(shots)
    assert 0.15 < together < 0.45
    for script in scripts:
        sceneries = [shot.scenery for shot in script.shots]
        assert len(set(sceneries)) >= 2
        assert {act.character for shot in script.shots for beat in shot.beats for act in beat.acts} <= set(script.cast)
    assert any(a.scenery == b.scenery for s in scripts for a, b in itertools.pairwise(s.shots))
    assert {shot.scenery for shot in shots} == set(SCENERIES)


def test_within_a_shot_everyone_goes_on_from_where_they_were_and_nobody_shares_or_crosses_a_place() -> None:
    walks = 0
    for shot in (shot for script in long_scripts() for shot in script.shots):
        for before, beat in itertools.pairwise(shot.beats):
            assert [act.end for act in before.acts] == [act.start for act in beat.acts]
        for beat in shot.beats:
            for act in beat.acts:
                if act.action == "walks":
                    walks += 1
                    assert 0.45 <= abs(MARKS[act.end] - MARKS[act.start]) / beat.frames <= 0.85
            if len(beat.acts) == 2:
                one, two = beat.acts
                assert (one.start - two.start) * (one.end - two.end) > 0
    assert walks > 50


@pytest.mark.parametrize("scenery", SCENERIES)
@pytest.mark.parametrize("name", CHARACTERS)
def test_a_character_is_seen_where_the_caption_places_it_and_only_if_named(name: str, scenery: str) -> None:
    other = "Rex" if name != "Rex" else "Mona"
    for place, mark in enumerate(MARKS):
        seen = pixels_of(name, picture(name, scenery, start=place, end=place), tolerance=4)
        assert seen.sum() >= 40
        assert abs(np.nonzero(seen)[1].mean() - mark) < 4
        absent = pixels_of(name, picture(other, scenery, start=place, end=place), tolerance=4)
        assert absent.sum() <= 8


def test_whoever_a_caption_names_is_in_the_written_frame_in_the_same_colour_all_episode_long(
    folder: Path,
) -> None:
    captions = [json.loads(line)["text"] for line in (folder / "episode_0000.jsonl").read_text().splitlines()]
    with av.open(str(folder / "episode_0000.mp4")) as container:
        for text, frame in zip(captions, container.decode(video=0), strict=True):
            image = frame.to_ndarray(format="rgb24")
            named = [name for name in CHARACTERS if name in text.split()]
            assert named
            for name in named:
                assert pixels_of(name, image, tolerance=40).sum() >= 25, text


def test_actions_look_different_and_neighbouring_frames_of_a_walk_differ_little() -> None:
    standing = picture("Mona", "city")
    assert np.abs(picture("Mona", "city", "waves") - standing).sum() > 500
    lowest = {
        action: np.nonzero(pixels_of("Mona", picture("Mona", "city", action), 4))[0].max()
        for action in ("stands", "jumps")
    }
    assert lowest["jumps"] <= lowest["stands"] - 6
    walk = [picture("Mona", "city", "walks", 0, 2, since) for since in range(30)]
    centres = [np.nonzero(pixels_of("Mona", image, 4))[1].mean() for image in walk]
    steps = np.diff(centres)
    assert steps.min() > 0
    assert steps.max() < 2


def test_sceneries_differ_strongly() -> None:
    images = [picture("Pip", scenery) for scenery in SCENERIES]
    for one, two in itertools.combinations(images, 2):
        assert np.abs(one - two).mean() > 25


@pytest.mark.parametrize(
    ("episodes", "frames", "seed", "named"),
    [(0, 10, 0, "episodes"), (1, 0, 0, "frames"), (1, 10, -1, "seed")],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, episodes: int, frames: int, seed: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        generate(tmp_path / "out", episodes, frames, seed)
    assert not (tmp_path / "out").exists()


def test_an_episode_that_is_interrupted_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nuwaxl.train.data.cartoon.episode.draw_character", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 1, 10, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["episode_0000.jsonl"]


def test_episodes_that_are_there_are_drawn_again_by_force_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "cartoon", str(tmp_path), "--episodes", "1", "--frames"]
    assert main([*command, "10"]) == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for name in ("episode_0000.jsonl", "episode_0001.mp4", "mine.txt"):
        (tmp_path / name).write_text("mine")
    capsys.readouterr()
    assert main([*command, "12"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("nuwaxl-train: error: expected none of the 1 episodes in ")
    assert "found episode_0000.mp4 and 1 more; name another folder, or draw them anew by --force" in said
    assert (tmp_path / "episode_0000.mp4").read_bytes() == before["episode_0000.mp4"]
    (tmp_path / "episode_0000.mp4").unlink()
    assert main([*command, "12"]) == 2, "captions of one's own are not overwritten either"
    assert (tmp_path / "episode_0000.jsonl").read_text() == "mine"
    assert main([*command, "10", "--force"]) == 0
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert (tmp_path / "episode_0001.mp4").read_text() == (tmp_path / "mine.txt").read_text() == "mine"


def test_an_interrupted_episode_by_force_leaves_no_old_video_with_new_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path, 1, 10, 0)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("nuwaxl.train.data.cartoon.episode.draw_character", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path, 1, 12, 1, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["episode_0000.jsonl"]


def test_a_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        generate(tmp_path / "file" / "out", 1, 10, 0)

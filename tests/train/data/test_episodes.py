"""A folder of episodes, and the training segments sampled from it."""

from pathlib import Path

import numpy as np
import pytest

from nuwaxl.errors import InputError
from nuwaxl.train.data.captions import Captions
from nuwaxl.train.data.cartoon import SIZE, generate
from nuwaxl.train.data.episodes import Episode, EpisodeFolder

L, M = 6, 3  # a tree of depth 3 spans 5^3 + 1 = 126 frames


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("episodes")
    generate(folder, episodes=1, frames=126, seed=4)
    for suffix in (".mp4", ".jsonl"):
        (folder / f"episode_0000{suffix}").rename(folder / f"long{suffix}")
    generate(folder, episodes=1, frames=30, seed=2)
    (folder / "notes.txt").write_text("not a video")
    return folder


def test_videos_are_listed_in_order_of_name_with_their_captions(folder: Path) -> None:
    episodes = EpisodeFolder(folder)
    assert len(episodes) == 2
    assert [episode.video.name for episode in episodes.episodes] == ["episode_0000.mp4", "long.mp4"]
    assert [episode.frames for episode in episodes.episodes] == [30, 126]
    first = episodes.episodes[0]
    assert (first.height, first.width, first.fps) == (SIZE, SIZE, 16.0)
    assert first.captions == Captions.load(folder / "episode_0000.jsonl")


def test_segments_come_from_all_depths_at_their_stride_and_stay_within_the_episode(folder: Path) -> None:
    episodes, rng = EpisodeFolder(folder), np.random.default_rng(0)
    seen = [episodes.sample_segment(rng, L, M) for _ in range(600)]
    for segment in seen:
        stride = (L - 1) ** (M - 1 - segment.depth)
        assert segment.frames.dtype == np.int64
        np.testing.assert_array_equal(np.diff(segment.frames), np.full(L - 1, stride))
        assert segment.frames[0] >= 0
        assert segment.frames[-1] < episodes.episodes[segment.episode].frames
        given = [1, 0, 0, 0, 0, 1] if segment.depth else [0] * L
        np.testing.assert_array_equal(segment.mask, np.array(given, np.float32))
    for depth in range(M):
        assert 150 <= sum(segment.depth == depth for segment in seen) <= 250
    assert {(s.depth, s.episode) for s in seen} == {(0, 1), (1, 0), (1, 1), (2, 0), (2, 1)}, (
        "the short one fits not all"
    )
    starts = {int(s.frames[0]) for s in seen if s.depth == 2 and s.episode == 0}
    assert starts == set(range(30 - L + 1)), "every start that fits is drawn, the last one too"


def test_depths_follow_the_probabilities_given(folder: Path) -> None:
    episodes, rng = EpisodeFolder(folder), np.random.default_rng(0)
    depths = [episodes.sample_segment(rng, L, M, (0.8, 0.0, 0.2)).depth for _ in range(200)]
    assert 130 <= depths.count(0) <= 190
    assert depths.count(1) == 0


def test_sampling_is_a_function_of_the_generator(folder: Path) -> None:
    episodes = EpisodeFolder(folder)
    one, two = ([episodes.sample_segment(np.random.default_rng(seed), L, M) for seed in range(5)] for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert (a.episode, a.depth) == (b.episode, b.depth)
        np.testing.assert_array_equal(a.frames, b.frames)


def test_a_segment_has_the_caption_of_each_of_its_frames(folder: Path) -> None:
    episodes = EpisodeFolder(folder)
    segment = episodes.sample_segment(np.random.default_rng(0), L, M, (1, 0, 0))
    captions = episodes.episodes[segment.episode].captions
    texts = episodes.texts(segment)
    assert texts == [captions.text_at(frame) for frame in (0, 25, 50, 75, 100, 125)]
    assert len(set(texts)) > 1


def test_at_paper_size_the_global_segment_spans_3376_frames(folder: Path) -> None:
    episodes = EpisodeFolder(folder)
    exact = Episode(folder / "exact.mp4", 3376, SIZE, SIZE, 16.0, Captions((0,), ("a",)))
    episodes.episodes.append(exact)
    segment = episodes.sample_segment(np.random.default_rng(0), 16, 3, (1, 0, 0))
    assert segment.episode == 2
    np.testing.assert_array_equal(segment.frames, 225 * np.arange(16))


def test_a_folder_with_too_short_episodes_for_the_depth_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"3376 frames .*126 frames at most"):
        EpisodeFolder(folder).sample_segment(np.random.default_rng(0), 16, 3, (1, 0, 0))


def test_a_missing_or_empty_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        with pytest.raises(InputError, match=name):
            EpisodeFolder(tmp_path / name)


def test_a_video_without_captions_or_with_those_of_a_longer_one_is_refused_by_name(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes((folder / "episode_0000.mp4").read_bytes())
    with pytest.raises(InputError, match=r"a\.jsonl"):
        EpisodeFolder(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"frame": 0, "text": "a"}\n{"frame": 30, "text": "b"}\n')
    with pytest.raises(InputError, match=r"0 to 29 in .*a\.jsonl; found frame 30"):
        EpisodeFolder(tmp_path)

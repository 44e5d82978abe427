"""The latent cache: each frame once, in windows of L, keyed by the weights."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nuwaxl.errors import InputError
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.latents import LatentCache
from nuwaxl.train.data.videos import to_network
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.resume import fingerprint
from tests.train.tiny import TKLVAE_TINY, randomise

LENGTH = 10  # does not divide the 96 frames of an episode


@pytest.fixture(scope="module")
def network() -> TKLVAE:
    network = TKLVAE(TKLVAE_TINY)
    randomise(network)
    return network


@pytest.fixture(scope="module")
def cache(cartoons: Path, network: TKLVAE, tmp_path_factory: pytest.TempPathFactory) -> LatentCache:
    cache = LatentCache(tmp_path_factory.mktemp("latents"), network, EpisodeFolder(cartoons), LENGTH)
    cache.fill([0, 1], show_progress=False)
    return cache


def test_latents_are_those_of_the_window_that_holds_the_frame(cache: LatentCache, network: TKLVAE) -> None:
    frames = cache.videos.read(1, range(20, 30))
    with torch.inference_mode():
        expected = network.encode(to_network(frames[None], torch.device("cpu")))[0].numpy()
    np.testing.assert_allclose(cache.read(1, np.arange(20, 30)), expected, rtol=2e-3, atol=2e-3)
    far = cache.read(1, np.array([29, 5, 95]))
    assert far.dtype == np.float32
    np.testing.assert_array_equal(far[0], cache.read(1, np.arange(20, 30))[9])


def test_every_frame_is_there_and_the_last_window_repeats_the_last_frame(cache: LatentCache, network: TKLVAE) -> None:
    assert cache.read(0, np.arange(96)).shape[0] == 96
    with pytest.raises(IndexError):
        cache.read(0, np.array([96]))
    window = cache.videos.read(0, range(90, 96))[[0, 1, 2, 3, 4, 5, 5, 5, 5, 5]]
    with torch.inference_mode():
        expected = network.encode(to_network(window[None], torch.device("cpu")))[0, :6].numpy()
    np.testing.assert_allclose(cache.read(0, np.arange(90, 96)), expected, rtol=2e-3, atol=2e-3)


def test_other_weights_have_a_cache_of_their_own(cache: LatentCache, network: TKLVAE) -> None:
    other = TKLVAE(TKLVAE_TINY)
    randomise(other, seed=1)
    assert LatentCache(cache.folder.parent, other, cache.videos, LENGTH).folder != cache.folder
    assert LatentCache(cache.folder.parent, network, cache.videos, LENGTH).folder == cache.folder


def test_what_is_cached_is_not_encoded_again(cache: LatentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(episode: int, *_: object) -> np.ndarray:
        raise AssertionError(f"episode {episode} encoded again")

    monkeypatch.setattr(cache, "_encode", fail)
    cache.fill([0, 1], show_progress=False)


@pytest.fixture
def copies(cartoons: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(cartoons, tmp_path / "videos"))


def test_the_key_of_a_video_is_its_name_size_time_of_change_and_sample(
    copies: Path, network: TKLVAE, tmp_path: Path
) -> None:
    videos = EpisodeFolder(copies)
    cache = LatentCache(tmp_path / "cache", network, videos, LENGTH)
    video = videos.episodes[0].video
    first = cache.path(0)
    assert cache.path(0) == first
    assert cache.path(1) != first
    status = video.stat()
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    later = cache.path(0)
    with video.open("ab") as file:
        file.write(b"\0")
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    longer = cache.path(0)
    with video.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    os.utime(video, ns=(status.st_atime_ns, status.st_mtime_ns))
    other = cache.path(0)
    moved = copies.rename(tmp_path / "moved")
    elsewhere = LatentCache(tmp_path / "cache", network, EpisodeFolder(moved), LENGTH).path(0)
    assert len({first, later, longer, other}) == 4
    assert elsewhere == other, "those of a moved folder are not encoded again"


def test_the_key_of_a_network_is_its_weights_configuration_and_window_length(
    cache: LatentCache, network: TKLVAE
) -> None:
    heads = TKLVAE(replace(TKLVAE_TINY, temporal_heads=1))
    heads.load_state_dict(network.state_dict())  # the same weights compute something else
    shifted = TKLVAE(TKLVAE_TINY)
    shifted.load_state_dict(network.state_dict())
    shifted.latent_shift += 1
    folders = {
        LatentCache(cache.folder.parent, other, cache.videos, length).folder
        for other, length in ((network, LENGTH), (network, LENGTH + 1), (heads, LENGTH), (shifted, LENGTH))
    }
    assert len(folders) == 4


@pytest.mark.parametrize("damage", ["fewer frames", "other type", "truncated", "empty"])
def test_a_cached_array_that_is_not_of_its_video_is_refused_by_name(
    copies: Path, network: TKLVAE, tmp_path: Path, damage: str
) -> None:
    cache = LatentCache(tmp_path / "cache", network, EpisodeFolder(copies), LENGTH)
    cache.fill([0], show_progress=False)
    path = cache.path(0)
    array, content = np.load(path), path.read_bytes()
    assert array.shape[0] == 96
    if damage == "fewer frames":
        np.save(path, array[:-1])
    elif damage == "other type":
        np.save(path, array.astype(np.float32))
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    again = LatentCache(tmp_path / "cache", network, cache.videos, LENGTH)
    with pytest.raises(InputError, match=path.name):
        again.fill([0], show_progress=False)
    with pytest.raises(InputError, match=path.name):
        again.read(0, np.arange(3))
    path.write_bytes(content)
    np.testing.assert_array_equal(again.read(0, np.arange(96)), array.astype(np.float32))


def test_a_cache_that_cannot_be_made_is_refused_by_name(cartoons: Path, network: TKLVAE, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = LatentCache(tmp_path / "file", network, EpisodeFolder(cartoons), LENGTH)
    with pytest.raises(InputError, match=r"latents that can be made at .*file; found Not a directory"):
        cache.fill([0], show_progress=False)


def test_another_process_may_fill_the_same_cache_meanwhile(
    cartoons: Path, network: TKLVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, save = EpisodeFolder(cartoons), np.save

    def fill() -> LatentCache:
        cache = LatentCache(tmp_path, network, videos, LENGTH)
        cache.fill([0], show_progress=False)
        return cache

    def save_as_the_other_does(path: Path, array: np.ndarray) -> None:
        save(path, array)
        monkeypatch.setattr(np, "save", save)
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            fill()

    monkeypatch.setattr(np, "save", save_as_the_other_does)
    cache = fill()
    assert [*cache.folder.iterdir()] == [cache.path(0)]


def test_a_name_that_is_no_text_has_latents_and_a_fingerprint(cartoons: Path, network: TKLVAE, tmp_path: Path) -> None:
    stem = os.fsdecode(b"caf\xe9")
    try:
        for suffix in (".mp4", ".jsonl"):
            shutil.copy(cartoons / f"episode_0000{suffix}", tmp_path / f"{stem}{suffix}")
    except OSError:
        pytest.skip("a file system whose names are text")
    videos = EpisodeFolder(tmp_path)
    assert fingerprint(videos).startswith("1 videos, ")
    cache = LatentCache(tmp_path / "cache", network, videos, LENGTH)
    cache.fill([0], show_progress=False)
    assert cache.read(0, np.arange(3)).shape[0] == 3


def test_an_interrupted_fill_keeps_what_is_whole_and_takes_nothing_else_for_it(
    cartoons: Path, network: TKLVAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LatentCache(tmp_path, network, EpisodeFolder(cartoons), LENGTH)
    encode, save = cache._encode, np.save

    def stop(path: Path, array: np.ndarray) -> None:
        save(path, array[:7])
        raise KeyboardInterrupt

    cache.fill([0], show_progress=False)
    monkeypatch.setattr(np, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        cache.fill([0, 1], show_progress=False)
    monkeypatch.setattr(np, "save", save)
    encoded = []
    monkeypatch.setattr(cache, "_encode", lambda episode, *more: encoded.append(episode) or encode(episode, *more))
    cache.fill([0, 1], show_progress=False)
    assert encoded == [1]
    assert cache.read(1, np.arange(96)).shape[0] == 96
    assert len(list(cache.folder.iterdir())) == 2

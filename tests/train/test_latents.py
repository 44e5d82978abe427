"""The latent cache: each frame once, in windows of L, keyed by the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.latents import LatentCache
from nuwaxl.train.data.videos import to_network
from nuwaxl.train.networks.tklvae import TKLVAE
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
    def fail(episode: int) -> np.ndarray:
        raise AssertionError(f"episode {episode} encoded again")

    monkeypatch.setattr(cache, "_encode", fail)
    cache.fill([0, 1], show_progress=False)

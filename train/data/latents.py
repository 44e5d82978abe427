"""A cache of T-KLVAE latents, so that MTD's training does not encode a frame again each time it sees it.

Every frame has one latent whatever the stride of the segment that asks for it: videos are encoded in windows of L
consecutive frames, as they are decoded after a render.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nuwaxl.errors import InputError, reason
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.kept import file_identity
from nuwaxl.train.data.videos import to_network
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.progress import Progress


class LatentCache:
    """Latents of whole videos as float16 .npy files, one a video, below `folder`/<digest of network and length>/.

    The digest is of weights, configuration and window length L. A file is named by its video's name, size, time of
    change and a sample of its bytes, so that a video that was replaced is encoded again, and one that was moved is not.
    """

    def __init__(self, folder: Path, network: TKLVAE, videos: EpisodeFolder, length: int) -> None:
        self.folder = folder / _digest(network, length)
        self.network, self.videos, self.length = network, videos, length
        self._maps: dict[int, np.ndarray] = {}

    def path(self, episode: int) -> Path:
        video = self.videos.episodes[episode].video
        key = os.fsencode(" ".join(map(str, file_identity(video))))
        return self.folder / f"{video.stem}-{hashlib.sha256(key).hexdigest()[:12]}.npy"

    def fill(self, episodes: Sequence[int], show_progress: bool) -> None:
        """Encode the episodes that are not cached yet; what an interrupted call finished is kept.

        Raises InputError, naming the file, for a cached array that is not of its video and for a video that fails, or
        if the cache's folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                expected=f"a folder for latents that can be made at {self.folder.parent}",
                found=reason(error),
                fix="name another by [training] latents",
            ) from error
        missing = []
        for episode in episodes:
            if self.path(episode).exists():
                self._array(episode)
            else:
                missing.append(episode)
        frames = sum(self.videos.episodes[episode].frames for episode in missing)
        with Progress("encoding frame", frames, show_progress) as progress:
            for episode in missing:
                # Of this process: another training may fill the same cache.
                partial = self.path(episode).with_suffix(f".{os.getpid()}.partial.npy")
                try:
                    np.save(partial, self._encode(episode, progress))
                    partial.replace(self.path(episode))
                finally:
                    partial.unlink(missing_ok=True)

    @torch.inference_mode()
    def _encode(self, episode: int, progress: Progress) -> np.ndarray:
        device = next(self.network.parameters()).device
        frames = self.videos.episodes[episode].frames
        latents: list[np.ndarray] = []
        for start in range(0, frames, self.length):
            window = self.videos.read(episode, range(start, min(start + self.length, frames)))
            # The last window may be short: it is filled up with its last frame.
            window = window[np.minimum(np.arange(self.length), len(window) - 1)]
            latent = self.network.encode(to_network(window[None], device))[0]
            latents.append(latent[: frames - start].cpu().numpy().astype(np.float16))
            progress.advance(len(latents[-1]))
        return np.concatenate(latents)

    def read(self, episode: int, frames: np.ndarray) -> np.ndarray:
        """Latents x_0 of frames (L,), float32 (L, c, h, w)."""
        return np.asarray(self._array(episode)[frames], dtype=np.float32)

    def _array(self, episode: int) -> np.ndarray:
        """The cached latents of a whole video, float16 (frames, c, h, w), not read into memory."""
        if episode not in self._maps:
            path, video = self.path(episode), self.videos.episodes[episode]
            f = self.network.config.downsampling
            shape = (video.frames, self.network.config.latent_channels, video.height // f, video.width // f)
            try:
                array = np.load(path, mmap_mode="r")
                found = f"{array.dtype} of {array.shape}"
            except (OSError, ValueError, EOFError) as error:
                array, found = None, reason(error)
            if array is None or array.shape != shape or array.dtype != np.float16:
                raise InputError(
                    expected=f"latents of {video.video}, float16 of {shape}, in {path}",
                    found=found,
                    fix="remove the file: it will be made again",
                )
            self._maps[episode] = array
        return self._maps[episode]


def _digest(network: TKLVAE, length: int) -> str:
    # Heads and groups change what the same weights compute.
    digest = hashlib.sha256(f"windows of {length} by {network.config}".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]

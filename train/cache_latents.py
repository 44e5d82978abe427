"""Filling the latent cache ahead of a training of MTD, as that training would."""

from __future__ import annotations

from pathlib import Path

import torch

from nuwaxl.errors import InputError
from nuwaxl.train import checkpoint
from nuwaxl.train.config import ModelConfig, from_table
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.latents import LatentCache
from nuwaxl.train.mtd import MTDTraining
from nuwaxl.train.networks.tklvae import TKLVAE
from nuwaxl.train.run import read_tables


def cache_latents(
    folder: Path, config: Path, tklvae: str | None, out: str | None, device: torch.device, show_progress: bool
) -> list[Path]:
    """Encode the videos of a folder that are not cached yet; the files of all of them.

    `config` is the configuration of the MTD training to come; `tklvae` and `out` replace its training.tklvae and
    training.latents. Raises InputError, naming the file, if a video, its captions or the weights cannot be used.
    """
    tables = read_tables(config)
    given = {name: value for name, value in (("tklvae", tklvae), ("latents", out)) if value is not None}
    training = from_table(MTDTraining, {**tables.get("training", {}), **given}, f"[training] of {config}")
    base = ModelConfig.load(Path(training.init) / "config.json") if training.init else ModelConfig()
    model = base.replaced({name: t for name, t in tables.items() if name not in ("run", "training")}, str(config))
    network = TKLVAE(model.tklvae)
    checkpoint.load_into(network, Path(training.tklvae))
    network.to(device, memory_format=torch.channels_last).eval()
    videos = EpisodeFolder(folder, training.episodes, show_progress)
    height, width = videos.size()
    f = model.tklvae.downsampling
    if height % f or width % f:
        raise InputError(
            expected=f"videos whose height and width {f} divides (f of {config})",
            found=f"{width} x {height}",
            fix="scale them",
        )
    cache = LatentCache(Path(training.latents), network, videos, model.mtd.length)
    episodes = range(len(videos))
    cache.fill(episodes, show_progress)
    return [cache.path(episode) for episode in episodes]

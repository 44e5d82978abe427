"""Whether a training is gone on with as it was begun: the configuration a checkpoint was written with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nuwaxl.errors import InputError, reason
from nuwaxl.train import checkpoint
from nuwaxl.train.data.episodes import EpisodeFolder
from nuwaxl.train.data.kept import sample

# What a training learns does not depend on these keys: where something lies, [data] says what it is.
_FREE = {
    "run": ("data", "out", "log_every", "checkpoint_every", "keep_checkpoints", "tensorboard", "device"),
    "training": ("init", "latents", "lpips", "tklvae"),
}


def check_unchanged(previous: Path, tables: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise InputError, naming the keys, if the checkpoint was written with other values in one of these `tables`.

    `steps` may be raised: with a cosine schedule the rate of the steps to come changes with it.
    """
    recorded = checkpoint.read_progress(previous)["configuration"]
    changed = []
    for table, values in json.loads(json.dumps(tables)).items():
        before = recorded.get(table, {})
        for key in sorted({*before, *values}):
            old, new = before.get(key), values.get(key)
            more_steps = (table, key) == ("run", "steps") and old is not None and new >= old
            if old != new and key not in _FREE.get(table, ()) and not more_steps:
                changed.append(f"[{table}] {key} = {new!r}, which was {old!r}")
    if changed:
        raise InputError(
            expected=f"the configuration {previous} was written with",
            found="; ".join(changed),
            fix="change them back to go on, or start anew with another --out",
        )


def fingerprint(folder: EpisodeFolder) -> str:
    """A digest of the videos in order: name, frames, size and a sample of each, but not the folder, which may be moved.

    With the seed, names and frames decide which frames a step sees; the rest tells videos of equal lengths apart.
    """
    lines = (
        f"{episode.video.name} {episode.frames} {episode.video.stat().st_size} {sample(episode.video)}"
        for episode in folder.episodes
    )
    return f"{len(folder)} videos, {_digest(lines)}"


def captions_fingerprint(folder: EpisodeFolder) -> str:
    """A digest of all captions, in order of the videos."""
    return _digest(f"{episode.captions.frames} {episode.captions.texts}" for episode in folder.episodes)


def files_fingerprint(files: Iterable[Path]) -> str:
    """A digest of whole files, such as weights to start from, in order. Raises InputError for one that is missing."""
    digests = []
    for path in files:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise InputError(expected=f"a file at {path}", found=reason(error), fix="name another") from error
    return _digest(digests) if digests else "none"


def _digest(lines: Iterable[str]) -> str:
    # A file's name may be bytes that are no UTF-8.
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()[:16]

"""Copies of bundles that a machine keeps because they came over the network."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.costs import cache_folder
from nuwaxl.errors import InputError, reason


def kept_bundle(sha256: str) -> Bundle | None:
    """This machine's copy of a bundle, as Bundle.open verifies it; None if there is none, or a damaged one."""
    try:
        bundle = Bundle.open(_folder(sha256))
    except InputError:
        return None
    return bundle if bundle.sha256 == sha256 else None


def write_bundle(sha256: str, files: Mapping[str, Any], fetch: Callable[[Any], Any]) -> Bundle:
    """Make this machine's copy of a bundle. Of several processes that ask for it at once, one writes it.

    Args:
        files: what to fetch the content of every file with, manifest.json among them.
        fetch: gives a file's content as a uint8 array.

    Raises:
        InputError: it cannot be written, or what came is not the bundle of that sha256.
    """
    folder = _folder(sha256)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{sha256}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if (kept := kept_bundle(sha256)) is not None:
                return kept
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, files, fetch)
    except OSError as error:
        raise InputError(
            expected=f"a folder {folder} that can be written, for the bundle",
            found=reason(error),
            fix="make room there, or set NUWAXL_CACHE to another folder on every machine",
        ) from error
    bundle = Bundle.open(folder)
    if bundle.sha256 != sha256:
        raise InputError(
            expected=f"the bundle of sha256 {sha256[:12]}...",
            found=f"{bundle.sha256[:12]}... at {folder}: it changed while it was opened",
            fix="open it again",
        )
    return bundle


def _write(folder: Path, files: Mapping[str, Any], fetch: Callable[[Any], Any]) -> None:
    """Write the folder, complete or not at all."""
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        for name, reference in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            fetch(reference).tofile(part / name)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _folder(sha256: str) -> Path:
    return cache_folder() / "bundles" / sha256

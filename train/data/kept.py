"""What was learned from a whole file of the training data, kept beside it so that the next start need not read it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nuwaxl.files import keep_file
from nuwaxl.formats import parse_json

FOLDER = ".nuwaxl"  # beside the files, and so moved with them
_PIECES, _PIECE_BYTES = 8, 2**17  # read of a file to tell it from others: all of a small one


def kept(file: Path, learned_by: list[Any], learn: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `learn` gives, JSON values by name: kept from an earlier time if it is whole, of this very file, and
    `learned_by` the same, else learned now, and kept where that can be written.
    """
    try:
        identity = file_identity(file)
    except OSError:
        return learn()  # it says what is wrong
    place = file.parent / FOLDER / f"{file.name}.kept"
    head = [identity, learned_by]
    table = _load(place, head)
    if table is None:
        table = learn()
        if file_identity(file) == identity:  # not written to meanwhile
            content = json.dumps([head, table]).encode()
            keep_file(place, _digest(content) + b"\n" + content)
    return table


def file_identity(file: Path) -> list[Any]:
    """What tells a file from others, and from what it was before it was replaced: name, size, time of change, sample.

    Not the folder, nor what a file system has of it (inode, ctime): a moved or copied one holds the same files.
    """
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns, sample(file)]


def sample(file: Path) -> str:
    """A digest of pieces of a file from its beginning to its end: of all of it up to 1 MiB.

    To read a long video whole would take as long as what is spared here, and two videos are alike in no piece.
    """
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        last = max(os.fstat(opened.fileno()).st_size - _PIECE_BYTES, 0)
        for piece in range(_PIECES):
            opened.seek(last * piece // (_PIECES - 1))
            digest.update(opened.read(_PIECE_BYTES))
    return digest.hexdigest()[:16]


def _load(place: Path, head: list[Any]) -> dict[str, Any] | None:
    """None if there is none, or one that is damaged or of another head."""
    try:
        digest, content = place.read_bytes().split(b"\n", 1)
        if digest != _digest(content):
            return None
        found, table = parse_json(content)
    except (OSError, ValueError, TypeError):
        return None
    return table if found == head else None


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()

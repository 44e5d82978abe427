"""The file that a video is written into until it is complete: beside it, and gone with its writer, sooner or later."""

import fcntl
import os
import re
import tempfile
from contextlib import suppress
from io import FileIO
from pathlib import Path

from nuwaxl.files import unwritable


class Unfinished:
    """An empty file with a name of its own beside `target`, and with the permissions that a new file gets.

    It is locked while its writer lives, so that the next one for the same target removes what killed ones left.

    Raises:
        InputError: there can be no such file.
    """

    def __init__(self, target: Path) -> None:
        _remove_abandoned(target)
        self.path, self._held = _new_file(target)
        while not _lock(self._held, self.path):  # the next one came before the lock
            self._held.close()
            self.path, self._held = _new_file(target)

    def give_name(self, target: Path) -> None:
        """It is complete: `target` is replaced by it."""
        self.path.replace(target)

    def close(self) -> None:
        """Let go of it, and remove it unless it was given its name."""
        self.path.unlink(missing_ok=True)
        self._held.close()


def _new_file(target: Path) -> tuple[Path, FileIO]:
    """An empty file beside `target`, opened; see Unfinished."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise unwritable(target, error) from error
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(handle, 0o666 & ~umask)
    return Path(name), FileIO(handle, "r+")


def _lock(file: FileIO, path: Path) -> bool:
    """Lock the file that was made; False where somebody took it for abandoned meanwhile, and removes it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks, where none is taken for abandoned
        return True
    return path.exists()


def _remove_abandoned(target: Path) -> None:
    """Files of writers of this target that are no more."""
    name = re.compile(rf"\.{re.escape(target.stem)}\.[a-z0-9_]{{8}}\.part")
    with suppress(OSError):
        for path in [path for path in target.parent.iterdir() if name.fullmatch(path.name)]:
            with suppress(OSError), path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its writer lives
                path.unlink()

"""Files that tools leave: checked before the work, never half written."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nuwaxl.errors import InputError, RenderError, reason


def is_file_name(value: Any) -> bool:
    """Whether this is a name that a file can have: no NUL in it, and nothing that the file system cannot encode."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value) and value != ""
    except UnicodeEncodeError:
        return False


def link_target(file: Path) -> Path:
    """What a symbolic link points to, which is replaced where it stays; any other file itself."""
    return Path(os.path.realpath(file)) if os.path.islink(file) else file


def check_file(name: str | os.PathLike[str], suffix: str = "") -> Path:
    """Check that a file can be written there, leaving nothing; gives the name as a path.

    Raises:
        InputError: another suffix, a missing or unwritable folder, or something there that is not a file.
    """
    name = os.fspath(name)
    # os.path rather than Path's methods: those raise where a name is too long or a folder is closed to us.
    path = Path(name)
    if not is_file_name(name):
        raise InputError(expected="a name for the output file", found=repr(name), fix="give another name")
    if not path.name.lower().endswith(suffix):
        raise InputError(expected=f"an output file ending in {suffix}", found=name, fix="rename it")
    if os.path.exists(path) and not os.path.isfile(path):
        found = "a directory" if os.path.isdir(path) else "something that is not a regular file"
        raise InputError(expected=f"a file to write at {path}", found=found, fix="give another name")
    target = link_target(path)
    if not os.path.isdir(target.parent):
        raise InputError(
            expected=f"an existing folder {target.parent} to write {target.name} in",
            found="none",
            fix="create the folder",
        )
    try:
        with _unfinished(target):
            pass
    except OSError as error:
        raise InputError(
            expected=f"a folder {target.parent} that can be written",
            found=reason(error),
            fix="give another folder or change its permissions",
        ) from error
    return path


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete; one that exists is replaced.

    Raises:
        RenderError: the file system fails.
    """
    path = link_target(path)
    try:
        with _unfinished(path) as part:
            part.write_bytes(content)
            part.replace(path)
    except OSError as error:
        raise RenderError(f"writing {path} failed: {reason(error)}; check the free space of the disk") from error


def keep_file(path: Path, content: bytes) -> None:
    """Write a file that only saves work the next time, complete or not at all; of no effect where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(path) as part:
            part.write_bytes(content)
            part.replace(path)
    except OSError:
        pass


@contextmanager
def alone_in(folder: Path, *, expected: str, found: str, fix: str) -> Iterator[None]:
    """Have a folder for oneself. The lock is on the folder, leaves no file, and goes with a process that is killed.

    Raises:
        InputError: made of the texts, where another process has it.
    """
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(expected=expected, found=found, fix=fix) from None
        except OSError:
            pass  # a file system that locks no folders: there it is up to the user
        yield
    finally:
        os.close(held)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """An empty file beside `path` under a name of its own, which is gone afterwards."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.touch()
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)

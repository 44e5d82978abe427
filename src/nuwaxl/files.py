"""Files that tools leave: checked before the work, never half written."""

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nuwaxl.errors import InputError, RenderError, reason


def is_file_name(value: Any) -> bool:
    """Whether a file can have this name, and not only a folder, as if it ended in a slash."""
    return is_name(value) and not value.endswith("/")


def is_name(value: Any) -> bool:
    """Whether a file or folder can have this name: no NUL in it, and nothing that the file system cannot encode."""
    try:
        return isinstance(value, str) and b"\0" not in os.fsencode(value) and value != ""
    except UnicodeEncodeError:
        return False


def link_target(file: Path) -> Path:
    """What a symbolic link points to, which is replaced where it stays; any other file itself."""
    return Path(os.path.realpath(file)) if os.path.islink(file) else file


def check_file(name: str | os.PathLike[str], suffix: str = "") -> Path:
    """Check that a file can be written there, leaving nothing; gives the name as a path.

    One that needs no suffix may be a pipe or a device, /dev/stdout for example: see write_file.

    Raises:
        InputError: another suffix, a name that is too long, a missing or unwritable folder, or something there that
            cannot be written as such a file is.
    """
    name = os.fspath(name)
    # os.path rather than Path's methods: those raise where a name is too long or a folder is closed to us.
    path = Path(name)
    if not is_file_name(name):
        raise InputError(expected="a name for the output file", found=repr(name), fix="give another name")
    if not path.name.lower().endswith(suffix):
        raise InputError(expected=f"an output file ending in {suffix}", found=name, fix="rename it")
    stream = _stream(path)
    if stream is not None and not suffix and os.access(path, os.W_OK):
        return path
    if stream is not None or (os.path.exists(path) and not os.path.isfile(path)):
        found = "a directory" if os.path.isdir(path) else "something that is not a regular file"
        if isinstance(stream, int):
            found = "that standard output or standard error goes there"
        raise InputError(expected=f"a file to write at {path}", found=found, fix="give another name")
    target = link_target(path)
    try:
        with _unfinished(target):
            pass
    except OSError as error:
        raise unwritable(target, error) from error
    return path


def unwritable(target: Path, error: OSError) -> InputError:
    """What is wrong where the unfinished file of `target` could not be made beside it."""
    folder = target.parent
    if error.errno == errno.ENAMETOOLONG:
        return InputError(
            expected="a shorter name for the output file, which has a longer one until it is complete",
            found=f"{reason(error)}, {len(os.fsencode(target.name))} bytes in the folder {folder}",
            fix="give a shorter name",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not os.path.isdir(folder):  # /proc says so of itself
        none = error.errno == errno.ENOENT
        return InputError(
            expected=f"an existing folder {folder} to write {target.name} in",
            found="none" if none else reason(error),
            fix="create the folder" if none else "give another folder",
        )
    return InputError(
        expected=f"a folder {folder} that can be written",
        found=reason(error),
        fix="give another folder, or see to the room and the permissions there",
    )


def make_folder(folder: Path, *, fix: str) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        InputError: it cannot be made; with what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(expected=f"a folder {folder} that can be made", found=reason(error), fix=fix) from error


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete; one that exists is replaced.

    A pipe or a device is written to, and so is a file that standard output or standard error goes to, behind what is
    there already.

    Raises:
        BrokenPipeError: nobody reads the pipe any more.
        RenderError: the file system fails.
    """
    try:
        if (stream := _stream(path)) is None:
            _replace(link_target(path), content)
        else:
            with open(stream, "wb", closefd=not isinstance(stream, int)) as file:
                file.write(content)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: Path, error: Exception) -> RenderError:
    """What is wrong where a file could not be finished."""
    return RenderError(f"writing {path} failed: {reason(error)}; see to its folder and the room there")


def is_standard_output(path: Path) -> bool:
    """Whether what is written there goes where standard output goes."""
    return _stream(path) == 1


def keep_file(path: Path, content: bytes) -> None:
    """Write a file that only saves work the next time, complete or not at all; of no effect where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content)
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


def _stream(path: Path) -> int | Path | None:
    """What to open where there is no file to be replaced: a pipe, a terminal or the like, or the descriptor of standard
    output or standard error, whatever that goes to. None for any other file."""
    try:
        there = os.stat(path)
    except OSError:
        return None
    for descriptor in (1, 2):
        with suppress(OSError):  # it is closed
            if os.path.samestat(there, os.fstat(descriptor)):
                return descriptor
    return path if stat.S_ISFIFO(there.st_mode) or stat.S_ISCHR(there.st_mode) else None


def _replace(path: Path, content: bytes) -> None:
    with _unfinished(path) as part:
        part.write_bytes(content)
        part.replace(path)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """An empty file beside `path` under a name of its own, which is gone afterwards."""
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    part.touch()
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)

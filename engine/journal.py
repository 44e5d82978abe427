"""The record of a render on disk: latents of finished segments, from which the same render goes on another time.

A journal is a header, which says what is rendered, and a record a segment, in the order in which they were finished: so
a parent's comes before its children's, and what is left of a file that was cut short can be used. Each has a checksum;
one that is wrong is passed over, and so are those below it in the tree. Nothing waits for the disk: after a loss of
power the last half minute may be missing.

    "NUWAXLJ1" | bytes of the header, u32 | header, JSON | its crc32, u32
    segment, u64 | crc32 of segment and latents, u32 | latents (L, c, h, w), float32        (little-endian)
"""

import errno
import fcntl
import json
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine._core import Plan
from nuwaxl.errors import InputError, reason
from nuwaxl.files import link_target

_MAGIC = b"NUWAXLJ1"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<QI")
_MOST_HEADER = 2**24

# No option is called precision, so a refusal says what is.
_WHAT_DECIDES = (
    "; the devices decide the precision: torch:DEVICE has the type after its slash, as in torch:cuda:0/bfloat16 (else "
    "bf16 on a GPU, fp32 on a CPU), cuda:I with --tf32 has tf32, any other the bundle's; what was begun on devices of "
    "two precisions goes on only on devices of both"
)

Identity = Mapping[str, Any]


class Journal:
    """The journal of one render, which nobody else may have at the same time. Segments may be added by any thread.

    Args:
        path: the file, made if it is not there.
        identity: what is rendered; a journal of anything else is refused.
        shape: of a segment's latents, (L, c, h, w).

    Raises:
        InputError: it is of another render, in use, no journal at all, or cannot be read or written.
    """

    def __init__(self, path: Path, identity: Identity, shape: tuple[int, ...]) -> None:
        self.path = path = link_target(path)
        self._shape = shape
        self._lock = threading.Lock()
        with _readable(path):
            self._file = _locked(path)
            try:
                if os.fstat(self._file.fileno()).st_size == 0:
                    _write_header(self._file, path, identity)
                self._begin = self._at = _checked_header(self._file, path, identity)
            except BaseException:
                self._file.close()
                raise

    def read(self, plan: Plan) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Segments of a plan that are there, with their latents, each after its parent. To be called first, and used
        up: half a record at the end goes.

        Raises:
            InputError: it cannot be read.
        """
        there = {-1}  # the parent of the first
        with _readable(self.path):
            while (record := self._next()) is not None:
                segment, latents = record
                if segment not in there and segment < len(plan) and plan.segment(segment).parent in there:
                    there.add(segment)
                    yield segment, latents
            self._file.truncate(self._at)

    def add(self, segment: int, latents: NDArray[np.float32]) -> None:
        """Keep a segment. Where that fails there is a warning, and the render goes on without a journal."""
        content = np.ascontiguousarray(latents, dtype="<f4").tobytes()
        record = _RECORD.pack(segment, _checksum(segment, content)) + content
        with self._lock:
            if self._file.closed:
                return
            try:
                if (written := os.pwrite(self._file.fileno(), record, self._at)) < len(record):
                    raise OSError(f"only {written} of {len(record)} bytes could be written")
                self._at += len(record)
            except OSError as error:
                self._close()
                warnings.warn(
                    f"writing {self.path} failed: {reason(error)}; "
                    "the render goes on, but could not be resumed from here",
                    stacklevel=2,
                )

    def close(self) -> None:
        """Let others have it. One without any segment is removed, as far as that is possible."""
        with self._lock:
            if not self._file.closed:
                with suppress(OSError):
                    self._remove_empty()
            self._close()

    def _remove_empty(self) -> None:
        """By its size: who was interrupted while it was read closes it, too. And somebody may have removed this one and
        begun another."""
        file = os.fstat(self._file.fileno())
        if file.st_size == self._begin and os.path.samestat(file, os.stat(self.path)):
            self.path.unlink()

    def _close(self) -> None:
        if not self._file.closed:
            with suppress(OSError):  # a forked process has the lock, too
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def _next(self) -> tuple[int, NDArray[np.float32]] | None:
        """The next record that is whole."""
        size = _RECORD.size + 4 * int(np.prod(self._shape))
        while len(record := os.pread(self._file.fileno(), size, self._at)) == size:
            self._at += size
            segment, checksum = _RECORD.unpack_from(record)
            content = record[_RECORD.size :]
            if checksum == _checksum(segment, content):
                return segment, np.frombuffer(content, dtype="<f4").reshape(self._shape).astype(np.float32)
        return None


def check_journal(path: Path, identity: Identity) -> None:
    """Check that a render can keep its journal there, leaving nothing.

    Raises:
        InputError: see Journal.
    """
    path = link_target(path)
    there = os.path.exists(path)
    with _readable(path), _locked(path) as file:
        if os.fstat(file.fileno()).st_size > 0:
            _checked_header(file, path, identity)
        elif not there:
            path.unlink()


def discard_journal(path: Path) -> None:
    """Remove a journal; of no effect where there is none.

    Raises:
        InputError: it is something else, in use, or cannot be removed.
    """
    path = link_target(path)
    if not os.path.lexists(path):
        return
    with _readable(path), _locked(path) as file:
        if file.read(len(_MAGIC)) not in (_MAGIC, b""):
            raise _no_journal(path)
        path.unlink()


def complete_journal(path: Path | None) -> None:
    """Remove the journal, if there is one, of a video that is complete, and stays so where that cannot be done."""
    if path is not None:
        with suppress(InputError):
            discard_journal(path)


def _write_header(file: FileIO, path: Path, identity: Identity) -> None:
    """Begin an empty file, or remove it: half of a header would be refused the next time."""
    content = json.dumps(identity, sort_keys=True).encode()
    header = _MAGIC + _LENGTH.pack(len(content)) + content + _LENGTH.pack(zlib.crc32(content))
    try:
        if file.write(header) < len(header):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        path.unlink()
        raise


def _checked_header(file: FileIO, path: Path, identity: Identity) -> int:
    """Where the records begin."""
    start = os.pread(file.fileno(), len(_MAGIC) + _LENGTH.size, 0)
    if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + _LENGTH.size:
        raise _no_journal(path)
    length: int = _LENGTH.unpack_from(start, len(_MAGIC))[0]
    content = os.pread(file.fileno(), min(length, _MOST_HEADER), len(start))
    checksum = os.pread(file.fileno(), _LENGTH.size, len(start) + length)
    if checksum != _LENGTH.pack(zlib.crc32(content)):
        raise _no_journal(path)
    found = json.loads(content)
    if found != json.loads(json.dumps(identity)):
        raise InputError(
            expected=f"in {path} the journal of this render",
            found=f"that of another: {_difference(found, identity)}",
            fix="ask for the same as then to go on with it, remove it to give that render up, or give another name"
            + (_WHAT_DECIDES if found.get("precision") != identity.get("precision") else ""),
        )
    return len(start) + length + _LENGTH.size


def _difference(found: Identity, identity: Identity) -> str:
    """In what two renders differ, for people."""
    return ", ".join(
        f"another {name}" if _is_hash(found.get(name)) else f"{name} {found.get(name)!r} instead of {identity[name]!r}"
        for name in identity
        if found.get(name) != identity[name]
    )


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def _no_journal(path: Path) -> InputError:
    return InputError(
        expected=f"a journal of nuwaxl in {path}, or no file",
        found="something else",
        fix="move it, or give another name",
    )


def _locked(path: Path) -> FileIO:
    """The file, opened, and locked until it is closed."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # /dev/null; a pipe would block
        raise _no_journal(path)
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        except BlockingIOError:
            file.close()
            raise InputError(
                expected=f"{path} for this render alone",
                found="another render that uses it",
                fix="wait for that one, or give another name",
            ) from None
        except FileNotFoundError:
            pass
        except OSError:  # a file system without locks
            return file
        file.close()  # whoever had it removed it meanwhile


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What the file system refuses is what the user gave."""
    try:
        yield
    except OSError as error:
        raise InputError(
            expected=f"a journal that can be kept in {path}",
            found=reason(error),
            fix="give another name, or see to the room and the permissions there",
        ) from error


def _checksum(segment: int, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(struct.pack("<Q", segment)))

"""Writing of an mp4 file, clip by clip, so that an unfinished one never bears the name of the result."""

import importlib
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import ModuleType, TracebackType

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.unfinished import Unfinished
from nuwaxl.errors import InputError
from nuwaxl.files import check_file, link_target, not_written

_CRF = "14"  # visually lossless for small pictures


def check_output(path: str | os.PathLike[str]) -> Path:
    """Check that an mp4 file can be written at `path`, without leaving anything there.

    Raises:
        InputError: another suffix, a missing or unwritable folder, a folder in its place, or no PyAV.
    """
    _load_av()
    return check_file(path, ".mp4")


class Mp4Writer:
    """Writes frames to an mp4 file (H.264, 4:2:0), under another name until all went well.

    A context; or open, write, and then finish or abort.

    Args:
        path: the file to write; one that exists is replaced at the end.
        width, height: size of the frames; both even, as 4:2:0 asks.
        fps: frames a second.
        comment: what is written beside them, for `comment_of`.

    Raises:
        InputError: on entering, if the path cannot be written or the size is odd.
        RenderError: on entering and while writing, if the file system or the encoder fails.
    """

    def __init__(self, path: str | os.PathLike[str], *, width: int, height: int, fps: float, comment: str = "") -> None:
        self._av = _load_av()
        self._path = link_target(check_output(path))
        if width % 2 or height % 2:
            raise InputError(
                expected="frames of even width and height for an mp4 file",
                found=f"{width} x {height}",
                fix="iterate over the clips and write them in another format",
            )
        self._size = (width, height)
        self._rate = Fraction(fps).limit_denominator(1001)
        self._comment = comment

    def __enter__(self) -> "Mp4Writer":
        return self.open()

    def open(self) -> "Mp4Writer":
        """Make the unfinished file."""
        self._part = Unfinished(self._path)
        try:
            self._container = self._av.open(str(self._part.path), "w", format="mp4")
            self._container.metadata["comment"] = self._comment
            self._stream = self._container.add_stream("libx264", rate=self._rate, options={"crf": _CRF})
            self._stream.width, self._stream.height = self._size
            self._stream.pix_fmt = "yuv420p"
            # The cores belong to the diffusion.
            self._stream.codec_context.thread_count = 1
        except BaseException as error:
            self._part.close()
            if isinstance(error, (OSError, self._av.FFmpegError)):
                raise not_written(self._path, error) from error
            raise
        return self

    def write(self, frames: NDArray[np.uint8]) -> None:
        """Append frames, uint8 (n, H, W, 3) RGB."""
        try:
            for picture in frames:
                frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                self._container.mux(self._stream.encode(frame))
        except (OSError, self._av.FFmpegError) as error:
            raise not_written(self._path, error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        else:
            self.abort()

    def finish(self) -> None:
        """Complete the file and give it its name."""
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._part.give_name(self._path)
        except (OSError, self._av.FFmpegError) as error:
            raise not_written(self._path, error) from error
        finally:
            self._part.close()

    def abort(self) -> None:
        """Leave no file. That what was written so far cannot be completed is no news."""
        try:
            with suppress(OSError, self._av.FFmpegError):
                self._container.close()
        finally:
            self._part.close()


def comment_of(path: Path) -> str | None:
    """What a writer was told to write beside the frames of a video; None where there is no such video."""
    av = _load_av()
    try:
        with av.open(str(path)) as container:
            comment: str | None = container.metadata.get("comment")
            return comment
    except (OSError, av.FFmpegError):
        return None


def _load_av() -> ModuleType:
    """PyAV, imported only where a file is written: it takes long, and clips can be had without it."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise InputError(
            expected="the package av, to write an mp4 file",
            found=str(error),
            fix="pip install av, or iterate over the clips",
        ) from error

"""The bundle's compiled kernels for ONNX Runtime: a library of custom operators, and what it launches.

csrc/onnxruntime is the library.

A custom operator takes the place of its node's function body, whether its kernel can run or not. So the library is
registered only where the bundle has every kernel for the GPU at hand, and its driver loads them; elsewhere the bodies
are what runs.
"""

import ctypes
import json
import logging
from pathlib import Path
from typing import Any

from nuwaxl.engine import _core
from nuwaxl.engine.bundle import Bundle
from nuwaxl.errors import InputError

KERNELS_FILE = "kernels.json"
LIBRARY_FILE = "libnuwaxl_onnxruntime.so"
_FORMAT, _FORMAT_VERSION = "nuwaxl-kernels", 3
_GRAPHS_WITH_KERNELS = ("step", "decode")
# Binaries for one of these run on the later ones of them. NVIDIA does not promise it of the boards of the same major
# number, Jetson Orin (8.7) among them; those from 9.0 on use what only their own generation has.
_PORTABLE = (80, 86, 89)

_said: set[tuple[str, int]] = set()


class KernelLibrary:
    """The kernels of a bundle for one GPU, ready to be registered with sessions; nothing where it has none that fit.

    Args:
        sm: the GPU's compute capability as one number, 90 for 9.0.
        index: the GPU's number; it is the calling thread's device.

    Raises:
        InputError: kernels.json is of another format.
    """

    def __init__(self, bundle: Bundle, sm: int, index: int) -> None:
        self.sm: int | None = None
        if KERNELS_FILE not in bundle.manifest.files:
            return
        kernels = _kernels(bundle.path / KERNELS_FILE)
        self.sm = matching(sm, {int(kernel["sm"]) for kernel in kernels})
        if self.sm is None:
            found = ", ".join(f"sm_{each}" for each in sorted({int(kernel["sm"]) for kernel in kernels}))
            _say_once(bundle, sm, f"those for {found}", f"export the bundle again with --sm {sm}")
            return
        library = _library()
        fitting = [kernel for kernel in kernels if kernel["sm"] == self.sm]
        refusals = (
            _add(library, bundle.path, kernel, index) or library.nuwaxl_load_kernel(kernel["name"].encode())
            for kernel in fitting
        )
        refusal = next((each for each in refusals if each is not None), None)
        if refusal is not None:
            self.sm = None
            found, _, fix = refusal.decode().rpartition("; ")
            _say_once(bundle, sm, f"that they do not load ({found})", fix)

    def register(self, options: Any, graph: str) -> None:
        """Let a session with these options launch the kernels, where it calls any."""
        if self.sm is not None and graph in _GRAPHS_WITH_KERNELS:
            options.register_custom_ops_library(str(library_path()))


def matching(sm: int, compiled: set[int]) -> int | None:
    """Which of the compute capabilities that kernels were compiled for a GPU can run; None for none."""
    if sm in compiled:
        return sm
    older = [each for each in compiled if each in _PORTABLE and each < sm]
    return max(older, default=None) if sm in _PORTABLE else None


def library_path() -> Path:
    """The library, which is installed below the native module's folder: beside it, it would look like a module.

    Raises:
        InputError: this installation does not have it.
    """
    path = Path(_core.__file__).parent / "lib" / LIBRARY_FILE
    if not path.is_file():
        raise InputError(expected=f"the library {path}", found="nothing there", fix="install nuwaxl again")
    return path


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.nuwaxl_add_kernel.restype = library.nuwaxl_load_kernel.restype = ctypes.c_char_p
    return library


def _say_once(bundle: Bundle, sm: int, found: str, fix: str) -> None:
    """Tell that a bundle's kernels do not run on a GPU; once for each in a process."""
    if (bundle.sha256, sm) not in _said:
        _said.add((bundle.sha256, sm))
        logging.getLogger("nuwaxl").warning(
            "expected kernels for sm_%d in %s; found %s; the graphs' plain forms run instead: %s",
            sm,
            bundle.path,
            found,
            fix,
        )


def _kernels(path: Path) -> list[dict[str, Any]]:
    table = json.loads(path.read_text(encoding="utf-8"))
    if table.get("format") != _FORMAT or table.get("format_version") != _FORMAT_VERSION:
        raise InputError(
            expected=f"{_FORMAT} of version {_FORMAT_VERSION} in {path}",
            found=f"{table.get('format')} of version {table.get('format_version')}",
            fix="export the bundle again",
        )
    kernels: list[dict[str, Any]] = table["kernels"]
    return kernels


def _add(library: ctypes.CDLL, folder: Path, kernel: dict[str, Any], index: int) -> bytes | None:
    """Make a kernel known to the library; what was wrong, if anything."""
    image = (folder / kernel["files"]["cubin"]["file"]).read_bytes()
    grid = kernel["grid"]
    refusal: bytes | None = library.nuwaxl_add_kernel(
        ctypes.c_int(index),
        ctypes.c_char_p(kernel["name"].encode()),
        ctypes.c_char_p(kernel["entry"].encode()),
        ctypes.c_char_p(image),
        ctypes.c_size_t(len(image)),
        ctypes.c_int64(grid["fixed"]),
        ctypes.c_int64(grid["per_item"]),
        ctypes.c_int64(grid["block"]),
        ctypes.c_uint(kernel["num_warps"]),
        ctypes.c_uint(kernel["shared_bytes"]),
        ctypes.c_uint(kernel["hidden_null_pointers"]),
    )
    return refusal

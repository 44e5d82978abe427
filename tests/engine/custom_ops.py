"""Bundles with compiled kernels, and what stands in for the library that launches them."""

import json
from pathlib import Path
from typing import Any

from nuwaxl.engine.bundle import Bundle


class Launcher:
    """The library's functions for ctypes: `added` has the arguments of every kernel, `loaded` their names.

    Args:
        refused: the name of a kernel that the driver does not load.
    """

    def __init__(self, refused: str = "") -> None:
        self.added: list[list[Any]] = []
        self.loaded: list[str] = []
        self._refused = refused

    def nuwaxl_add_kernel(self, *arguments: Any) -> None:
        self.added.append([argument.value for argument in arguments])

    def nuwaxl_load_kernel(self, name: bytes) -> bytes | None:
        self.loaded.append(name.decode())
        refusal = b"expected cuModuleLoadData to succeed; found CUDA_ERROR_OUT_OF_MEMORY; free memory of the GPU"
        return refusal if name.decode() == self._refused else None


def with_kernels(folder: Path, *sms: int) -> Bundle:
    """The bundle with a kernels.json that lists one kernel for each of these."""
    kernels = [
        {
            "name": "guided_update-float32",
            "kernel": "guided_update",
            "sm": sm,
            "entry": "entry",
            "grid": {"fixed": 3, "per_item": 5, "block": 1024},
            "num_warps": 8,
            "shared_bytes": 4096,
            "hidden_null_pointers": 2,
            "files": {"cubin": {"file": f"sm_{sm}.cubin"}},
        }
        for sm in sms
    ]
    for sm in sms:
        (folder / f"sm_{sm}.cubin").write_bytes(b"\x7fELF\0cubin of %d" % sm)
    (folder / "kernels.json").write_text(
        json.dumps({"format": "nuwaxl-kernels", "format_version": 3, "kernels": kernels})
    )
    bundle = Bundle.open(folder)
    bundle.manifest.files["kernels.json"] = bundle.manifest.files["step.onnx"]  # type: ignore[index]
    return bundle

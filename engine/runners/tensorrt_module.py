"""The two TensorRTs behind one import: TensorRT itself, and TensorRT-RTX, whose Python module has the same names."""

import importlib
from types import ModuleType

from nuwaxl.errors import InputError

_MODULES = {
    "tensorrt": (("tensorrt",), "pip install 'nuwaxl[tensorrt]' on a machine with a GPU"),
    "tensorrt-rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), "pip install 'nuwaxl[tensorrt-rtx]'"),
}


def load_tensorrt(runtime: str) -> ModuleType:
    """The module of a runtime, imported only when it is asked for.

    Raises:
        InputError: it is not installed, or lacks its libraries.
    """
    names, fix = _MODULES[runtime]
    failures = []
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            failures.append(str(error))
    raise InputError(expected=f"the package {runtime}", found="; ".join(failures), fix=fix)

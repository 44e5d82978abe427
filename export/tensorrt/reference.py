"""What a bundle's plans are compared with at export, in every precision: ONNX Runtime on the CPU.

It multiplies no bfloat16, so that such graphs run in float32 with every rounding of theirs (emulation.py). That takes
the package onnx, which the engine does without: it uses no plan in bfloat16 that was not verified at its export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from nuwaxl.engine.acceptance import Arrays
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.runners.onnxruntime import load_onnxruntime
from nuwaxl.engine.runners.tensorrt_acceptance import Reference
from nuwaxl.engine.samples import Run
from nuwaxl.export.emulation import emulated


def reference_of(bundle: Bundle) -> Run:
    """Opens ONNX Runtime's sessions when they are first asked for."""
    return Emulation(bundle) if bundle.manifest.precision == "bf16" else Reference(bundle)


class Emulation:
    """Runs a bundle's graphs on the CPU as emulation.py says; bfloat16 comes and goes as float32."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._sessions: dict[str, Any] = {}

    def __call__(self, graph: str, inputs: Mapping[str, NDArray[np.generic]]) -> Arrays:
        if graph not in self._sessions:
            self._sessions[graph] = _session(self._bundle, graph)
        session = self._sessions[graph]
        names = [tensor.name for tensor in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def _session(bundle: Bundle, graph: str) -> Any:
    path = bundle.file(graph)
    model = emulated(onnx.load(path, load_external_data=False))
    runtime = load_onnxruntime()
    options = runtime.SessionOptions()
    # As in runners/onnxruntime.py: the arena keeps twice what large pictures need.
    options.enable_cpu_mem_arena = not bundle.manifest.network.large
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

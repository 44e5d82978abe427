"""What a bundle's plans are compared with at export, in every precision: ONNX Runtime on the CPU.

It multiplies no bfloat16, so that such graphs run in float32 with every rounding of theirs (emulation.py). That takes
the package onnx, which the engine does without: it uses no plan in bfloat16 that was not verified at its export.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.acceptance import Arrays
from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.runners.tensorrt_acceptance import Reference
from nuwaxl.engine.samples import Run


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
            from nuwaxl.export.emulation import open_session

            self._sessions[graph] = open_session(self._bundle.file(graph), "bf16")
        session = self._sessions[graph]
        names = [tensor.name for tensor in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))

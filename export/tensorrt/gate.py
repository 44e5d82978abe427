"""The gate of a plan at export: on a GPU that can run it, its answers are compared with ONNX Runtime's."""

from __future__ import annotations

from pathlib import Path

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.engine.runners.device.cuda import CudaDevice
from nuwaxl.engine.runners.tensorrt_acceptance import compare
from nuwaxl.engine.runners.tensorrt_calls import Executor, Transfers
from nuwaxl.engine.runners.tensorrt_engine import PlanEngine, Scratch
from nuwaxl.engine.runners.tensorrt_module import load_tensorrt
from nuwaxl.engine.samples import Run
from nuwaxl.errors import InputError
from nuwaxl.export.tensorrt.reference import reference_of


class BundleGate:
    """A Gate (plans.py). ONNX Runtime is opened once, for the first plan that is compared."""

    def __init__(self) -> None:
        self._references: dict[Path, Run] = {}

    def __call__(self, bundle: Bundle, plan: Plan, file: Path) -> str:
        """The name of the GPU here that accepted the plan, now or before; "" where none here can run it.

        Raises:
            PlanRefused: an answer is wrong.
        """
        try:
            device = CudaDevice(0)
        except InputError:  # no driver, no GPU, or no package to ask
            return ""
        try:
            if device.sm not in plan.sm:
                return ""
            if device.name in plan.accepted_on:
                return device.name
            transfers = Transfers(device, device.stream())
            graph = bundle.manifest.graphs[plan.graph]
            engine = PlanEngine(load_tensorrt(plan.runtime), plan, graph, file, Scratch(device), None)
            execute = Executor(engine, device, transfers)
            try:
                if bundle.path not in self._references:
                    self._references[bundle.path] = reference_of(bundle)
                compare(bundle, plan, execute, self._references[bundle.path])
            finally:
                # Contexts and engines before the memory that they point to.
                execute.free()
                engine.free()
            return device.name
        finally:
            device.close()

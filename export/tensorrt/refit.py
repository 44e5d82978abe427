"""Plans of a bundle out of those of another one: the same graphs with other weights, without building anything."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx

from nuwaxl.engine.bundle import Bundle
from nuwaxl.engine.bundle_schema import Plan
from nuwaxl.engine.plans import build_command, graph_sha256, named
from nuwaxl.engine.runners.tensorrt_module import load_tensorrt
from nuwaxl.errors import InputError
from nuwaxl.export.tensorrt.build import BuildError, Messages, Request
from nuwaxl.export.tensorrt.builder import Built
from nuwaxl.export.tensorrt.plans import Gate, Options, Step, add_plans, wanted

# Of an initializer, what is no part of its topology.
_VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "external_data", "data_location", "doc_string")


def refit_plans(
    folder: Path,
    source: Path,
    options: Options,
    *,
    progress: Callable[[Step], None] = lambda _: None,
    gate: Gate = lambda *_: "",
    trt: Any | None = None,
) -> list[Plan]:
    """Give the bundle in `folder` the plans of the bundle in `source`, built with --refit, with its own weights.

    Needs a GPU. The gate is that of a new plan.

    Raises:
        InputError: `source` has no such plan, or its graphs or kernels differ in more than the weights.
        BuildError: TensorRT does not take the weights.
        PlanRefused: a plan's answers are wrong.
    """
    module = load_tensorrt(options.runtime) if trt is None else trt
    target, origin = Bundle.open(folder), Bundle.open(source)
    plans = {plan.graph: _origin(origin, target, plan) for plan in wanted(target.manifest, options, folder)}

    def make(request: Request, out: Path, report: Callable[[str, float], None]) -> Built:
        started = time.monotonic()
        plan = plans[request.graph.stem]
        report("refitting", 0.0)
        out.write_bytes(refit(module, origin.plan(plan).read_bytes(), request.graph))
        return Built(time.monotonic() - started, 0)

    return add_plans(folder, options, progress=progress, make=make, gate=gate)


def refit(trt: Any, content: bytes, graph: Path) -> bytes:
    """A plan with the weights of an ONNX graph, refittable again.

    Raises:
        BuildError: TensorRT cannot load the plan, or does not take all weights.
    """
    messages = Messages(trt)
    runtime = trt.Runtime(messages.logger)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise BuildError(f"{graph.name}: TensorRT cannot load the plan to refit: {messages.first()}")
    refitter = trt.Refitter(engine, messages.logger)
    parser = trt.OnnxParserRefitter(refitter, messages.logger)
    # It finds weights by their names, and looks into no node: a graph whose nodes are plugins has the same ones.
    if not parser.refit_from_file(str(graph)):
        raise BuildError(f"{graph.name}: TensorRT cannot take its weights: {messages.first()}")
    missing = list(refitter.get_missing_weights())
    if missing or not refitter.refit_cuda_engine():
        named = f"without {', '.join(missing[:3])}" if missing else messages.first()
        raise BuildError(f"{graph.name}: TensorRT did not refit the plan: {named}")
    config = engine.create_serialization_config()
    config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    return bytes(engine.serialize_with_config(config))


def topology(graph: Path) -> str:
    """The sha256 of a graph without the values of its weights."""
    model = onnx.load(graph, load_external_data=False)
    for tensor in model.graph.initializer:
        for field in _VALUES:
            tensor.ClearField(field)
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _origin(origin: Bundle, target: Bundle, wanted: Plan) -> Plan:
    """The plan to refit: the one that is wanted in all but the weights. Its kernels are what no refit changes."""
    graph = wanted.graph
    same = named(replace(wanted, graph_sha256=graph_sha256(origin.manifest, graph)), origin.manifest)
    plans = origin.manifest.plans
    if same.file not in {plan.file for plan in plans}:
        but_kernels = {"file": same.file, "accepted_on": (), "kernels_sha256": same.kernels_sha256}
        others = any(replace(plan, **but_kernels) == same for plan in plans)
        raise InputError(
            expected=f"a plan of {graph} for {wanted.runtime} {wanted.version}, SM {wanted.sm}, batches "
            f"{wanted.batches}, with the kernels of {target.path}, built with --refit, in {origin.path}",
            found="one with other kernels" if others else "none",
            fix=f"build the plans of {target.path}, without --refit-from"
            if others
            else f"build it there: {build_command(wanted, str(origin.path))}",
        )
    if topology(origin.file(graph)) != topology(target.file(graph)):
        raise InputError(
            expected=f"the graph {graph} of {target.path} to differ from that of {origin.path} in its weights alone",
            found="another graph",
            fix="build its plans, without --refit-from",
        )
    return same

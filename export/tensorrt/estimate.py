"""What building plans will take, from the graphs alone: no TensorRT is needed to ask.

Time and memory are taken to grow with the graph's nodes and weights, at rates that every finished build on this machine
measures anew. Before the first one they are those of TensorRT-RTX 1.7.1 with the demo bundle on two cores; TensorRT
itself, which times its kernels on the GPU, has none before it has been run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nuwaxl.engine.costs import cache_folder
from nuwaxl.files import keep_file

_FILE = "plan-builds.json"
_KEYS = ("nodes", "seconds", "largest_weight_bytes", "largest_nodes", "largest_peak")


@dataclass(frozen=True)
class Rates:
    """Of one runtime on one machine."""

    node_s: float  # seconds of a node and profile
    fixed_bytes: float  # memory beside what grows with the graph
    node_bytes: float  # memory of a node
    weight_factor: float  # memory of a byte of weights


# nuwaxl-export engine/demo --target tensorrt-rtx --sm 89 --batches 1,2,4,8 on two cores, 2026-11-25.
MEASURED: Mapping[str, Rates] = {
    "tensorrt-rtx": Rates(node_s=2.5e-3, fixed_bytes=220e6, node_bytes=40e3, weight_factor=8.0),
}


@dataclass(frozen=True)
class Size:
    """Of a graph: nodes, with those of the functions it calls, and bytes of weights in the type they are used in."""

    nodes: int
    weight_bytes: int


@dataclass(frozen=True)
class Estimate:
    """Of one plan. Seconds and memory are None where this runtime has never been measured."""

    seconds: float | None
    memory_bytes: float | None
    plan_bytes: float


def graph_size(path: Path) -> Size:
    """The size of an ONNX graph; its external weights are not read."""
    # Imported here, so that nuwaxl-export --help comes without it.
    import onnx

    model = onnx.load(path, load_external_data=False)
    bodies = {function.name: len(function.node) for function in model.functions}
    nodes = sum(bodies.get(node.op_type, 1) for node in model.graph.node)
    # Weights that are stored in half and cast where the graph begins.
    widened = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT
    }
    weights = 0
    for tensor in model.graph.initializer:
        width = 4 if tensor.name in widened else onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        weights += width * math.prod(tensor.dims)
    return Size(nodes, weights)


def estimate(size: Size, profiles: int, runtime: str) -> Estimate:
    """What the plan of a graph will take; every profile has the weights in its own order."""
    rates = _rates(runtime)
    plan = size.weight_bytes * (profiles + 1)
    if rates is None:
        return Estimate(None, None, plan)
    memory = rates.fixed_bytes + rates.node_bytes * size.nodes + rates.weight_factor * size.weight_bytes
    return Estimate(rates.node_s * size.nodes * profiles, memory, plan)


def record(runtime: str, size: Size, profiles: int, seconds: float, peak_bytes: int) -> None:
    """Keep what a build took, for the next estimate; of no effect where that cannot be written."""
    known = _recorded()
    own = known.setdefault(runtime, dict.fromkeys(_KEYS, 0.0))
    own["nodes"] += size.nodes * profiles
    own["seconds"] += seconds
    if size.weight_bytes >= own["largest_weight_bytes"]:  # the larger, the less of it is the fixed part
        own |= {"largest_weight_bytes": size.weight_bytes, "largest_nodes": size.nodes, "largest_peak": peak_bytes}
    keep_file(cache_folder() / _FILE, json.dumps(known).encode())


def _rates(runtime: str) -> Rates | None:
    own = _recorded().get(runtime)
    if own is None or not own["nodes"] or not own["largest_weight_bytes"]:
        return MEASURED.get(runtime)
    base = MEASURED.get(runtime, MEASURED["tensorrt-rtx"])
    beside = base.fixed_bytes + base.node_bytes * own["largest_nodes"]
    factor = max(own["largest_peak"] - beside, 0.0) / own["largest_weight_bytes"]
    return replace(base, node_s=own["seconds"] / own["nodes"], weight_factor=max(factor, 1.0))


def _recorded() -> dict[str, dict[str, float]]:
    try:
        table = json.loads((cache_folder() / _FILE).read_text(encoding="utf-8"))
        return {name: {key: float(each[key]) for key in _KEYS} for name, each in table.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}

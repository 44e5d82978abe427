"""Where a graph's weights are stored: small models in the graph's own file, large ones in a file of data beside it.

A protobuf message holds 2 GB at most, and a runtime maps a file of data into memory instead of parsing it. Equal
tensors are stored once. No weight belongs to two graphs, so each graph has a file of its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

EXTERNAL_FROM = 2**26  # bytes of a graph's weights; the smaller ones stay inside
_WORTH_EXTERNAL = 1024  # bytes of a tensor
_PAGE = 4096  # what ONNX asks offsets to be multiples of, so that tensors can be mapped
_WORTH_HALVING = 256  # values; below, the cast node is longer than what it saves


def take_out(model: ir.Model, name: str) -> dict[str, ir.TensorProtocol]:
    """Take the larger weights out of a model, by name, and leave references to the file `name` in their places."""
    taken = {}
    for key, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        if tensor.nbytes >= _WORTH_EXTERNAL:
            taken[key] = tensor
            value.const_value = ir.ExternalTensor(name, 0, 0, tensor.dtype, shape=tensor.shape, name=key)
    return taken


def weight_bytes(model: ir.Model) -> int:
    """Size of all weights of a model."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def store(graph: onnx.GraphProto, taken: Mapping[str, ir.TensorProtocol], path: Path) -> None:
    """Write what was taken out of `graph` to `path`, one tensor at a time, and say in the graph where each lies.

    Weights that are float16 values are stored as such (see `halve`).
    """
    places: dict[bytes, tuple[int, int]] = {}
    casts = []
    with path.open("wb") as file:
        for tensor in graph.initializer:
            if tensor.name not in taken:
                continue
            values = np.ascontiguousarray(taken[tensor.name].numpy())
            half = _as_half(tensor, values)
            if half is not None:
                values = half
                casts.append(_cast(tensor))
            content = values.reshape(-1).view(np.uint8)
            digest = hashlib.sha256(content).digest()
            if digest not in places:
                file.write(bytes(-file.tell() % _PAGE))
                places[digest] = (file.tell(), content.nbytes)
                file.write(content)
            offset, length = places[digest]
            entries = {"location": path.name, "offset": str(offset), "length": str(length)}
            del tensor.external_data[:]
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=value)
    _prepend(graph, casts)


def halve(graph: onnx.GraphProto) -> None:
    """Store weights that are float16 values as float16, and cast them where the graph begins: nothing is rounded.

    Weights trained or published in float16 are such values. A runtime folds the casts when it loads the graph.
    """
    casts = []
    for tensor in graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        half = _as_half(tensor, onnx.numpy_helper.to_array(tensor))
        if half is None:
            continue
        name = tensor.name
        casts.append(_cast(tensor))
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.float16"))
    _prepend(graph, casts)


def _as_half(tensor: onnx.TensorProto, values: NDArray[np.generic]) -> NDArray[np.float16] | None:
    """The float16 form of float32 values that are exactly so; None for others and for small tensors."""
    if tensor.data_type != onnx.TensorProto.FLOAT or math.prod(tensor.dims) < _WORTH_HALVING:
        return None
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


def _cast(tensor: onnx.TensorProto) -> onnx.NodeProto:
    """Rename a tensor and make it float16; the node returned gives it its name and type back."""
    name = tensor.name
    tensor.name, tensor.data_type = f"{name}.float16", onnx.TensorProto.FLOAT16
    return onnx.helper.make_node("Cast", [tensor.name], [name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT)


def _prepend(graph: onnx.GraphProto, casts: list[onnx.NodeProto]) -> None:
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)

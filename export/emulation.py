"""A bfloat16 graph on a runtime that computes in float32 only, as ONNX Runtime's CPU provider.

The graph stays: same nodes, same weights, and every value that is bfloat16 in it is rounded to bfloat16. Only a node's
own arithmetic is in float32, between a cast of its inputs and a cast of its outputs; so do GPUs accumulate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper
from onnx.inliner import inline_local_functions

from nuwaxl.engine.bundle_schema import PrecisionName
from nuwaxl.engine.runners.onnxruntime import load_onnxruntime, session_options

_ANY_TYPE = ("Cast", "Constant", "ConstantOfShape", "Shape")  # which the runtime has for bfloat16 too


def open_session(path: Path, precision: PrecisionName) -> Any:
    """An ONNX Runtime session on the CPU of a graph in any precision; bfloat16 comes and goes there as float32."""
    runtime = load_onnxruntime()
    options = session_options(runtime)
    # The arena's pieces fit no other shape: without it a decoding takes half of the memory (docs/models.md).
    options.enable_cpu_mem_arena = False
    graph: str | bytes = str(path)
    if precision == "bf16":
        graph = emulated(onnx.load(path, load_external_data=False)).SerializeToString()
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    return runtime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def emulated(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with all of its arithmetic in float32, and float32 in place of bfloat16 at its inputs and outputs.

    Kernels' nodes (functions.py) give way to their bodies, which round to bfloat16 at their end alone, as kernels do.
    """
    if model.functions:
        model = inline_local_functions(model)
    types = _types(model)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for tensor in graph.input:
        if types[tensor.name] == TensorProto.BFLOAT16:
            # Whoever gives it gives bfloat16 values.
            types[tensor.name] = tensor.type.tensor_type.elem_type = TensorProto.FLOAT
    narrow = {t.name: f"{t.name}.narrow" for t in graph.output if types[t.name] == TensorProto.BFLOAT16}
    types.update(dict.fromkeys(narrow.values(), TensorProto.BFLOAT16))
    nodes: list[onnx.NodeProto] = []
    wide: dict[str, str] = {}

    def widened(name: str) -> str:
        if types.get(name) != TensorProto.BFLOAT16:
            return name
        if name not in wide:
            wide[name] = f"{name}.wide"
            nodes.append(helper.make_node("Cast", [name], [wide[name]], to=TensorProto.FLOAT))
        return wide[name]

    for node in graph.node:
        node.input[:] = [narrow.get(name, name) for name in node.input]
        node.output[:] = [narrow.get(name, name) for name in node.output]
        if node.op_type in _ANY_TYPE and not node.domain:
            nodes.append(node)
            continue
        node.input[:] = [widened(name) for name in node.input]
        rounded = [name for name in node.output if types.get(name) == TensorProto.BFLOAT16]
        node.output[:] = [f"{name}.exact" if name in rounded else name for name in node.output]
        nodes.append(node)
        nodes += [helper.make_node("Cast", [f"{name}.exact"], [name], to=TensorProto.BFLOAT16) for name in rounded]
    for tensor in graph.output:
        if tensor.name in narrow:
            nodes.append(helper.make_node("Cast", [narrow[tensor.name]], [tensor.name], to=TensorProto.FLOAT))
            tensor.type.tensor_type.elem_type = TensorProto.FLOAT
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    return result


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor of the graph, by name."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return types

"""What ONNX Runtime's CUDA provider is known to run: the nodes that the graphs for GPUs may have.

Found on 2026-11-26 by opening sessions of such graphs, in all three precisions, on the provider of onnxruntime-gpu
1.31.1 over a stand-in for CUDA: each of these was placed on the GPU, with no copy between it and the host. A node that
is not here has to be tried before a graph may have it: what the provider lacks it leaves to the CPU, or, in bfloat16,
where the CPU has nothing either, no session opens. It lacks InstanceNormalization of this opset, and Resize, Pad and
DepthToSpace in bfloat16; Shape is left out since what is computed from it may be copied to the GPU and back.
"""

from __future__ import annotations

import onnx
from onnx.inliner import inline_local_functions

from nuwaxl.export.emulation import _types

_KNOWN = {
    "Add", "Attention", "Cast", "Clip", "Concat", "Conv", "Cos", "Div", "Expand", "Gather", "Gelu", "Gemm",
    "LayerNormalization", "MatMul", "Mul", "Pad", "ReduceMean", "Reshape", "Round", "Sigmoid", "Sin", "Slice",
    "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Transpose", "Unsqueeze",
}  # fmt: skip
_NOT_IN_BFLOAT16 = {"Pad"}


def unknown(model: onnx.ModelProto) -> set[str]:
    """Nodes of a graph, the bodies of the kernels' nodes aside, that the provider is not known to run."""
    types = _types(inline_local_functions(model) if model.functions else model)  # which keeps the names
    found = set()
    for node in model.graph.node:
        if node.domain:
            continue
        kinds = {types[name] for name in (*node.input, *node.output) if name}
        if node.op_type not in _KNOWN:
            found.add(node.op_type)
        elif onnx.TensorProto.BFLOAT16 in kinds and node.op_type in _NOT_IN_BFLOAT16:
            found.add(f"{node.op_type} of bfloat16")
    return found

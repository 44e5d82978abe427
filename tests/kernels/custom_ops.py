"""The forms that are nodes of a graph, run by ONNX Runtime's CPU provider: the C++ ones, by the library that is
registered, and the nodes' bodies of standard operators, without it."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TYPES = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}  # ONNX's numbers
_ROWS = ("coefficients", "guidance")  # float32 whatever the tensors are


def run_node(
    op_type: str, inputs: dict[str, Tensor], outputs: int, *, form: str = "c++", **attributes: Any
) -> list[Tensor]:
    """Outputs of the node `nuwaxl::op_type` in the form "c++" or "onnx", computed in the type of the first input."""
    dtype = next(iter(inputs.values())).dtype
    ranks = tuple((name, tensor.ndim) for name, tensor in inputs.items())
    session = _session(form, op_type, dtype, ranks, outputs, tuple(sorted(attributes.items())))
    # float32 holds every value of the other types, and numpy has no bfloat16.
    found = session.run(None, {name: tensor.float().numpy() for name, tensor in inputs.items()})
    return [torch.from_numpy(np.array(array)).to(dtype) for array in found]


@cache
def _session(
    form: str,
    op_type: str,
    dtype: torch.dtype,
    ranks: tuple[tuple[str, int], ...],
    outputs: int,
    attributes: tuple[tuple[str, Any], ...],
) -> Any:
    import onnxruntime
    from onnx import TensorProto, helper

    from nuwaxl.engine.runners.custom_ops import library_path

    nodes = [
        helper.make_node("Cast", [name], [f"{name}_"], to=TensorProto.FLOAT if name in _ROWS else _TYPES[dtype])
        for name, _ in ranks
    ]
    made = [f"y{i}" for i in range(outputs)]
    nodes.append(
        helper.make_node(op_type, [f"{name}_" for name, _ in ranks], made, domain="nuwaxl", **dict(attributes))
    )
    nodes += [helper.make_node("Cast", [name], [f"{name}_"], to=TensorProto.FLOAT) for name in made]

    def value(name: str, rank: int | None) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, None if rank is None else [None] * rank)

    graph = helper.make_graph(
        nodes, "node", [value(*each) for each in ranks], [value(f"{name}_", None) for name in made]
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("nuwaxl", 1)], ir_version=9
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    if form == "onnx":
        from nuwaxl.export.functions import add_bodies

        add_bodies(model)
    else:
        options.register_custom_ops_library(str(library_path()))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

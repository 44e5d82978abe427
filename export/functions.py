"""The kernels in ONNX: one `nuwaxl` node each, with a body of standard operators that any runtime executes.

torch.onnx.export inlines every function it is given, so the exporter writes plain nodes of a domain of ours, and the
bodies join the model afterwards. A runtime that has its own kernel for a node uses that; the others inline the body.
Bodies compute in float32 and answer in the type of their input, as the kernels do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import helper
from onnxscript.values import Opset

import nuwaxl.kernels.ops  # noqa: F401  (registers the operators)

DOMAIN = "nuwaxl"
VERSION = 1
_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """torch operator -> writer of its node, for torch.onnx.export(custom_translation_table=...)."""
    _register()
    opset = Opset(DOMAIN, VERSION)

    def attention(qkv: Any, heads: int) -> Any:
        return opset.TemporalAttention(qkv, heads=heads)

    def convolution(x: Any, weight: Any, bias: Any, scale: Any = None, shift: Any = None) -> Any:
        if scale is None or shift is None:
            return opset.TemporalConv(x, weight, bias)
        return opset.TemporalConvInjection(x, weight, bias, scale, shift)

    return {
        torch.ops.nuwaxl.temporal_attention.default: attention,
        torch.ops.nuwaxl.temporal_conv.default: convolution,
    }


def add_bodies(model: onnx.ModelProto) -> None:
    """Append the body of every `nuwaxl` node that `model` uses, at the model's own opset."""
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    if not used:
        return
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    model.functions.extend(_BODIES[name](opset) for name in used)


def _register() -> None:
    """Declare the nodes to onnx, once a process: the exporter writes only nodes whose schema it finds."""
    schema = onnx.defs.OpSchema
    inputs = {
        "TemporalAttention": ["qkv"],
        "TemporalConv": ["x", "weight", "bias"],
        "TemporalConvInjection": ["x", "weight", "bias", "scale", "shift"],
    }
    for name, names in inputs.items():
        if onnx.defs.has(name, DOMAIN):
            continue
        heads = schema.Attribute("heads", schema.AttrType.INT, "attention heads", required=True)
        onnx.defs.register_schema(
            schema(
                name,
                DOMAIN,
                VERSION,
                type_constraints=[("T", _TYPES, "all tensors are of one type")],
                inputs=[schema.FormalParameter(each, "T") for each in names],
                outputs=[schema.FormalParameter("out", "T")],
                attributes=[heads] if name == "TemporalAttention" else [],
            )
        )


class _Body:
    """Collects the nodes of a function; every method returns the name of what it computes."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, op_type: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def ints(self, *values: int) -> str:
        return self("Constant", value_ints=list(values))

    def float(self, name: str) -> str:
        return self("Cast", name, to=onnx.TensorProto.FLOAT)

    def attribute(self, name: str) -> str:
        """The int attribute of the node as a tensor (1,)."""
        scalar = self("Constant", value_int=0)
        constant = self.nodes[-1].attribute[0]
        constant.ClearField("i")
        constant.ref_attr_name = name
        return self("Reshape", scalar, self.ints(1))

    def function(self, name: str, inputs: list[str], out: str, opset: int, attributes: list[str]) -> onnx.FunctionProto:
        """The function whose output is `out` in the type of its first input."""
        self.nodes.append(helper.make_node("CastLike", [out, inputs[0]], ["out"]))
        imports = [helper.make_opsetid("", opset)]
        return helper.make_function(DOMAIN, name, inputs, ["out"], self.nodes, imports, attributes)


def _attention(opset: int) -> onnx.FunctionProto:
    """qkv (b, L, p, 3c) -> (b, L, p, c); attribute heads."""
    body = _Body()
    three_heads = body("Mul", body.attribute("heads"), body.ints(3))
    shape = body("Concat", body.ints(0, 0, 0), three_heads, body.ints(-1), axis=0)
    # (b, L, p, 3 * heads, d) -> (b, p, 3 * heads, L, d)
    rows = body("Transpose", body("Reshape", body.float("qkv"), shape), perm=[0, 2, 3, 1, 4])
    query, key, value = body("Split", rows, outputs=3, axis=2, num_outputs=3)
    size = body.float(body("Shape", query, start=4, end=5))
    scores = body("MatMul", body("Div", query, body("Sqrt", size)), body("Transpose", key, perm=[0, 1, 2, 4, 3]))
    mixed = body("MatMul", body("Softmax", scores, axis=-1), value)
    out = body("Reshape", body("Transpose", mixed, perm=[0, 3, 1, 2, 4]), body.ints(0, 0, 0, -1))
    return body.function("TemporalAttention", ["qkv"], out, opset, ["heads"])


def _convolution(opset: int, *, inject: bool) -> onnx.FunctionProto:
    """x (b, L, p, c), weight (k, c, c), bias (c,), and scale and shift (b, L, p, c) -> (b, L, p, c)."""
    body = _Body()
    # Conv over (L, p) with a kernel of k x 1; the padding, (k - 1) / 2 at each end, is the rule SAME of an odd kernel.
    frames = body("Transpose", body.float("x"), perm=[0, 3, 1, 2])
    taps = body("Unsqueeze", body("Transpose", body.float("weight"), perm=[2, 1, 0]), body.ints(3))
    h = body("Transpose", body("Conv", frames, taps, body.float("bias"), auto_pad="SAME_UPPER"), perm=[0, 2, 3, 1])
    inputs = ["x", "weight", "bias"]
    if inject:
        h = body("Add", body("Mul", h, body.float("scale")), body.float("shift"))
        inputs += ["scale", "shift"]
    return body.function("TemporalConvInjection" if inject else "TemporalConv", inputs, h, opset, [])


_BODIES: dict[str, Callable[[int], onnx.FunctionProto]] = {
    "TemporalAttention": _attention,
    "TemporalConv": lambda opset: _convolution(opset, inject=False),
    "TemporalConvInjection": lambda opset: _convolution(opset, inject=True),
}

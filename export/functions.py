"""The kernels in ONNX: one `nuwaxl` node each, with a body of standard operators that any runtime executes.

torch.onnx.export inlines every function it is given, so the exporter writes plain nodes of a domain of ours, and the
bodies join the model afterwards. A runtime that has its own kernel for a node uses that; the others inline the body.
Bodies compute in float32 and answer in the type of their input, as the kernels do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch
from onnx import helper
from onnxscript.values import Opset

import nuwaxl.kernels.ops  # noqa: F401  (registers the operators)
from nuwaxl.kernels.checks import ROWS

DOMAIN = "nuwaxl"
VERSION = 1
_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """torch operator -> writer of its node, for torch.onnx.export(custom_translation_table=...)."""
    _register()
    opset = Opset(DOMAIN, VERSION)

    def attention(qkv: Any, heads: int) -> Any:
        return opset.TemporalAttention(qkv, heads=heads, scale=(int(qkv.shape[3]) // 3 // heads) ** -0.5)

    def convolution(x: Any, weight: Any, bias: Any, scale: Any = None, shift: Any = None) -> Any:
        if scale is None or shift is None:
            return opset.TemporalConv(x, weight, bias)
        return opset.TemporalConvInjection(x, weight, bias, scale, shift)

    def group_norm(x: Any, weight: Any, bias: Any, groups: int, eps: float = 1e-5, silu: bool = True) -> Any:
        node = opset.GroupNormSilu if silu else opset.GroupNorm
        return node(x, weight, bias, groups=groups, eps=eps)

    def update(x: Any, history: Any, noise: Any, cond: Any, uncond: Any, coefficients: Any, guidance: Any) -> Any:
        return opset.GuidedUpdate(x, history, noise, cond, uncond, coefficients, guidance)

    return {
        torch.ops.nuwaxl.temporal_attention.default: attention,
        torch.ops.nuwaxl.temporal_conv.default: convolution,
        torch.ops.nuwaxl.group_norm_silu.default: group_norm,
        torch.ops.nuwaxl.guided_update.default: update,
    }


def add_bodies(model: onnx.ModelProto) -> None:
    """Append the body of every `nuwaxl` node that `model` uses, at the model's own opset."""
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    if not used:
        return
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))
    model.functions.extend(_NODES[name].body(opset) for name in used)


def _register() -> None:
    """Declare the nodes to onnx, once a process: the exporter writes only nodes whose schema it finds."""
    schema = onnx.defs.OpSchema
    integer, real = schema.AttrType.INT, schema.AttrType.FLOAT
    kinds = {"heads": integer, "groups": integer, "eps": real, "scale": real}
    for name, node in _NODES.items():
        if onnx.defs.has(name, DOMAIN):
            continue
        onnx.defs.register_schema(
            schema(
                name,
                DOMAIN,
                VERSION,
                type_constraints=[("T", _TYPES, "all tensors but the rows of the update are of one type")],
                inputs=[schema.FormalParameter(each, "tensor(float)" if each in ROWS else "T") for each in node.inputs],
                outputs=[schema.FormalParameter(each, "T") for each in node.outputs],
                attributes=[schema.Attribute(each, kinds[each], each, required=True) for each in node.attributes],
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

    def float_attribute(self, name: str) -> str:
        """The float attribute of the node as a scalar tensor."""
        scalar: str = self("Constant", value_float=0.0)
        constant = self.nodes[-1].attribute[0]
        constant.ClearField("f")
        constant.ref_attr_name = name
        return scalar

    def function(self, name: str, opset: int, *outputs: str) -> onnx.FunctionProto:
        """The function of the node `name`, whose outputs are these in the type of its first input."""
        node = _NODES[name]
        for computed, output in zip(outputs, node.outputs, strict=True):
            self.nodes.append(helper.make_node("CastLike", [computed, node.inputs[0]], [output]))
        imports = [helper.make_opsetid("", opset)]
        return helper.make_function(
            DOMAIN, name, list(node.inputs), list(node.outputs), self.nodes, imports, list(node.attributes)
        )


def _attention(opset: int) -> onnx.FunctionProto:
    """qkv (b, L, p, 3c) -> (b, L, p, c); attributes heads and scale, 1 / sqrt(d), which a body would find in a shape
    only: a copy from the host in the middle of a step."""
    body = _Body()
    three_heads = body("Mul", body.attribute("heads"), body.ints(3))
    shape = body("Concat", body.ints(0, 0, 0), three_heads, body.ints(-1), axis=0)
    # (b, L, p, 3 * heads, d) -> (b, p, 3 * heads, L, d)
    rows = body("Transpose", body("Reshape", body.float("qkv"), shape), perm=[0, 2, 3, 1, 4])
    query, key, value = body("Split", rows, outputs=3, axis=2, num_outputs=3)
    scaled = body("Mul", query, body.float_attribute("scale"))
    scores = body("MatMul", scaled, body("Transpose", key, perm=[0, 1, 2, 4, 3]))
    mixed = body("MatMul", body("Softmax", scores, axis=-1), value)
    out = body("Reshape", body("Transpose", mixed, perm=[0, 3, 1, 2, 4]), body.ints(0, 0, 0, -1))
    return body.function("TemporalAttention", opset, out)


def _convolution(opset: int, *, inject: bool) -> onnx.FunctionProto:
    """x (n * b, L, p, c), weight (k, c, c), bias (c,), and scale and shift (b, L, p, c) -> shape of x."""
    body = _Body()
    # Conv over (L, p) with a kernel of k x 1; the padding, (k - 1) / 2 at each end, is the rule SAME of an odd kernel.
    frames = body("Transpose", body.float("x"), perm=[0, 3, 1, 2])
    taps = body("Unsqueeze", body("Transpose", body.float("weight"), perm=[2, 1, 0]), body.ints(3))
    h = body("Transpose", body("Conv", frames, taps, body.float("bias"), auto_pad="SAME_UPPER"), perm=[0, 2, 3, 1])
    if not inject:
        return body.function("TemporalConv", opset, h)
    branches = body("Reshape", h, body("Concat", body.ints(-1), body("Shape", "scale"), axis=0))
    h = body("Add", body("Mul", branches, body.float("scale")), body.float("shift"))
    return body.function("TemporalConvInjection", opset, body("Reshape", h, body("Shape", "x")))


def _group_norm(opset: int, *, silu: bool) -> onnx.FunctionProto:
    """x (b, L, p, c), weight (c,), bias (c,) -> (b, L, p, c); attributes groups and eps."""
    body = _Body()
    shape = body("Concat", body.ints(0, 0, 0), body.attribute("groups"), body.ints(-1), axis=0)
    x = body("Reshape", body.float("x"), shape)
    axes = body.ints(2, 4)
    centred = body("Sub", x, body("ReduceMean", x, axes))
    variance = body("ReduceMean", body("Mul", centred, centred), axes)
    deviation = body("Sqrt", body("Add", variance, body.float_attribute("eps")))
    normed = body("Reshape", body("Div", centred, deviation), body("Shape", "x"))
    y = body("Add", body("Mul", normed, body.float("weight")), body.float("bias"))
    if not silu:
        return body.function("GroupNorm", opset, y)
    return body.function("GroupNormSilu", opset, body("Mul", y, body("Sigmoid", y)))


def _update(opset: int) -> onnx.FunctionProto:
    """Five tensors (b, ...), coefficients (b, 6), guidance (b,) -> x_next, x0, shape of x."""
    body = _Body()
    rows = body.ints(0, -1)
    x, history, noise, cond, uncond = (
        body("Reshape", body.float(name), rows) for name in ("x", "history", "noise", "cond", "uncond")
    )
    a_x, a_p, c_x, c_0, c_h, c_n = body("Split", "coefficients", outputs=6, axis=1, num_outputs=6)
    scale = body("Unsqueeze", "guidance", body.ints(1))
    pred = body("Add", uncond, body("Mul", scale, body("Sub", cond, uncond)))
    x0 = body("Add", body("Mul", a_x, x), body("Mul", a_p, pred))
    x_next = body("Add", body("Mul", c_x, x), body("Mul", c_0, x0))
    x_next = body("Add", x_next, body("Mul", c_h, history))
    x_next = body("Add", x_next, body("Mul", c_n, noise))
    shape = body("Shape", "x")
    return body.function("GuidedUpdate", opset, body("Reshape", x_next, shape), body("Reshape", x0, shape))


@dataclass(frozen=True)
class _Node:
    """A node of the domain: its tensors and attributes by name, and what writes its body for an opset."""

    body: Callable[[int], onnx.FunctionProto]
    inputs: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ("out",)


_NODES = {
    "TemporalAttention": _Node(_attention, ("qkv",), ("heads", "scale")),
    "TemporalConv": _Node(partial(_convolution, inject=False), ("x", "weight", "bias")),
    "TemporalConvInjection": _Node(partial(_convolution, inject=True), ("x", "weight", "bias", "scale", "shift")),
    "GroupNorm": _Node(partial(_group_norm, silu=False), ("x", "weight", "bias"), ("groups", "eps")),
    "GroupNormSilu": _Node(partial(_group_norm, silu=True), ("x", "weight", "bias"), ("groups", "eps")),
    "GuidedUpdate": _Node(
        _update,
        ("x", "history", "noise", "cond", "uncond", "coefficients", "guidance"),
        outputs=("x_next", "x0"),
    ),
}

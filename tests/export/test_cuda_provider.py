"""The list of what the CUDA provider runs refuses what it does not."""

import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from .cuda_provider import unknown  # noqa: E402


@pytest.mark.parametrize(
    ("node", "kind", "found"),
    [
        ("Softmax", TensorProto.BFLOAT16, set()),
        ("Pad", TensorProto.FLOAT16, set()),
        ("Pad", TensorProto.BFLOAT16, {"Pad of bfloat16"}),
        ("DepthToSpace", TensorProto.FLOAT, {"DepthToSpace"}),
    ],
)
def test_a_node_that_was_not_tried_is_named(node: str, kind: int, found: set[str]) -> None:
    attributes = {"blocksize": 2} if node == "DepthToSpace" else {}
    inputs = ["x", "pads"] if node == "Pad" else ["x"]
    pads = helper.make_tensor("pads", TensorProto.INT64, [8], [0] * 8)
    shape = {"x": [1, 4, 2, 2], "y": [1, 1, 4, 4] if attributes else [1, 4, 2, 2]}
    x, y = (helper.make_tensor_value_info(name, kind, shape[name]) for name in "xy")
    made = helper.make_node(node, inputs, ["y"], **attributes)
    graph = helper.make_graph([made], "graph", [x], [y], [pads] if node == "Pad" else [])
    assert unknown(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])) == found

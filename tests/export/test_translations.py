"""Operators for which other nodes are written than torch.onnx.export's own."""

from collections import Counter

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from nuwaxl.export.onnx import serialized, to_onnx  # noqa: E402


def test_a_group_norm_on_the_cpu_is_two_passes_over_the_activations_with_the_answer_of_torch() -> None:
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 12, eps=1e-3)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = torch.randn(3, 12, 5, 7) * 2 + 100
    model = to_onnx(norm, {"x": x}, ["y"])
    nodes = Counter(node.op_type for node in model.graph.node)
    assert nodes == {"Reshape": 2, "InstanceNormalization": 1, "BatchNormalization": 1}
    session = onnxruntime.InferenceSession(serialized(model), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        (found,) = session.run(None, {"x": x[:batch].numpy()})
        np.testing.assert_allclose(found, norm(x[:batch]).detach().numpy(), rtol=1e-4, atol=1e-4)

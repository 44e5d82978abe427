"""A module that uses the operators exports to nuwaxl nodes with bodies, and ONNX Runtime answers as torch does."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from nuwaxl.export.onnx import serialized, to_onnx  # noqa: E402
from nuwaxl.kernels import ops  # noqa: E402


class Temporal(nn.Module):
    """Convolution with injection, convolution alone, attention."""

    def __init__(self, channels: int, heads: int, taps: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(taps, channels, channels))
        self.bias = nn.Parameter(torch.randn(channels))
        self.to_qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        h = ops.temporal_conv(x, self.weight, self.bias, scale, shift)
        h = ops.temporal_conv(h, self.weight, self.bias)
        return ops.temporal_attention(self.to_qkv(h), self.heads)


@pytest.mark.parametrize("taps", [3, 5])
def test_onnx_runtime_executes_the_bodies_at_any_batch(taps: int) -> None:
    torch.manual_seed(0)
    module = Temporal(12, 2, taps).eval()
    inputs = {name: torch.randn(2, 4, 6, 12) for name in ("x", "scale", "shift")}
    model = to_onnx(module, inputs, ["y"])

    nodes = [node.op_type for node in model.graph.node if node.domain == "nuwaxl"]
    assert nodes == ["TemporalConvInjection", "TemporalConv", "TemporalAttention"]
    assert sorted(function.name for function in model.functions) == sorted(nodes)

    session = onnxruntime.InferenceSession(serialized(model), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        given = {name: torch.randn(batch, 4, 6, 12) for name in inputs}
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        with torch.no_grad():
            expected = module(*given.values()).numpy()
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_module_without_the_operators_carries_no_bodies() -> None:
    model = to_onnx(nn.Linear(3, 3), {"input": torch.randn(2, 3)}, ["y"])
    assert len(model.functions) == 0
    assert all(entry.domain != "nuwaxl" for entry in model.opset_import)

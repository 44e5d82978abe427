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
    """Every kernel: convolution with injection and without, norm with SiLU and without, attention, update."""

    def __init__(self, channels: int, heads: int, taps: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight = nn.Parameter(torch.randn(taps, channels, channels))
        self.bias = nn.Parameter(torch.randn(channels))
        self.to_qkv = nn.Linear(channels, 3 * channels)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        h = ops.temporal_conv(torch.cat([x, 2 * x]), self.weight, self.bias, scale, shift)
        h = ops.temporal_conv(ops.group_norm_silu(h, self.bias, self.bias, 2), self.weight, self.bias)
        h = ops.group_norm_silu(h, self.bias, self.bias, 3, 1e-6, False)
        cond, uncond = ops.temporal_attention(self.to_qkv(h), self.heads).reshape(2, *x.shape).unbind(0)
        return ops.guided_update(x, scale, shift, cond, uncond, scale[:, 0, 0, :6], shift[:, 0, 0, 0])


@pytest.mark.parametrize("taps", [3, 5])
def test_onnx_runtime_executes_the_bodies_at_any_batch(taps: int) -> None:
    torch.manual_seed(0)
    module = Temporal(12, 2, taps).eval()
    inputs = {name: torch.randn(2, 4, 6, 12) for name in ("x", "scale", "shift")}
    model = to_onnx(module, inputs, ["x_next", "x0"])

    nodes = [node.op_type for node in model.graph.node if node.domain == "nuwaxl"]
    assert nodes == [
        "TemporalConvInjection",
        "GroupNormSilu",
        "TemporalConv",
        "GroupNorm",
        "TemporalAttention",
        "GuidedUpdate",
    ]
    assert sorted(function.name for function in model.functions) == sorted(nodes)

    session = onnxruntime.InferenceSession(serialized(model), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        given = {name: torch.randn(batch, 4, 6, 12) for name in inputs}
        found = session.run(None, {name: tensor.numpy() for name, tensor in given.items()})
        with torch.no_grad():
            expected = module(*given.values())
        for array, tensor in zip(found, expected, strict=True):
            assert np.abs(array - tensor.numpy()).max() <= 1e-5 * tensor.abs().max()


def test_a_module_without_the_operators_carries_no_bodies() -> None:
    model = to_onnx(nn.Linear(3, 3), {"input": torch.randn(2, 3)}, ["y"])
    assert len(model.functions) == 0
    assert all(entry.domain != "nuwaxl" for entry in model.opset_import)

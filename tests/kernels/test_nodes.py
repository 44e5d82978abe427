"""The C++ forms beyond the arithmetic of the kernels: every value of the narrow types, and errors of ONNX Runtime."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from nuwaxl.engine.runners.custom_ops import library_path  # noqa: E402

from .custom_ops import run_node  # noqa: E402

NARROW = [torch.float16, torch.bfloat16]
ALL_BITS = torch.arange(-(2**15), 2**15, dtype=torch.int16)


def scaled(values: Tensor, factor: float) -> Tensor:
    """x0 of the update of values (n,) by a_x = factor: the product in float32, in the values' type."""
    zero = torch.zeros_like(values)[None]
    rows = torch.tensor([[factor, -0.0, 0.0, 0.0, 0.0, 0.0]])  # minus nothing leaves a zero its sign
    given = {"x": values[None], "history": zero, "noise": zero, "cond": zero, "uncond": zero}
    return run_node("GuidedUpdate", {**given, "coefficients": rows, "guidance": torch.zeros(1)}, 2)[1][0]


def numpys(values: Tensor, factor: float) -> Tensor:
    """The same by numpy; bfloat16, which it does not have, by torch."""
    if values.dtype == torch.bfloat16:
        return (values.float() * factor).to(torch.bfloat16)
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy((values.numpy().astype(np.float32) * np.float32(factor)).astype(np.float16))


def assert_same_bits(found: Tensor, expected: Tensor) -> None:
    """Every value, the sign of zeros included; one NaN is as good as another."""
    assert torch.equal(torch.isnan(found), torch.isnan(expected))
    numbers = ~torch.isnan(expected)
    assert torch.equal(found[numbers].view(torch.int16), expected[numbers].view(torch.int16))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
# As they are; between two values; into the subnormal ones, to zero, and past the largest.
@pytest.mark.parametrize("factor", [1.0, 1.0 + 2.0**-9, 1.37 * 2.0**-12, 2.0**-24, 2.0**-130, 1.9, 3e38])
def test_every_narrow_value_is_read_and_rounded_as_numpy_does(dtype: torch.dtype, factor: float) -> None:
    values = ALL_BITS.view(dtype)
    assert_same_bits(scaled(values, factor), numpys(values, factor))


def nans() -> Iterator[float]:
    """float32 NaNs whose first bits alone would be infinity, or a number once they were rounded."""
    for bits in (0x7F800001, 0x7FBFFFFF, 0x7FFFFFFF, 0xFF800001, 0xFFFFFFFF):
        yield float(np.array(bits, dtype=np.uint32).view(np.float32))


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_every_nan_stays_one(dtype: torch.dtype) -> None:
    for nan in nans():
        assert torch.isnan(scaled(torch.ones(3, dtype=dtype), nan)).all()


def test_an_error_of_onnx_runtime_within_a_node_is_the_runs() -> None:
    shape = ["b", "l", "p", 8]
    value = onnx.helper.make_tensor_value_info
    vectors = [value(name, onnx.TensorProto.FLOAT, [8]) for name in ("weight", "bias")]
    node = onnx.helper.make_node("GroupNorm", ["x", "weight", "bias"], ["y"], domain="nuwaxl", groups=2, eps=1e-5)
    graph = onnx.helper.make_graph(
        [node], "g", [value("x", onnx.TensorProto.FLOAT, shape), *vectors], [value("y", onnx.TensorProto.FLOAT, None)]
    )
    opsets = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("nuwaxl", 1)]
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    session = onnxruntime.InferenceSession(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
    )
    binding = session.io_binding()
    x, ones, out = np.ones((1, 2, 3, 8), np.float32), np.ones(8, np.float32), np.zeros((1, 2, 2, 8), np.float32)
    for name, array in (("x", x), ("weight", ones), ("bias", ones)):
        binding.bind_cpu_input(name, array)
    binding.bind_output("y", "cpu", 0, np.float32, out.shape, out.ctypes.data)  # smaller than what it gives
    with pytest.raises(Exception, match=r"Non-zero status code.*GroupNorm.*shape"):
        session.run_with_iobinding(binding)

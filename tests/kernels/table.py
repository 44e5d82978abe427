"""One table of device x form x dtype x tolerance, and how a form is run against float64 for an entry of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

GUARD = 64  # poisoned values before and after every tensor; keeps the alignment that an allocation has


@dataclass(frozen=True)
class Entry:
    """Where a form runs, in what type, and the error allowed, relative to the largest expected value."""

    form: str  # "reference", "c++", "onnx" (the bodies of the nodes) or "triton"
    device: str
    dtype: torch.dtype
    tolerance: float

    def __str__(self) -> str:
        return f"{self.form}-{self.device}-{str(self.dtype).removeprefix('torch.')}"


NODES = ("c++", "onnx")  # forms of a node in a graph
TABLE = [
    Entry("reference", "cpu", torch.float64, 1e-13),
    Entry("reference", "cpu", torch.float32, 2e-6),
    Entry("reference", "cpu", torch.float16, 6e-4),
    Entry("reference", "cpu", torch.bfloat16, 5e-3),
    Entry("c++", "cpu", torch.float32, 4e-6),
    Entry("c++", "cpu", torch.float16, 6e-4),
    Entry("c++", "cpu", torch.bfloat16, 5e-3),
    Entry("onnx", "cpu", torch.float32, 2e-5),  # ONNX Runtime sums means one value after the other
    Entry("onnx", "cpu", torch.float16, 6e-4),
    Entry("onnx", "cpu", torch.bfloat16, 5e-3),
    Entry("triton", "cpu", torch.float32, 2e-6),
    Entry("triton", "cpu", torch.float16, 2e-3),
    Entry("triton", "cpu", torch.bfloat16, 1.6e-2),
    Entry("triton", "cuda", torch.float32, 4e-6),
    Entry("triton", "cuda", torch.float16, 2e-3),
    Entry("triton", "cuda", torch.bfloat16, 1.6e-2),
]


def _marks(entry: Entry) -> list[pytest.MarkDecorator]:
    if entry.device == "cuda":
        return [pytest.mark.gpu]
    if entry.form in NODES:
        wanted = ("onnx", "onnxruntime", *(("onnxscript",) if entry.form == "onnx" else ()))
        missing = [name for name in wanted if find_spec(name) is None]
        return [pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(wanted)}")]
    if entry.form == "triton":
        return [
            pytest.mark.skipif(find_spec("triton") is None, reason="needs triton"),
            pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU"),
        ]
    return []


def _entries(chosen: Callable[[Entry], bool]) -> pytest.MarkDecorator:
    found = [pytest.param(entry, id=str(entry), marks=_marks(entry)) for entry in TABLE if chosen(entry)]
    return pytest.mark.parametrize("entry", found)


every_entry = _entries(lambda entry: True)
gradient_entries = _entries(lambda entry: entry.form not in NODES)  # which are for inference
# ONNX's Reshape finds no size in a tensor of no values, and no runner makes such.
entries_of_nothing = _entries(lambda entry: entry.form != "onnx")
# Forms that are compiled: the interpreter takes 8 ms a program, too long for more programs than a grid's axis holds.
compiled_entries = _entries(lambda entry: entry.device == "cuda" or entry.form == "c++")
gpu_entries = _entries(lambda entry: entry.device == "cuda")


def guarded(shape: tuple[int, ...], entry: Entry, fill: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A tensor in the middle of a buffer full of NaN, holding `fill` or NaN itself; and the buffer."""
    count = int(torch.Size(shape).numel())
    buffer = torch.full((count + 2 * GUARD,), float("nan"), dtype=entry.dtype, device=entry.device)
    tensor = buffer[GUARD : GUARD + count].view(shape)
    if fill is not None:
        tensor.copy_(fill)
    return tensor, buffer


def run(
    entry: Entry, launch: Callable[..., None], inputs: list[Tensor], outputs: int, shape: torch.Size
) -> list[Tensor]:
    """Outputs of `launch(*inputs, *outputs)` between poisoned neighbours: nothing outside is read or written."""
    read = [guarded(tuple(tensor.shape), entry, tensor)[0] for tensor in inputs]
    written = [guarded(tuple(shape), entry) for _ in range(outputs)]
    launch(*read, *(tensor for tensor, _ in written))
    for tensor, buffer in written:
        assert torch.isfinite(tensor).all(), "an output value was not written, or came from outside an input"
        assert torch.isnan(buffer[:GUARD]).all(), "wrote before the output"
        assert torch.isnan(buffer[-GUARD:]).all(), "wrote past the output"
    return [tensor for tensor, _ in written]


def vast(entry: Entry, shape: tuple[int, ...], width: int) -> tuple[Tensor, Tensor]:
    """Random values, more of them than 32 bits count, and NaN in a tensor of this width on the last axis."""
    if entry.dtype == torch.float32:
        pytest.skip("the two narrow types cover the addresses")
    x = torch.randn(shape, dtype=entry.dtype, device=entry.device)
    assert x.numel() > 2**31
    return x, torch.full((*shape[:-1], width), float("nan"), dtype=entry.dtype, device=entry.device)


def rounded(entry: Entry, *tensors: Tensor) -> list[Tensor]:
    """Inputs as the entry's type holds them, in float64: the exact answer is the answer to these."""
    return [tensor.to(entry.dtype).double() for tensor in tensors]


def assert_close(entry: Entry, found: Tensor, expected: Tensor) -> None:
    """Largest error, relative to the largest expected value, within the entry's tolerance."""
    assert found.dtype == entry.dtype
    assert found.shape == expected.shape
    error = (found.double().cpu() - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    assert error <= entry.tolerance, f"relative error {error:.2e}; at most {entry.tolerance:.1e}"

"""Temporal convolution with the condition injection: every form against float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nuwaxl.errors import InputError
from nuwaxl.kernels import ops, reference

from .custom_ops import run_node
from .refusals import call, every_form, refused
from .table import (
    NODES,
    Entry,
    assert_close,
    compiled_entries,
    entries_of_nothing,
    every_entry,
    gpu_entries,
    rounded,
    run,
    vast,
)

SHAPES = {  # b, L, p, c, k
    "one frame, one pixel": (1, 1, 1, 16, 3),
    "ragged pixels and channels": (2, 5, 7, 24, 3),
    "kernel of 5, longer than the segment": (1, 2, 3, 16, 5),
    "kernel of 1": (1, 3, 5, 33, 1),
    "more tokens than a tile": (1, 16, 9, 16, 3),
    "more channels than a tile": (1, 2, 3, 144, 3),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def inputs(entry: Entry, shape: tuple[int, ...], scale: float = 1.0) -> list[Tensor]:
    """x, weight, bias, scale, shift."""
    b, length, pixels, c, k = shape
    generator = torch.Generator().manual_seed(0)
    shapes = [(b, length, pixels, c), (k, c, c), (c,), (b, length, pixels, c), (b, length, pixels, c)]
    return rounded(entry, *(torch.randn(s, generator=generator) * scale for s in shapes))


def exact(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """torch's Conv1d with the permutes it needs, then the injection."""
    b, length, pixels, c = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, c, length)
    h = F.conv1d(rows, weight.permute(2, 1, 0), bias, padding=weight.shape[0] // 2)
    h = h.reshape(b, pixels, c, length).permute(0, 3, 1, 2)
    if scale is None or shift is None:
        return h
    branches = b // scale.shape[0]
    return scale.repeat(branches, 1, 1, 1) * h + shift.repeat(branches, 1, 1, 1)


def forward(entry: Entry, given: list[Tensor]) -> Tensor:
    def launch(*tensors: Tensor) -> None:
        x, weight, bias, *injection, out = tensors
        scale, shift = injection or (None, None)
        if entry.form == "reference":
            out.copy_(reference.temporal_conv(x, weight, bias, scale, shift))
        elif entry.form in NODES:
            node, given = "TemporalConv", {"x": x, "weight": weight, "bias": bias}
            if scale is not None and shift is not None:
                node, given = "TemporalConvInjection", {**given, "scale": scale, "shift": shift}
            out.copy_(run_node(node, given, 1, form=entry.form)[0])
        else:
            from nuwaxl.kernels.triton import temporal_conv

            temporal_conv.forward(x, weight, bias, scale, shift, out)

    return run(entry, launch, given, 1, given[0].shape)[0]


@every_entry
@every_shape
def test_convolution_and_injection_equal_float64(entry: Entry, shape: tuple[int, ...]) -> None:
    given = inputs(entry, shape)
    assert_close(entry, forward(entry, given), exact(*given))


@every_entry
def test_without_scale_and_shift_it_is_the_convolution_alone(entry: Entry) -> None:
    given = inputs(entry, (2, 4, 3, 24, 3))[:3]
    assert_close(entry, forward(entry, given), exact(*given))


@every_entry
def test_the_branches_of_a_guided_pair_share_their_segments_scale_and_shift(entry: Entry) -> None:
    x, weight, bias, scale, shift = inputs(entry, (4, 3, 5, 16, 3))
    given = [x, weight, bias, scale[:2], shift[:2]]
    assert_close(entry, forward(entry, given), exact(*given))


@every_entry
def test_identity_weights_return_the_input_bit_for_bit(entry: Entry) -> None:
    x, weight, bias, *_ = inputs(entry, (1, 5, 3, 24, 3))
    weight.zero_()
    weight[1] = torch.eye(24)
    assert torch.equal(forward(entry, [x, weight, bias.zero_()]).double().cpu(), x)


@every_entry
def test_sums_beyond_the_range_of_half_precision_come_back_scaled(entry: Entry) -> None:
    x, weight, bias, scale, shift = inputs(entry, (1, 3, 2, 32, 3), scale=100.0)  # sums to 3e5; float16 ends at 65504
    given = [x, weight, bias, torch.full_like(scale, 2.0**-10), shift]
    assert_close(entry, forward(entry, given), exact(*given))


@compiled_entries
def test_more_programs_than_a_grid_axis_holds(entry: Entry) -> None:
    pixels = 4_300_000 if entry.device == "cuda" else 70_000  # 8.6e6 tokens, 67,000 tiles of 128
    given = inputs(entry, (1, 2, pixels, 16, 1), scale=0.5)
    assert_close(entry, forward(entry, given), exact(*given))


@gpu_entries
def test_a_batch_of_more_than_two_to_the_31_values(entry: Entry) -> None:
    from nuwaxl.kernels.triton import temporal_conv

    x, out = vast(entry, (24, 16, 18_000, 320), width=320)
    _, weight, bias, *_ = inputs(entry, (1, 1, 1, 320, 3), scale=0.05)
    temporal_conv.forward(x, *(tensor.to(x) for tensor in (weight, bias)), x, x, out)
    assert torch.isfinite(out).all()
    last = x[-1:, :, -40:].double().cpu()
    assert_close(entry, out[-1:, :, -40:], exact(last, weight, bias, last, last))


@entries_of_nothing
@pytest.mark.parametrize("shape", [(0, 3, 5, 16, 3), (2, 3, 0, 16, 3)], ids=["no segments", "no pixels"])
def test_of_nothing_it_is_nothing(entry: Entry, shape: tuple[int, ...]) -> None:
    x, weight, bias, *_ = inputs(entry, shape)
    injection = [torch.zeros(2, *shape[1:4], dtype=torch.float64)] * 2
    assert forward(entry, [x, weight, bias]).shape == forward(entry, [x, weight, bias, *injection]).shape == x.shape


def test_the_operator_passes_torchs_own_checks() -> None:
    x, weight, bias, scale, shift = (
        torch.randn(s) for s in ((2, 3, 4, 8), (3, 8, 8), (8,), (2, 3, 4, 8), (2, 3, 4, 8))
    )
    torch.library.opcheck(ops.temporal_conv, (x, weight, bias, scale, shift))
    torch.library.opcheck(ops.temporal_conv, (x, weight, bias))


X, WEIGHT, BIAS, HALF = (4, 2, 3, 8), (3, 8, 8), (8,), (2, 2, 3, 8)


@every_form
@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ((X, (2, 8, 8), BIAS), "odd k"),
        ((X, (3, 8, 9), BIAS), r"weight \(k, c"),
        ((X, (3, 16, 16), BIAS), r"weight \(k, c"),
        ((X, WEIGHT, (1,)), r"bias \(8"),
        ((X, WEIGHT, BIAS, X, HALF), "scale and shift"),  # one of them would be read past its end
        ((X, WEIGHT, BIAS, HALF, X), "scale and shift"),
        ((X, WEIGHT, BIAS, (3, 2, 3, 8), (3, 2, 3, 8)), "multiple of"),
        ((X, WEIGHT, BIAS, (0, 2, 3, 8), (0, 2, 3, 8)), "multiple of"),
        ((X, WEIGHT, BIAS, (4, 2, 2, 8), (4, 2, 2, 8)), "scale and shift"),
    ],
)
def test_what_it_cannot_do_is_refused(form: str, shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    node = "TemporalConv" if len(shapes) == 3 else "TemporalConvInjection"
    names = ("x", "weight", "bias", "scale", "shift")
    with refused(form, message):
        call(form, ops.temporal_conv, node, dict(zip(names, shapes, strict=False)))


def test_a_scale_without_a_shift_is_refused() -> None:
    with pytest.raises(InputError, match="scale and shift together"):
        ops.temporal_conv(torch.zeros(X), torch.zeros(WEIGHT), torch.zeros(BIAS), torch.zeros(X))

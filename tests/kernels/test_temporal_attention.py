"""Temporal attention: every form against float64, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

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
    gradient_entries,
    rounded,
    run,
    vast,
)

SHAPES = {  # b, L, p, heads, head size
    "one frame, one pixel": (1, 1, 1, 1, 32),
    "sd15's head size, ragged pixels": (2, 16, 3, 2, 40),
    "odd head size": (1, 5, 3, 1, 33),
    "sd15's head size at 16x16": (1, 16, 1, 1, 80),
    "17 frames, head size 80": (1, 17, 1, 1, 80),
    "head size 160": (1, 3, 2, 1, 160),
    "64 frames": (1, 64, 1, 1, 32),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


def exact(qkv: Tensor, heads: int) -> Tensor:
    """torch's own attention with the permutes it needs."""
    b, length, pixels, width = qkv.shape
    parts = qkv.reshape(b, length, pixels, 3, heads, width // (3 * heads)).permute(3, 0, 2, 4, 1, 5)
    mixed = F.scaled_dot_product_attention(*parts)
    return mixed.permute(0, 3, 1, 2, 4).flatten(3)


def gradient_of_torch(gradient: Tensor, qkv: Tensor, heads: int) -> Tensor:
    leaf = qkv.clone().requires_grad_()
    exact(leaf, heads).backward(gradient)
    assert leaf.grad is not None
    return leaf.grad


def forward(entry: Entry, qkv: Tensor, heads: int) -> Tensor:
    def launch(qkv: Tensor, out: Tensor) -> None:
        if entry.form == "reference":
            out.copy_(reference.temporal_attention(qkv, heads))
        elif entry.form in NODES:
            attributes = {"heads": heads, "scale": (qkv.shape[3] // 3 // heads) ** -0.5}
            out.copy_(run_node("TemporalAttention", {"qkv": qkv}, 1, form=entry.form, **attributes)[0])
        else:
            from nuwaxl.kernels.triton import temporal_attention

            temporal_attention.forward(qkv, heads, out)

    return run(entry, launch, [qkv], 1, torch.Size((*qkv.shape[:3], qkv.shape[3] // 3)))[0]


def backward(entry: Entry, gradient: Tensor, qkv: Tensor, heads: int) -> Tensor:
    def launch(gradient: Tensor, qkv: Tensor, out: Tensor) -> None:
        if entry.form == "reference":
            out.copy_(reference.temporal_attention_backward(gradient, qkv, heads))
        else:
            from nuwaxl.kernels.triton import temporal_attention

            temporal_attention.backward(gradient, qkv, heads, out)

    return run(entry, launch, [gradient, qkv], 1, qkv.shape)[0]


def random_qkv(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    b, length, pixels, heads, size = shape
    return torch.randn(b, length, pixels, 3 * heads * size, generator=torch.Generator().manual_seed(0)) * scale


@every_entry
@every_shape
def test_forward_equals_float64(entry: Entry, shape: tuple[int, ...]) -> None:
    (qkv,) = rounded(entry, random_qkv(shape))
    assert_close(entry, forward(entry, qkv, shape[3]), exact(qkv, shape[3]))


@gradient_entries
@every_shape
def test_backward_equals_the_gradient_of_torch_in_float64(entry: Entry, shape: tuple[int, ...]) -> None:
    qkv, gradient = rounded(entry, random_qkv(shape), random_qkv(shape).flip(-1).chunk(3, dim=-1)[0])
    assert_close(entry, backward(entry, gradient, qkv, shape[3]), gradient_of_torch(gradient, qkv, shape[3]))


@every_entry
def test_scores_beyond_the_range_of_half_precision_pick_one_frame(entry: Entry) -> None:
    (qkv,) = rounded(entry, random_qkv((1, 6, 2, 2, 40), scale=200.0))  # scores to 1e6; float16 ends at 65504
    assert_close(entry, forward(entry, qkv, 2), exact(qkv, 2))


@gradient_entries
def test_scores_beyond_the_range_of_half_precision_send_the_gradient_to_one_frame(entry: Entry) -> None:
    qkv, gradient = rounded(entry, random_qkv((1, 6, 2, 2, 40), scale=200.0), random_qkv((1, 6, 2, 2, 40))[..., :80])
    expected = gradient_of_torch(gradient, qkv, 2)
    assert expected[..., 160:].abs().max() > 1  # that of the values; those of the others are next to nothing
    assert_close(entry, backward(entry, gradient, qkv, 2), expected)


@gradient_entries
def test_values_far_from_zero_cost_no_precision_of_the_gradient(entry: Entry) -> None:
    """What all values have in common moves no score; with rounded weights, which do not sum to one, it would."""
    qkv, gradient = random_qkv((1, 16, 2, 2, 40)), random_qkv((1, 16, 2, 2, 40)).flip(-1)[..., :80] + 1.0
    qkv[..., 160:] += 8.0
    qkv, gradient = rounded(entry, qkv, gradient)
    found, expected = backward(entry, gradient, qkv, 2), gradient_of_torch(gradient, qkv, 2)
    # Products of 40 such values are 50 times what is left of them: float32 itself rounds them to 1e-5 of that.
    loose = Entry(entry.form, entry.device, entry.dtype, max(entry.tolerance, 2e-5))
    for part, wanted in zip(found.chunk(3, dim=-1), expected.chunk(3, dim=-1), strict=True):
        assert_close(entry if entry.dtype == torch.float64 else loose, part, wanted)


@every_entry
def test_equal_keys_give_the_mean_of_the_values_over_exactly_L_frames(entry: Entry) -> None:
    qkv = random_qkv((1, 5, 2, 1, 32))
    qkv[..., 32:64] = -300.0  # far below zero, so that a padded key, which scores zero, would win
    qkv[..., :32] = 1.0
    (qkv,) = rounded(entry, qkv)
    expected = qkv[..., 64:].mean(1, keepdim=True).expand(-1, 5, -1, -1)
    assert_close(entry, forward(entry, qkv, 1), expected)


@compiled_entries
def test_more_attentions_than_a_grid_axis_holds(entry: Entry) -> None:
    # On a GPU 560,000 attentions, 140,000 programs; the last pixels are what an overflow would miss.
    shape = (1, 2, 70_000, 8, 32) if entry.device == "cuda" else (1, 2, 70_000, 1, 8)
    (qkv,) = rounded(entry, random_qkv(shape))
    assert_close(entry, forward(entry, qkv, shape[3]), exact(qkv, shape[3]))


@gpu_entries
def test_a_batch_of_more_than_two_to_the_31_values(entry: Entry) -> None:
    from nuwaxl.kernels.triton import temporal_attention

    qkv, out = vast(entry, (24, 16, 6000, 960), width=320)
    temporal_attention.forward(qkv, 8, out)
    assert torch.isfinite(out).all()
    last = qkv[-1:, :, -40:].double().cpu()
    assert_close(entry, out[-1:, :, -40:], exact(last, 8))


nothing = pytest.mark.parametrize("shape", [(0, 3, 5, 2, 8), (2, 3, 0, 2, 8)], ids=["no segments", "no pixels"])


@entries_of_nothing
@nothing
def test_of_nothing_it_is_nothing(entry: Entry, shape: tuple[int, ...]) -> None:
    assert forward(entry, random_qkv(shape), 2).shape == (*shape[:3], 16)


@gradient_entries
@nothing
def test_of_nothing_the_gradient_is_nothing(entry: Entry, shape: tuple[int, ...]) -> None:
    qkv = random_qkv(shape)
    assert backward(entry, qkv[..., :16], qkv, 2).shape == qkv.shape


def test_the_operator_passes_torchs_own_checks() -> None:
    qkv = random_qkv((2, 3, 4, 2, 8)).requires_grad_()
    torch.library.opcheck(ops.temporal_attention, (qkv, 2))


def test_the_operators_gradient_is_right_to_second_order_of_the_difference() -> None:
    qkv = random_qkv((1, 3, 2, 2, 3)).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.temporal_attention(x, 2), (qkv,))


@every_form
@pytest.mark.parametrize(
    ("shape", "heads", "message"),
    [
        ((1, 65, 1, 24), 1, "1 to 64 frames"),
        ((1, 4, 1, 25), 2, "multiple of 2 heads"),
        ((1, 4, 1, 24), 0, "multiple of 0 heads"),
        ((4, 1, 24), 1, "qkv "),
    ],
)
def test_what_it_cannot_do_is_refused(form: str, shape: tuple[int, ...], heads: int, message: str) -> None:
    with refused(form, message):
        call(form, ops.temporal_attention, "TemporalAttention", {"qkv": shape}, heads=heads)

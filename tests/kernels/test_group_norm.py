"""Group norm + SiLU: every form against float64."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nuwaxl.kernels import ops, reference
from nuwaxl.kernels.frames import tile_of

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

SHAPES = {  # b, L, p, c, groups
    "one frame, one pixel": (1, 1, 1, 8, 2),
    "held, groups of 10 channels": (1, 2, 45, 40, 4),
    "held, more groups than a program takes": (1, 1, 3, 160, 16),
    "held, one group a program": (1, 2, 20, 120, 2),
    "held, as large as it may be": (1, 1, 1024, 40, 4),
    "walked, groups of 20 channels": (1, 2, 45, 80, 4),
    "walked, groups of 40 channels": (1, 2, 45, 160, 4),
    "walked, one group wider than a program's share": (1, 2, 5, 144, 1),
    "large frames that cannot be held": (1, 1, 1024, 80, 4),
    "large frames, the last part not full": (2, 1, 1100, 40, 4),
    "large frames, two programs a part": (1, 1, 1025, 160, 16),
    "more parts than are merged at once": (1, 1, 16 * 256 + 1, 8, 2),
}
EPS = 1e-5
every_way = pytest.mark.parametrize(("pixels", "c"), [(45, 40), (45, 80), (1100, 40)], ids=["held", "walked", "parts"])


def inputs(entry: Entry, shape: tuple[int, ...], scale: float = 1.0, offset: float = 0.0) -> list[Tensor]:
    b, length, pixels, c, _ = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, length, pixels, c, generator=generator) * scale + offset
    return rounded(entry, x, torch.randn(c, generator=generator), torch.randn(c, generator=generator))


def exact(x: Tensor, weight: Tensor, bias: Tensor, groups: int, silu: bool = True, eps: float = EPS) -> Tensor:
    normed = F.group_norm(x.flatten(0, 1).transpose(1, 2), groups, weight, bias, eps)
    return (F.silu(normed) if silu else normed).transpose(1, 2).reshape(x.shape)


def forward(entry: Entry, given: list[Tensor], groups: int, silu: bool = True, eps: float = EPS) -> Tensor:
    def launch(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
        if entry.form == "reference":
            out.copy_(reference.group_norm_silu(x, weight, bias, groups, eps, silu))
        elif entry.form in NODES:
            node, given = "GroupNormSilu" if silu else "GroupNorm", {"x": x, "weight": weight, "bias": bias}
            out.copy_(run_node(node, given, 1, form=entry.form, groups=groups, eps=eps)[0])
        else:
            from nuwaxl.kernels.triton import group_norm

            group_norm.forward(x, weight, bias, groups, eps, out, silu=silu)

    return run(entry, launch, given, 1, given[0].shape)[0]


@every_entry
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_it_equals_float64(entry: Entry, shape: tuple[int, ...]) -> None:
    given = inputs(entry, shape)
    assert_close(entry, forward(entry, given, shape[4]), exact(*given, shape[4]))


@every_entry
@every_way
def test_without_silu_it_is_the_norm_alone(entry: Entry, pixels: int, c: int) -> None:
    given = inputs(entry, (1, 2, pixels, c, 4))
    assert_close(entry, forward(entry, given, 4, silu=False), exact(*given, 4, silu=False))


@every_entry
@every_way
def test_a_mean_far_from_zero_costs_no_precision(entry: Entry, pixels: int, c: int) -> None:
    # Squares of the values lose the variance in float32: mean 3000, deviation 4.
    given = inputs(entry, (1, 2, pixels, c, 4), scale=4.0, offset=3000.0)
    found, expected = forward(entry, given, 4), exact(*given, 4)
    # float32 itself rounds the values' mean to 2e-4, which is 5e-5 deviations; ONNX Runtime does so at every sum.
    allowed = 4e-4 if entry.form == "onnx" else 1e-4
    loose = Entry(entry.form, entry.device, entry.dtype, max(entry.tolerance, allowed))
    assert_close(entry if entry.dtype == torch.float64 else loose, found, expected)


@every_entry
@every_way
@pytest.mark.parametrize("place", [0, 44])
def test_a_pixel_far_from_the_others_costs_no_precision(entry: Entry, pixels: int, c: int, place: int) -> None:
    x, weight, bias = inputs(entry, (1, 2, pixels, c, 4))
    x[:, :, place] = 1000.0  # among those whose mean the sums start from, or not
    assert_close(entry, forward(entry, [x, weight, bias], 4), exact(x, weight, bias, 4))


@every_entry
@every_way
def test_values_at_the_end_of_half_precision_are_normed(entry: Entry, pixels: int, c: int) -> None:
    given = inputs(entry, (1, 1, pixels, c, 4), scale=9000.0)
    given[0].clamp_(-65504.0, 65504.0)
    assert_close(entry, forward(entry, given, 4), exact(*given, 4))


@every_entry
@every_way
def test_eps_is_what_little_variance_is_divided_by(entry: Entry, pixels: int, c: int) -> None:
    x, weight, bias = inputs(entry, (1, 3, pixels, c, 4), scale=0.01)
    x[:, 0] = 0.5  # a frame without any
    (x,) = rounded(entry, x)
    assert_close(entry, forward(entry, [x, weight, bias], 4, eps=0.1), exact(x, weight, bias, 4, eps=0.1))


@gpu_entries
@pytest.mark.parametrize(
    ("segments", "pixels", "c"), [(480, 900, 320), (240, 900, 640), (24, 18_000, 320)], ids=["held", "walked", "parts"]
)
def test_a_batch_of_more_than_two_to_the_31_values(entry: Entry, segments: int, pixels: int, c: int) -> None:
    from nuwaxl.kernels.triton import group_norm

    x, out = vast(entry, (segments, 16, pixels, c), width=c)
    _, weight, bias = inputs(entry, (1, 1, 1, c, 32))
    group_norm.forward(x, weight.to(x), bias.to(x), 32, EPS, out)
    assert torch.isfinite(out).all()
    assert_close(entry, out[-1:, -1:], exact(x[-1:, -1:].double().cpu(), weight, bias, 32))


@compiled_entries
def test_more_frames_than_a_grid_axis_holds(entry: Entry) -> None:
    given = inputs(entry, (1100, 64, 2, 8, 2))  # 70,400 frames
    assert_close(entry, forward(entry, given, 2), exact(*given, 2))


@entries_of_nothing
@pytest.mark.parametrize("shape", [(0, 2, 45, 16, 2), (2, 2, 0, 16, 2)], ids=["no segments", "no pixels"])
def test_of_nothing_it_is_nothing(entry: Entry, shape: tuple[int, ...]) -> None:
    assert forward(entry, inputs(entry, shape), 2).shape == shape[:4]


def test_frames_are_held_where_whole_groups_fill_a_tile_that_is_not_too_large() -> None:
    # channels of 32 groups: pixels -> those of the tile, 0 where a frame is walked or cut
    for channels, tiles in {
        320: {1: 1, 45: 64, 1023: 1024, 1024: 1024, 1025: 0},  # 3 groups of 10
        960: {1024: 1024},  # one of 30
        1920: {256: 256, 512: 512, 513: 0},  # one of 60, in 64 lanes
        512: {1024: 1024},
        640: {256: 0},  # one of 20: 12 of 32 lanes would have no work
        1280: {64: 0},
        3840: {16: 0},  # one of 120
    }.items():
        assert {pixels: tile_of(pixels, channels, 32) for pixels in tiles} == tiles, channels


def test_the_operator_passes_torchs_own_checks() -> None:
    torch.library.opcheck(ops.group_norm_silu, (torch.randn(2, 3, 4, 8), torch.randn(8), torch.randn(8), 2))


@every_form
@pytest.mark.parametrize(
    ("weight", "bias", "groups", "message"),
    [
        (8, 8, 3, "multiple of 3 groups"),
        (8, 8, 0, "multiple of 0 groups"),  # once the end of the process, by a division
        (1, 8, 2, r"weight \(c"),
        (8, 1, 2, r"bias \(c"),
    ],
)
def test_what_it_cannot_do_is_refused(form: str, weight: int, bias: int, groups: int, message: str) -> None:
    shapes = {"x": (1, 2, 3, 8), "weight": (weight,), "bias": (bias,)}
    with refused(form, message):
        call(form, ops.group_norm_silu, "GroupNormSilu", shapes, groups=groups, eps=EPS)

"""Guidance and the sampler's update: every form against float64."""

import pytest
import torch
from torch import Tensor

from nuwaxl.kernels import ops, reference

from .custom_ops import run_node
from .refusals import call, every_form, refused
from .table import NODES, Entry, assert_close, entries_of_nothing, every_entry, gpu_entries, rounded, run, vast

SHAPES = {
    "one value": (1, 1, 1, 1, 1),
    "ragged values": (3, 5, 2, 3, 7),
    "more values than a program takes": (2, 16, 4, 5, 5),
}


def inputs(entry: Entry, shape: tuple[int, ...]) -> tuple[list[Tensor], Tensor, Tensor]:
    """x, history, noise, cond, uncond; coefficients and guidance, which are always float32."""
    generator = torch.Generator().manual_seed(0)
    tensors = rounded(entry, *(torch.randn(shape, generator=generator) for _ in range(5)))
    rows = torch.randn(shape[0], 6, generator=generator), 1.0 + 9.0 * torch.rand(shape[0], generator=generator)
    return tensors, *rows


def exact(tensors: list[Tensor], coefficients: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
    x, history, noise, cond, uncond = tensors
    results = []
    for i, (row, scale) in enumerate(zip(coefficients.double(), guidance.double(), strict=True)):
        pred = uncond[i] + scale * (cond[i] - uncond[i])
        x0 = row[0] * x[i] + row[1] * pred
        results.append((row[2] * x[i] + row[3] * x0 + row[4] * history[i] + row[5] * noise[i], x0))
    x_next, x0 = zip(*results, strict=True)
    return torch.stack(x_next), torch.stack(x0)


def forward(entry: Entry, tensors: list[Tensor], coefficients: Tensor, guidance: Tensor) -> list[Tensor]:
    rows = coefficients.to(entry.device), guidance.to(entry.device)

    def launch(*tensors: Tensor) -> None:
        *read, x_next, x0 = tensors
        if entry.form == "reference":
            wide = [row.to(x0.dtype) if x0.dtype == torch.float64 else row for row in rows]
            for out, value in zip((x_next, x0), reference.guided_update(*read, *wide), strict=True):
                out.copy_(value)
        elif entry.form in NODES:
            names = ("x", "history", "noise", "cond", "uncond", "coefficients", "guidance")
            given = dict(zip(names, (*read, *rows), strict=True))
            for out, value in zip((x_next, x0), run_node("GuidedUpdate", given, 2, form=entry.form), strict=True):
                out.copy_(value)
        else:
            from nuwaxl.kernels.triton import sampler

            sampler.forward(*read, *rows, x_next, x0)

    return run(entry, launch, tensors, 2, tensors[0].shape)


@every_entry
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_both_outputs_equal_float64(entry: Entry, shape: tuple[int, ...]) -> None:
    given = inputs(entry, shape)
    for found, expected in zip(forward(entry, *given), exact(*given), strict=True):
        assert_close(entry, found, expected)


@gpu_entries
def test_more_programs_than_a_grid_axis_holds(entry: Entry) -> None:
    given = inputs(entry, (70_000, 2, 1, 1, 3))
    for found, expected in zip(forward(entry, *given), exact(*given), strict=True):
        assert_close(entry, found, expected)


@gpu_entries
def test_a_batch_of_more_than_two_to_the_31_values(entry: Entry) -> None:
    from nuwaxl.kernels.triton import sampler

    x, x_next = vast(entry, (24, 16, 18_000, 320), width=320)
    x0 = torch.empty_like(x_next)
    _, coefficients, guidance = inputs(entry, (24, 1))
    sampler.forward(x, x, x, x, x, coefficients.to(x.device), guidance.to(x.device), x_next, x0)
    last = [x[-1:, -1, -40:].double().cpu()] * 5
    for found, expected in zip((x_next, x0), exact(last, coefficients[-1:], guidance[-1:]), strict=True):
        assert_close(entry, found[-1:, -1, -40:], expected)


@every_entry
def test_values_beyond_the_range_of_half_precision_come_back_scaled(entry: Entry) -> None:
    """The guided prediction, x0 and what x_next is summed of reach 1e6; float16 ends at 65504."""
    tensors, coefficients, guidance = inputs(entry, (3, 5, 7))
    tensors = rounded(entry, *(tensor * 1000.0 for tensor in tensors))
    guidance *= 100.0
    coefficients[:, :2] *= 2.0**-8  # x0 comes back, the prediction does not
    coefficients[:, 2:4] *= 2.0**-6
    pred = tensors[4] + guidance.double()[:, None, None] * (tensors[3] - tensors[4])
    assert pred.abs().max() > 65504
    for found, expected in zip(
        forward(entry, tensors, coefficients, guidance), exact(tensors, coefficients, guidance), strict=True
    ):
        assert_close(entry, found, expected)


@entries_of_nothing
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)], ids=["no segments", "no values"])
def test_of_nothing_it_is_nothing(entry: Entry, shape: tuple[int, ...]) -> None:
    assert [tuple(tensor.shape) for tensor in forward(entry, *inputs(entry, shape))] == [shape, shape]


def test_the_operator_passes_torchs_own_checks() -> None:
    tensors = [torch.randn(2, 3, 4) for _ in range(5)]
    torch.library.opcheck(ops.guided_update, (*tensors, torch.randn(2, 6), torch.randn(2)))


@every_form
@pytest.mark.parametrize(
    ("odd", "shape", "message"),
    [
        ("guidance", (1,), r"guidance \(2"),
        ("coefficients", (1, 6), r"coefficients \(2, 6\)"),
        ("coefficients", (2, 5), r"coefficients \(2, 6\)"),
        *((name, (2, 4), r"\(2, 3\), as x") for name in ("history", "noise", "cond", "uncond")),
    ],
)
def test_what_it_cannot_do_is_refused(form: str, odd: str, shape: tuple[int, ...], message: str) -> None:
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("x", "history", "noise", "cond", "uncond"), (2, 3))
    shapes |= {"coefficients": (2, 6), "guidance": (2,), odd: shape}
    with refused(form, message):
        call(form, ops.guided_update, "GuidedUpdate", shapes)

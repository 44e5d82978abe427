"""What is launched, and what is not: the arithmetic of addresses ends at 32 bits a segment, and programs at as many."""

from dataclasses import replace
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from nuwaxl.errors import InputError
from nuwaxl.kernels import ops, reference
from nuwaxl.kernels.checks import INT32_MAX
from nuwaxl.kernels.triton import group_norm, sampler, temporal_conv
from nuwaxl.kernels.triton.launch import Specialisation, launch


class Recorder:
    """Stands in for a kernel: the grids it was launched with."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, **constants: self.grids.append(grid)


def recorded(specialisation: Specialisation) -> tuple[Specialisation, list[tuple[int, ...]]]:
    kernel = Recorder()
    return replace(specialisation, kernel=kernel), kernel.grids


def of_shape(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")  # of any size, as it has no memory


def test_more_values_a_segment_than_a_kernel_can_count_are_refused() -> None:
    update, grids = recorded(sampler.specialise())
    launch(update, 4, INT32_MAX, (of_shape(4, INT32_MAX), INT32_MAX))
    assert len(grids) == 1
    with pytest.raises(InputError, match=r"at most 2147483647 values a segment.*; found 2147483648 values"):
        launch(update, 4, 2**31, (of_shape(4, 2**31), 2**31))
    with pytest.raises(InputError, match="found 2147483648 values"):  # of any of the tensors
        launch(update, 1, 8, (of_shape(1, 8), of_shape(1, 2**31), 8))
    assert len(grids) == 1


def test_more_programs_than_a_grid_has_are_refused() -> None:
    update, grids = recorded(sampler.specialise())
    launch(update, INT32_MAX, 1, (of_shape(INT32_MAX, 1), 1))
    assert grids == [(INT32_MAX,)]
    with pytest.raises(InputError, match="found 1 values, 2147483648 programs"):
        launch(update, 2**31, 1, (of_shape(2**31, 1), 1))
    assert len(grids) == 1


@pytest.mark.parametrize(
    ("specialisation", "shape"),
    [
        (group_norm.specialise(2, 16, 2, 1e-5), (2, 2, 0, 16)),  # whose grid does not count the pixels
        (group_norm.specialise(2, 16, 2, 1e-5), (0, 2, 5, 16)),
        (temporal_conv.specialise(2, 16, 3, torch.float32, branches=0, sm=90), (2, 2, 0, 16)),
    ],
    ids=["norm of no pixels", "norm of no segments", "convolution of no pixels"],
)
def test_nothing_to_do_is_no_launch(specialisation: Specialisation, shape: tuple[int, ...]) -> None:
    silent, grids = recorded(specialisation)
    launch(silent, shape[0], shape[2], (of_shape(*shape), of_shape(16), shape[2], of_shape(*shape)))
    assert grids == []


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scattered(*shape: int) -> torch.Tensor:
    """Random values with others between them in memory: of no tensor is it the whole."""
    return torch.randn(*shape, 2, device=DEVICE)[..., 0]


CALLS = {
    "temporal_attention": (scattered(2, 3, 4, 24), 2),
    "temporal_conv": (*(scattered(*shape) for shape in ((4, 3, 5, 8), (3, 8, 8), (8,), (2, 3, 5, 8), (2, 3, 5, 8))),),
    "group_norm_silu": (scattered(2, 3, 5, 8), scattered(8), scattered(8), 2, 0.5, False),
    "guided_update": (*(scattered(2, 3, 7) for _ in range(5)), scattered(2, 6), scattered(2)),
}


def to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of any device, and none to the reference."""
    monkeypatch.setattr(ops, "on_triton", lambda tensor: True)
    monkeypatch.setattr(ops, "reference", None)


@pytest.mark.parametrize("operator", CALLS)
def test_the_operators_take_tensors_of_any_layout_to_triton(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels take dense ones; on a machine without a GPU Triton interprets them."""
    expected = getattr(reference, operator)(*CALLS[operator])
    to_triton(monkeypatch)
    torch.testing.assert_close(getattr(ops, operator)(*CALLS[operator]), expected, rtol=1e-5, atol=1e-5)


def test_the_gradient_of_the_operator_goes_by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, heads = CALLS["temporal_attention"]
    assert isinstance(qkv, torch.Tensor)
    gradients = []
    for form in (reference, ops):
        leaf = qkv.detach().clone().requires_grad_()
        form.temporal_attention(leaf, heads).sum().backward()  # from one number, for all of the output
        gradients.append(leaf.grad)
        to_triton(monkeypatch)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)

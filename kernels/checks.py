"""What the kernels ask of their arguments; every form and the fake implementations check the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nuwaxl.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MAX_LENGTH = 64
INT32_MAX = 2**31 - 1
# Arguments of the update with a few floats a segment: float32 whatever the tensors are, and not aligned, since a batch
# may be any part of them.
ROWS = ("coefficients", "guidance")


def attention(qkv: Tensor, heads: int) -> None:
    """qkv (b, L, p, 3c) with c a multiple of `heads`; L at most 64."""
    if qkv.ndim != 4 or heads < 1 or qkv.shape[3] % (3 * heads):
        raise InputError(
            expected=f"qkv (b, L, p, 3c) with c a multiple of {heads} heads",
            found=f"{tuple(qkv.shape)}",
            fix="stack query, key and value on the last axis",
        )
    if not 1 <= qkv.shape[1] <= MAX_LENGTH:
        raise InputError(
            expected=f"1 to {MAX_LENGTH} frames", found=f"L = {qkv.shape[1]}", fix="use a shorter segment length"
        )


def convolution(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None) -> None:
    """x (n * b, L, p, c); scale, shift (b, L, p, c), b at least 1, together or not at all; weight (k, c, c) with k odd;
    bias (c,)."""
    channels = x.shape[-1]
    if x.ndim != 4 or weight.ndim != 3 or weight.shape[1:] != (channels, channels) or weight.shape[0] % 2 == 0:
        raise InputError(
            expected="x (b, L, p, c) and weight (k, c_in, c_out) with an odd k and c_in == c_out == c",
            found=f"{tuple(x.shape)} and {tuple(weight.shape)}",
            fix="permute a Conv1d weight (c_out, c_in, k) with permute(2, 1, 0)",
        )
    if bias.shape != (channels,):
        raise InputError(expected=f"bias ({channels},)", found=f"{tuple(bias.shape)}", fix="give one bias a channel")
    if scale is None and shift is None:
        return
    if scale is None or shift is None:
        raise InputError(
            expected="scale and shift together, or neither", found="one of them", fix="give both, or leave both out"
        )
    batch = scale.shape[0] if scale.ndim else 0
    if scale.shape != shift.shape or scale.shape[1:] != x.shape[1:] or batch < 1 or x.shape[0] % batch:
        raise InputError(
            expected=f"scale and shift {tuple(x.shape)}, as x, or both with a batch that x's is a multiple of",
            found=f"{tuple(scale.shape)} and {tuple(shift.shape)}",
            fix="give one of each for each segment",
        )


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, groups: int) -> None:
    """x (b, L, p, c), weight and bias (c,), c a multiple of `groups`."""
    channels = x.shape[-1]
    if x.ndim != 4 or groups < 1 or channels % groups or weight.shape != (channels,) or bias.shape != (channels,):
        raise InputError(
            expected=f"x (b, L, p, c), weight (c,) and bias (c,) with c a multiple of {groups} groups",
            found=f"{tuple(x.shape)}, {tuple(weight.shape)} and {tuple(bias.shape)}",
            fix="give the weight and bias of torch.nn.GroupNorm over c channels",
        )


def update(x: Tensor, others: dict[str, Tensor], coefficients: Tensor, guidance: Tensor) -> None:
    """x and the others (b, ...) of one shape, coefficients (b, 6), guidance (b,)."""
    for name, tensor in others.items():
        if tensor.shape != x.shape:
            raise InputError(
                expected=f"{name} {tuple(x.shape)}, as x", found=f"{tuple(tensor.shape)}", fix="give one for each x"
            )
    batch = x.shape[0]
    if coefficients.shape != (batch, 6) or guidance.shape != (batch,):
        raise InputError(
            expected=f"coefficients ({batch}, 6) and guidance ({batch},)",
            found=f"{tuple(coefficients.shape)} and {tuple(guidance.shape)}",
            fix="give one row and one scale for each segment",
        )

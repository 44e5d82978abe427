"""Between the spatial layers' (b*L, c, h, w) and the kernels' frame layout (b, L, h*w, c).

In torch's channels-last memory format both are the same bytes, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.kernels import ops

_asked = False  # a plain variable, so that torch.compile traces the networks in one graph


@contextmanager
def operators() -> Iterator[None]:
    """Within it the layers call the operators `nuwaxl::*` on every device, for export; on CUDA they do anyway.

    It is of the whole process, all of its threads.
    """
    global _asked
    before, _asked = _asked, True
    try:
        yield
    finally:
        _asked = before


def use_operator(x: Tensor, *parameters: Tensor | None, gradient: bool = False) -> bool:
    """Whether an operator computes this: where it is asked for, or Triton runs it; one without a gradient only where
    none is wanted."""
    if _asked:
        return True
    if not ops.on_triton(x):
        return False
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *parameters))
    return gradient or not wanted


def to_frames(x: Tensor, length: int) -> Tensor:
    """(b*L, c, h, w) -> (b, L, h*w, c)."""
    return x.permute(0, 2, 3, 1).reshape(-1, length, x.shape[2] * x.shape[3], x.shape[1])


def from_frames(frames: Tensor, height: int, width: int) -> Tensor:
    """(b, L, h*w, c) -> (b*L, c, h, w)."""
    return frames.reshape(-1, height, width, frames.shape[-1]).permute(0, 3, 1, 2)


def norm_silu(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU(norm(x)) of x (n, c, h, w), `norm` a group norm, or one with casts around it. The operator's where it is
    asked for, or where no axis must be moved for it."""
    asked = _asked and isinstance(_within(norm), nn.GroupNorm)
    unmoved = isinstance(norm, nn.GroupNorm) and x.is_contiguous(memory_format=torch.channels_last)
    if not asked and not (unmoved and use_operator(x, norm.weight, norm.bias)):
        return F.silu(norm(x))
    return from_frames(norm_of_frames(norm, to_frames(x, 1), silu=True), x.shape[2], x.shape[3])


def norm_of_frames(norm: nn.Module, frames: Tensor, *, silu: bool) -> Tensor:
    """The norm of frames (b, L, h*w, c) by the operator, which computes in float32 itself: casts around it go."""
    within = _within(norm)
    assert isinstance(within, nn.GroupNorm)
    weight, bias = (parameter.to(frames.dtype) for parameter in (within.weight, within.bias))
    return ops.group_norm_silu(frames, weight, bias, within.num_groups, within.eps, silu)


def _within(norm: nn.Module) -> nn.Module:
    """What export.precision put casts around."""
    layer: nn.Module = getattr(norm, "layer", norm)
    return layer

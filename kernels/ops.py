"""The kernels as torch operators nuwaxl::*: Triton on a CUDA device where it is installed, the reference elsewhere.

`torch.export` and `torch.compile` keep each as one node. Temporal attention has a gradient; the others are for
inference, and torch says so when a gradient is asked through them. Arguments are those of `nuwaxl.kernels.reference`.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from nuwaxl.kernels import checks, reference

_TRITON = find_spec("triton") is not None
_TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def on_triton(tensor: Tensor) -> bool:
    """Whether the operators run a tensor on Triton."""
    return _TRITON and tensor.is_cuda and tensor.dtype in _TRITON_DTYPES


@torch.library.custom_op("nuwaxl::temporal_attention", mutates_args=())
def temporal_attention(qkv: Tensor, heads: int) -> Tensor:
    """Temporal self-attention, qkv (b, L, p, 3c) -> (b, L, p, c), without moving an axis; L at most 64."""
    checks.attention(qkv, heads)
    if not on_triton(qkv):
        return reference.temporal_attention(qkv, heads).contiguous()
    from nuwaxl.kernels.triton import temporal_attention as form

    out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
    form.forward(qkv.contiguous(), heads, out)
    return out


@temporal_attention.register_fake
def _(qkv: Tensor, heads: int) -> Tensor:
    checks.attention(qkv, heads)
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


@torch.library.custom_op("nuwaxl::temporal_attention_backward", mutates_args=())
def temporal_attention_backward(gradient: Tensor, qkv: Tensor, heads: int) -> Tensor:
    """The gradient of `temporal_attention` to qkv, from that of its output."""
    if not on_triton(qkv):
        return reference.temporal_attention_backward(gradient, qkv, heads).contiguous()
    from nuwaxl.kernels.triton import temporal_attention as form

    qkv = qkv.contiguous()
    d_qkv = torch.empty_like(qkv)
    form.backward(gradient.contiguous(), qkv, heads, d_qkv)
    return d_qkv


@temporal_attention_backward.register_fake
def _(gradient: Tensor, qkv: Tensor, heads: int) -> Tensor:
    return qkv.new_empty(qkv.shape)


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, int], output: Tensor) -> None:
    qkv, ctx.heads = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(qkv)


def _gradient(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
    (qkv,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return temporal_attention_backward(gradient, qkv, ctx.heads), None  # type: ignore[attr-defined]


temporal_attention.register_autograd(_gradient, setup_context=_keep)


@torch.library.custom_op("nuwaxl::temporal_conv", mutates_args=())
def temporal_conv(
    x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
) -> Tensor:
    """Temporal convolution, x (n * b, L, p, c), weight (k, c_in, c_out), then scale * h + shift, (b, L, p, c) each,
    where they are given."""
    checks.convolution(x, weight, bias, scale, shift)
    if not on_triton(x):
        return reference.temporal_conv(x, weight, bias, scale, shift).contiguous()
    from nuwaxl.kernels.triton import temporal_conv as form

    x = x.contiguous()
    out = torch.empty_like(x)
    injection = [None if tensor is None else tensor.contiguous() for tensor in (scale, shift)]
    form.forward(x, weight.contiguous(), bias.contiguous(), *injection, out)
    return out


@temporal_conv.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    checks.convolution(x, weight, bias, scale, shift)
    return x.new_empty(x.shape)


@torch.library.custom_op("nuwaxl::group_norm_silu", mutates_args=())
def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, silu: bool = True
) -> Tensor:
    """SiLU(GroupNorm(x)) of every frame of x (b, L, p, c), or the norm alone."""
    checks.group_norm(x, weight, bias, groups)
    if not on_triton(x):
        return reference.group_norm_silu(x, weight, bias, groups, eps, silu).contiguous()
    from nuwaxl.kernels.triton import group_norm as form

    x = x.contiguous()
    out = torch.empty_like(x)
    form.forward(x, weight.contiguous(), bias.contiguous(), groups, eps, out, silu=silu)
    return out


@group_norm_silu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float = 1e-5, silu: bool = True) -> Tensor:
    checks.group_norm(x, weight, bias, groups)
    return x.new_empty(x.shape)


@torch.library.custom_op("nuwaxl::guided_update", mutates_args=())
def guided_update(
    x: Tensor, history: Tensor, noise: Tensor, cond: Tensor, uncond: Tensor, coefficients: Tensor, guidance: Tensor
) -> tuple[Tensor, Tensor]:
    """Guidance and the sampler's update of x (b, ...); coefficients (b, 6), guidance (b,) -> x_next, x0."""
    checks.update(x, {"history": history, "noise": noise, "cond": cond, "uncond": uncond}, coefficients, guidance)
    tensors = (x, history, noise, cond, uncond)
    if not on_triton(x):
        x_next, x0 = reference.guided_update(*tensors, coefficients, guidance)
        return x_next.contiguous(), x0.contiguous()
    from nuwaxl.kernels.triton import sampler as form

    x_next, x0 = x.new_empty(x.shape), x.new_empty(x.shape)
    rows = (coefficients.float().contiguous(), guidance.float().contiguous())
    form.forward(*(tensor.contiguous() for tensor in tensors), *rows, x_next, x0)
    return x_next, x0


@guided_update.register_fake
def _(
    x: Tensor, history: Tensor, noise: Tensor, cond: Tensor, uncond: Tensor, coefficients: Tensor, guidance: Tensor
) -> tuple[Tensor, Tensor]:
    checks.update(x, {"history": history, "noise": noise, "cond": cond, "uncond": uncond}, coefficients, guidance)
    return x.new_empty(x.shape), x.new_empty(x.shape)

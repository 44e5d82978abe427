"""MTD as a GPU runs it: channels last throughout, with the kernels as operators.

The work and its order are GuidedDenoiser's. Activations are (count*b*L, h, w, c), which the operators read and write as
they are; only the spatial convolutions, which torch and ONNX know with channels first, are between two transpositions
(views in torch's channels-last format; a runtime that keeps channels last cancels them).

A bias is dear on ONNX Runtime's CUDA provider: that of a product is written over all of the answer beforehand, and the
product added to it; that of a convolution is added afterwards. So biases go where they are free: to another one that is
added to the same tensor, or in front of a GELU, with which the provider adds it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.export.attention import attention as fused_attention
from nuwaxl.export.denoiser import Branches, GuidedDenoiser, PromptState, _linear
from nuwaxl.export.precision import cast
from nuwaxl.kernels import ops
from nuwaxl.train.networks.layout import norm_of_frames
from nuwaxl.train.networks.mtd import _Layer
from nuwaxl.train.networks.spatial import Attention, ResnetBlock, Upsample
from nuwaxl.train.networks.temporal import TemporalAttention, TemporalConv


def prompt_state(attention: Attention, prompt: Tensor, negative: Tensor) -> PromptState:
    """prompt (b, L, l_p, d_p), negative (b, l_p, d_p) -> keys and values as they are, (.., l_p, c)."""
    return PromptState(*attention.keys_values(prompt), *attention.keys_values(negative))


class FramesDenoiser(GuidedDenoiser):
    """See GuidedDenoiser; the injections' scales and shifts are (b, L, h*w, c), the prompts' state is as above."""

    channel_axis = -1

    def _conv_in(self, x: Tensor) -> Tensor:
        return _spatial_conv(self.mtd.conv_in, x.reshape(-1, *x.shape[2:]).permute(0, 2, 3, 1))

    def _conv_out(self, h: Tensor) -> Tensor:
        return _spatial_conv(self.mtd.conv_out, _group_norm(self.mtd.conv_norm_out, h, silu=True)).permute(0, 3, 1, 2)

    def _resample(self, resample: nn.Module, h: Tensor) -> Tensor:
        if isinstance(resample, Upsample):  # here and not by its forward, so that no axis is moved
            height, width, channels = h.shape[1:]
            h = h[:, :, None, :, None].expand(-1, -1, 2, -1, 2, -1).reshape(-1, 2 * height, 2 * width, channels)
            resample = resample.conv
        return _spatial_conv(resample, h)

    def _layer(
        self,
        layer: _Layer,
        branches: Branches,
        embedding: Tensor,
        injection: tuple[Tensor, Tensor] | None,
        prompt: PromptState | None,
    ) -> Branches:
        h = self._temporal_conv(layer.temporal_conv, self._resnet(layer.resnet, branches, embedding), injection)
        if prompt is None or layer.attention is None or layer.temporal_attention is None:
            return Branches(h, branches.count)
        channels = h.shape[-1]
        x, normed = (
            t.reshape(-1, h.shape[1] * h.shape[2], channels)
            for t in (h, _group_norm(layer.attention.norm, h, silu=False))
        )
        tokens = self._transformer(layer.attention, x, normed, prompt, branches.count)
        tokens = self._temporal(layer.temporal_attention, tokens)
        return Branches(tokens.reshape(-1, *h.shape[1:]), 2)

    def _resnet(self, block: ResnetBlock, branches: Branches, embedding: Tensor) -> Tensor:
        x = branches.h
        h = _without_bias(block.conv1, _group_norm(block.norm1, x, silu=True))
        projection, shortcut = block.time_emb_proj, block.conv_shortcut
        assert projection is not None
        shape = h.shape[1:]
        added = F.linear(embedding, projection.weight, _sum(projection.bias, block.conv1.bias))
        h = (h.reshape(branches.count, -1, self.length, *shape) + added.reshape(1, -1, 1, 1, 1, shape[-1])).reshape(
            -1, *shape
        )
        h = _group_norm(block.norm2, h, silu=True)
        if shortcut is None:
            return _spatial_conv(block.conv2, h) + x
        x = F.linear(x, shortcut.weight.flatten(1), _sum(shortcut.bias, block.conv2.bias))
        return _without_bias(block.conv2, h) + x

    def _temporal_conv(self, conv: TemporalConv, x: Tensor, injection: tuple[Tensor, Tensor] | None = None) -> Tensor:
        frames = x.reshape(-1, self.length, x.shape[1] * x.shape[2], x.shape[3])
        return conv.fused(frames, *(injection or (None, None))).reshape(x.shape)

    def _attention(self, attention: Attention, normed: Tensor) -> Tensor:
        query, key, value = (
            _linear(normed, layer.weight, None) for layer in (attention.to_q, attention.to_k, attention.to_v)
        )
        return fused_attention(query, key, value, attention.heads)

    def _prompt_attention(self, query: Tensor, prompt: PromptState, heads: int, count: int) -> Tensor:
        pixels, channels = query.shape[1:]
        query = query.reshape(count, -1, self.length * pixels, channels)
        cond = fused_attention(
            query[0].reshape(-1, pixels, channels), prompt.key.flatten(0, 1), prompt.value.flatten(0, 1), heads
        )
        uncond = fused_attention(query[count - 1], prompt.negative_key, prompt.negative_value, heads)
        return torch.cat([cond, uncond.reshape(-1, pixels, channels)])

    def _gate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _linear(x, weight, None) + bias

    def _temporal(self, attention: TemporalAttention, x: Tensor) -> Tensor:
        pixels, channels = x.shape[1:]
        normed = attention.norm(x).reshape(-1, self.length, pixels, channels)
        if attention.positions:
            normed = normed + attention.frame_positions(self.length)[:, None]
        qkv = _linear(normed.reshape(-1, pixels, channels), attention.to_qkv.weight, None)
        mixed = ops.temporal_attention(qkv.reshape(-1, self.length, pixels, 3 * channels), attention.heads)
        return x + _linear(mixed.reshape(-1, pixels, channels), attention.to_out.weight, attention.to_out.bias)


def _spatial_conv(conv: nn.Module, h: Tensor) -> Tensor:
    """A convolution, or a layer around one, on h (n, h, w, c)."""
    return conv(h.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _without_bias(conv: nn.Conv2d, h: Tensor) -> Tensor:
    """The same, but for its bias."""
    return F.conv2d(h.permute(0, 3, 1, 2), conv.weight, None, conv.stride, conv.padding).permute(0, 2, 3, 1)


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    """Of two biases, rounded once. Both are constants, so that no graph computes it."""
    assert b is not None
    wide = torch.promote_types(a.dtype, torch.float32)
    return cast(cast(a, wide) + cast(b, wide), a.dtype)


def _group_norm(norm: nn.Module, h: Tensor, *, silu: bool) -> Tensor:
    """The norm of h (n, h, w, c) by one operator, every frame on its own."""
    frames = h.reshape(-1, 1, h.shape[1] * h.shape[2], h.shape[3])
    return norm_of_frames(norm, frames, silu=silu).reshape(h.shape)

"""MTD as the step graph runs it: the guided pair in one pass, laid out for an inference runtime.

The answer is `train.networks.mtd.MTD`'s for the prompt and for the negative prompt, from the same parameters. What
differs is the order of the work:

- Both branches see the same x and condition, so up to the first prompt attention the work is done once.
- The condition's scales and shifts are the same in both branches, and the negative prompt's keys are the same for
  every frame: they are broadcast, not copied.
- From a layer's injection to its end the activations are tokens (.., h*w, c): spatial and temporal attention share
  one transposition in and one out, and every projection is one matrix product over all tokens.

An MTD in a lower precision (precision.py) takes x and gives its predictions in float32 all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.export.precision import cast, dense, softmax
from nuwaxl.train.networks.mtd import MTD, _Layer
from nuwaxl.train.networks.spatial import Attention, FeedForward, ResnetBlock, SpatialTransformer
from nuwaxl.train.networks.temporal import TemporalAttention, TemporalConv


class PromptState(NamedTuple):
    """Keys and values of one prompt cross-attention, split into heads, for the prompt and the negative prompt.

    Keys are transposed and hold the attention's 1 / sqrt(d).
    """

    key: Tensor  # (b, L, heads, d, l_p)
    value: Tensor  # (b, L, heads, l_p, d)
    negative_key: Tensor  # (b, heads, d, l_p)
    negative_value: Tensor  # (b, heads, l_p, d)


class Branches(NamedTuple):
    """Activations of `count` branches, (count * b * L, c, h, w): 1 while both are the same, then 2."""

    h: Tensor
    count: int


def prompt_state(attention: Attention, prompt: Tensor, negative: Tensor) -> PromptState:
    """prompt (b, L, l_p, d_p), negative (b, l_p, d_p)."""
    key, value = (_heads(layer(prompt), attention.heads) for layer in (attention.to_k, attention.to_v))
    negative_key, negative_value = (
        _heads(layer(negative), attention.heads) for layer in (attention.to_k, attention.to_v)
    )
    scale = value.shape[-1] ** -0.5
    return PromptState(key.transpose(-1, -2) * scale, value, negative_key.transpose(-1, -2) * scale, negative_value)


class GuidedDenoiser:
    """Runs an MTD on x for the prompt and for the negative prompt."""

    channel_axis = 1

    def __init__(self, mtd: MTD) -> None:
        self.mtd = mtd
        self.length = mtd.config.length

    def __call__(
        self, x: Tensor, timestep: Tensor, injections: Sequence[tuple[Tensor, Tensor]], prompts: Sequence[PromptState]
    ) -> tuple[Tensor, Tensor]:
        """x (b, L, c, h, w), timestep (b,), scale and shift (b, L, c, h, w) of every injecting layer, prompt state of
        every layer with attention -> the predictions cond and uncond, each of x's shape."""
        mtd = self.mtd
        embedding = cast(F.silu(mtd.time_embedding(timestep)), mtd.mid_resnet.conv1.weight.dtype)
        injected = iter(injections)
        prompted = iter(prompts)
        injects = iter([injecting for _, injecting in mtd._layers()])

        def run(layer: _Layer, branches: Branches) -> Branches:
            injection = next(injected) if next(injects) else None
            return self._layer(
                layer, branches, embedding, injection, next(prompted) if layer.attention is not None else None
            )

        branches = Branches(self._conv_in(x), 1)
        skips = [branches]
        for block in mtd.down_blocks:
            for layer in block.layers:
                branches = run(layer, branches)
                skips.append(branches)
            if block.resample is not None:
                branches = Branches(self._resample(block.resample, branches.h), branches.count)
                skips.append(branches)

        branches = run(mtd.mid_layer, branches)
        h = self._resnet(mtd.mid_resnet, branches, embedding)
        branches = Branches(self._temporal_conv(mtd.mid_temporal_conv, h), branches.count)

        for block in mtd.up_blocks:
            for layer in block.layers:
                joined = torch.cat([branches.h, _both(skips.pop())], dim=self.channel_axis)  # eq. 6
                branches = run(layer, Branches(joined, branches.count))
            if block.resample is not None:
                branches = Branches(self._resample(block.resample, branches.h), branches.count)

        cond, uncond = self._conv_out(branches.h).reshape(2, -1, *x.shape[1:]).unbind(0)
        return cond, uncond

    def _conv_in(self, x: Tensor) -> Tensor:
        return self.mtd.conv_in(x.reshape(-1, *x.shape[2:]))

    def _conv_out(self, h: Tensor) -> Tensor:
        return self.mtd.conv_out(F.silu(self.mtd.conv_norm_out(h)))

    def _resample(self, resample: nn.Module, h: Tensor) -> Tensor:
        return resample(h)

    def _layer(
        self,
        layer: _Layer,
        branches: Branches,
        embedding: Tensor,
        injection: tuple[Tensor, Tensor] | None,
        prompt: PromptState | None,
    ) -> Branches:
        """Spatial conv, temporal conv, injection, SA, PA, feed-forward, TA."""
        h = self._temporal_conv(layer.temporal_conv, self._resnet(layer.resnet, branches, embedding))
        if injection is not None:
            scale, shift = (tensor.reshape(1, -1, *h.shape[1:]) for tensor in injection)
            h = (h.reshape(branches.count, -1, *h.shape[1:]) * scale + shift).reshape(-1, *h.shape[1:])
        if prompt is None or layer.attention is None or layer.temporal_attention is None:
            return Branches(h, branches.count)
        channels, height, width = h.shape[1:]
        tokens = self._spatial(layer.attention, h, prompt, branches.count)
        tokens = self._temporal(layer.temporal_attention, tokens)
        return Branches(tokens.transpose(1, 2).reshape(-1, channels, height, width), 2)

    def _resnet(self, block: ResnetBlock, branches: Branches, embedding: Tensor) -> Tensor:
        """As ResnetBlock.forward; `embedding` (b, e) has its SiLU, and is projected once a segment, not a frame."""
        x = branches.h
        h = block.conv1(F.silu(block.norm1(x)))
        assert block.time_emb_proj is not None
        shape = h.shape[1:]
        added = block.time_emb_proj(embedding).reshape(1, -1, 1, shape[0], 1, 1)
        h = (h.reshape(branches.count, -1, self.length, *shape) + added).reshape(-1, *shape)
        h = block.conv2(F.silu(block.norm2(h)))
        return h + (x if block.conv_shortcut is None else block.conv_shortcut(x))

    def _temporal_conv(self, conv: TemporalConv, x: Tensor) -> Tensor:
        """As TemporalConv.forward; the shifted frames come from one gather."""
        channels, kernel = conv.weight.shape[1], conv.weight.shape[2]
        height, width = x.shape[2], x.shape[3]
        frames = x.reshape(-1, self.length, channels * height * width)
        padded = F.pad(frames, (0, 0, kernel // 2, kernel // 2))
        windows = (torch.arange(self.length)[:, None] + torch.arange(kernel)).flatten()
        stacked = padded.index_select(1, windows).reshape(-1, kernel * channels, height, width)
        weight = conv.weight.permute(0, 2, 1).reshape(channels, kernel * channels, 1, 1)
        return F.conv2d(stacked, weight, conv.bias)

    def _spatial(self, transformer: SpatialTransformer, h: Tensor, prompt: PromptState, count: int) -> Tensor:
        """As SpatialTransformer.forward, h (count*b*L, c, h, w) -> tokens (2*b*L, h*w, c)."""
        channels = h.shape[1]
        x, normed = (t.reshape(-1, channels, h.shape[2] * h.shape[3]).mT for t in (h, transformer.norm(h)))
        return self._transformer(transformer, x, normed, prompt, count)

    def _transformer(
        self, transformer: SpatialTransformer, x: Tensor, tokens: Tensor, prompt: PromptState, count: int
    ) -> Tensor:
        """x (count*b*L, h*w, c) and its group norm `tokens` -> tokens (2*b*L, h*w, c)."""
        block = transformer.transformer_blocks[0]
        tokens = _linear(tokens, transformer.proj_in.weight.flatten(1), transformer.proj_in.bias)
        mixed = self._attention(block.attn1, block.norm1(tokens))
        tokens = tokens + _linear(mixed, block.attn1.to_out[0].weight, block.attn1.to_out[0].bias)
        tokens = self._prompt(block.attn2, tokens, block.norm2(tokens), prompt, count)
        tokens = tokens + self._feed_forward(block.ff, block.norm3(tokens))
        out = _linear(tokens, transformer.proj_out.weight.flatten(1), transformer.proj_out.bias)
        return _add(out, 2, dense(x), count)

    def _attention(self, attention: Attention, normed: Tensor) -> Tensor:
        """SA before its last layer, (n, h*w, c) -> (n, h*w, c)."""
        query, key, value = (
            _heads(_linear(normed, layer.weight, None), attention.heads)
            for layer in (attention.to_q, attention.to_k, attention.to_v)
        )
        return _merge(_attend(query, key.transpose(-1, -2) * value.shape[-1] ** -0.5, value))

    def _prompt(self, attention: Attention, tokens: Tensor, normed: Tensor, prompt: PromptState, count: int) -> Tensor:
        """tokens (count*b*L, h*w, c) -> tokens with PA to the prompt and to the negative prompt (2*b*L, h*w, c)."""
        query = _linear(normed, attention.to_q.weight, None)
        mixed = self._prompt_attention(query, prompt, attention.heads, count)
        return _add(_linear(mixed, attention.to_out[0].weight, attention.to_out[0].bias), 2, tokens, count)

    def _prompt_attention(self, query: Tensor, prompt: PromptState, heads: int, count: int) -> Tensor:
        """query (count*b*L, h*w, c) -> what it finds in the prompt and in the negative prompt (2*b*L, h*w, c)."""
        pixels, channels = query.shape[1:]
        dim = channels // heads
        query = query.reshape(count, -1, self.length, pixels, heads, dim)
        cond = _attend(query[0].permute(0, 1, 3, 2, 4), prompt.key, prompt.value)
        cond = cond.permute(0, 1, 3, 2, 4).reshape(-1, pixels, channels)
        # One negative prompt a segment: the tokens of all of its frames attend to it as one sequence.
        queries = query[count - 1].permute(0, 3, 1, 2, 4).reshape(-1, heads, self.length * pixels, dim)
        uncond = _attend(queries, prompt.negative_key, prompt.negative_value)
        return torch.cat([cond, uncond.permute(0, 2, 1, 3).reshape(-1, pixels, channels)])

    def _feed_forward(self, ff: FeedForward, x: Tensor) -> Tensor:
        """GEGLU with its two halves as two products, so that no activation is split."""
        projection = ff.net[0].proj
        (w_hidden, w_gate), (b_hidden, b_gate) = projection.weight.chunk(2), projection.bias.chunk(2)
        hidden = _linear(x, w_hidden, b_hidden) * F.gelu(self._gate(x, w_gate, b_gate))
        return _linear(hidden, ff.net[2].weight, ff.net[2].bias)

    def _gate(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return _linear(x, weight, bias)

    def _temporal(self, attention: TemporalAttention, x: Tensor) -> Tensor:
        """As TemporalAttention.forward on tokens (n*L, h*w, c)."""
        pixels, channels = x.shape[1:]
        heads, dim = attention.heads, channels // attention.heads
        normed = attention.norm(x)
        if attention.positions:
            positions = attention.frame_positions(self.length)[:, None]
            normed = (normed.reshape(-1, self.length, pixels, channels) + positions).reshape(-1, pixels, channels)
        query, key, value = (
            _linear(normed, weight, None)
            .reshape(-1, self.length, pixels, heads, dim)
            .permute(0, 2, 3, 1, 4)  # (n, h*w, heads, L, d)
            for weight in attention.to_qkv.weight.chunk(3)
        )
        mixed = _attend(query, key.transpose(-1, -2) * dim**-0.5, value)
        mixed = mixed.permute(0, 3, 1, 2, 4).reshape(-1, pixels, channels)
        return x + _linear(mixed, attention.to_out.weight, attention.to_out.bias)


def _both(branches: Branches) -> Tensor:
    return branches.h if branches.count == 2 else torch.cat([branches.h, branches.h])


def _add(x: Tensor, count: int, y: Tensor, count_of_y: int) -> Tensor:
    """Sum of tokens (count*n, k, c) and (count_of_y*n, k, c), each of 1 or 2 branches."""
    shape = x.shape[1:]
    return (x.reshape(count, -1, *shape) + y.reshape(count_of_y, -1, *shape)).reshape(-1, *shape)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (n, k, c): one matrix product over all tokens, with its bias inside."""
    return F.linear(x.reshape(-1, x.shape[-1]), weight, bias).reshape(-1, x.shape[1], weight.shape[0])


def _heads(x: Tensor, heads: int) -> Tensor:
    """(.., n, c) -> (.., heads, n, d)"""
    return x.reshape(-1, *x.shape[1:-1], heads, x.shape[-1] // heads).transpose(-2, -3)


def _merge(x: Tensor) -> Tensor:
    """(n, heads, k, d) -> (n, k, c)"""
    return x.transpose(1, 2).reshape(-1, x.shape[2], x.shape[1] * x.shape[3])


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """query (.., n, d), key (.., d, k) scaled, value (.., k, d) -> (.., n, d)"""
    return softmax(query @ key) @ value

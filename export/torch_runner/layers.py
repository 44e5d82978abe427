"""The layers of MTD as a GPU runs them: channels last (n, L, h, w, c) from end to end, the Triton operators between.

Each is built from a trained layer of `train.networks` and answers as it does. What differs is the layout, in which
convolutions, matrix products, attention and the temporal operators all read and write without moving an axis, and that
some weights are put together beforehand. n counts segments times branches (see `step`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.kernels import ops
from nuwaxl.train.networks.spatial import ResnetBlock, SpatialTransformer, Upsample
from nuwaxl.train.networks.temporal import TemporalAttention, TemporalConv


def convolve(conv: nn.Module, x: Tensor) -> Tensor:
    """A spatial convolution, or an `Upsampling`, of x (n, L, h, w, c) -> (n, L, h', w', c')."""
    frames = x.flatten(0, 1).permute(0, 3, 1, 2)  # channels-last, as cuDNN likes it
    out = conv(frames).permute(0, 2, 3, 1)
    return out.reshape(*x.shape[:2], *out.shape[1:])


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer. In a compiled step the bias is left to whatever adds to the answer next, and is free there: in
    cuBLAS it is not (of 262,144 tokens, 320 channels wide, an H200 takes 0.158 ms with it and 0.098 ms without)."""
    if torch.compiler.is_compiling():
        return F.linear(x, weight) + bias
    return F.linear(x, weight, bias)


def group_norm(norm: nn.GroupNorm, x: Tensor, *, silu: bool = True) -> Tensor:
    """SiLU(GroupNorm(x)), or the norm alone, x (n, L, h, w, c)."""
    out = ops.group_norm_silu(x.flatten(2, 3), norm.weight, norm.bias, norm.num_groups, norm.eps, silu)
    return out.reshape(x.shape)


class Prompt(NamedTuple):
    """Keys and values of one prompt cross-attention, for the prompt and the negative prompt."""

    key: Tensor  # (b, L, l_p, c)
    value: Tensor
    negative_key: Tensor  # (b, l_p, c)
    negative_value: Tensor


class Resnet(nn.Module):
    """A residual block with the timestep embedding added on channels (eq. 7)."""

    def __init__(self, block: ResnetBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x (n, L, h, w, c), embedding (n, e) with its SiLU."""
        block = self.block
        assert block.time_emb_proj is not None
        added = block.time_emb_proj(embedding)
        h = convolve(block.conv1, group_norm(block.norm1, x)) + added[:, None, None, None]
        h = convolve(block.conv2, group_norm(block.norm2, h))
        if block.conv_shortcut is not None:
            x = F.linear(x, block.conv_shortcut.weight.flatten(1), block.conv_shortcut.bias)
        return x + h


class Upsampling(nn.Module):
    """Frames enlarged twice (nearest neighbour) and convolved 3x3, by 4/9 of the operations.

    Under the kernel lie at most four different pixels. Which of its weights meet the same one depends on whether the
    row and the column written to are even: this is four kernels of 2x2, whose weights are sums of those of 3x3. All
    four are computed in one convolution of the frames as they are, and what is meant for each pixel is picked.
    """

    # Of the two pixels in reach of an even row (first) and of an odd one: the rows of the 3x3 kernel that meet them.
    _MET = (((1.0, 0.0, 0.0), (0.0, 1.0, 1.0)), ((1.0, 1.0, 0.0), (0.0, 0.0, 1.0)))

    def __init__(self, upsample: Upsample) -> None:
        super().__init__()
        weight, bias = upsample.conv.weight.detach(), upsample.conv.bias
        assert bias is not None
        met = torch.tensor(self._MET, device=weight.device)
        kernels = torch.einsum("ari,bsj,ocij->abocrs", met, met, weight.float()).flatten(0, 2).to(weight.dtype)
        self.weight = nn.Parameter(kernels.contiguous(memory_format=torch.channels_last), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().repeat(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, c, h, w) -> (n, c, 2h, 2w), in the memory of channels last."""
        n, c, h, w = x.shape
        of_all = F.conv2d(x, self.weight, self.bias, padding=1).unflatten(1, (2, 2, c))  # (n, 2, 2, c, h + 1, w + 1)
        even, odd = (
            torch.stack([of_all[:, a, b, :, a : a + h, b : b + w].permute(0, 2, 3, 1) for b in (0, 1)], dim=3)
            for a in (0, 1)
        )
        return torch.stack([even, odd], dim=2).reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)


class Convolution(nn.Module):
    """The temporal convolution (eq. 9) and the condition injection that may follow (eq. 10, 11), one operator."""

    def __init__(self, conv: TemporalConv) -> None:
        super().__init__()
        # The operator wants (k, c_in, c_out).
        self.weight = nn.Parameter(conv.weight.detach().permute(2, 1, 0).contiguous(), requires_grad=False)
        self.bias = conv.bias

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x (n*b, L, h, w, c), scale and shift (b, L, h, w, c), which serve every branch."""
        injection = [None if tensor is None else tensor.flatten(2, 3) for tensor in (scale, shift)]
        return ops.temporal_conv(x.flatten(2, 3), self.weight, self.bias, *injection).reshape(x.shape)


class Transformer(nn.Module):
    """SA, PA, feed-forward (eq. 12 to 15) over the pixels of each frame."""

    def __init__(self, transformer: SpatialTransformer) -> None:
        super().__init__()
        self.transformer = transformer
        self.block = transformer.transformer_blocks[0]
        own = self.block.attn1
        weights = [layer.weight.detach() for layer in (own.to_q, own.to_k, own.to_v)]
        self.qkv = nn.Parameter(torch.cat(weights), requires_grad=False)
        # The feed-forward's second layer and the projection after it, between which nothing but a sum is: of the
        # gated values and of the tokens, one behind the other.
        down, out = self.block.ff.net[2], transformer.proj_out
        weight, bias = (p.detach().flatten(1).float() for p in (out.weight, down.bias[:, None]))
        both = torch.cat([weight @ down.weight.detach().float(), weight], dim=1)
        self.out = nn.Parameter(both.to(out.weight.dtype), requires_grad=False)
        self.out_bias = nn.Parameter((weight @ bias)[:, 0].to(out.bias.dtype) + out.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor, prompt: Prompt) -> Tensor:
        """x (b, L, h, w, c) while both branches are the same, then (2b, ..) -> (2b, L, h, w, c)."""
        block, shape, pair = self.block, x.shape, 2 * prompt.key.shape[0]
        proj_in, own, other = self.transformer.proj_in, block.attn1.to_out[0], block.attn2.to_out[0]
        x = x.flatten(2, 3)  # (n, L, p, c)
        tokens = group_norm(self.transformer.norm, x.reshape(shape), silu=False).flatten(2, 3)
        tokens = linear(tokens, proj_in.weight.flatten(1), proj_in.bias)

        query, key, value = (part.flatten(0, 1) for part in F.linear(block.norm1(tokens), self.qkv).chunk(3, dim=-1))
        mixed = _attend(query, key, value, block.attn1.heads).reshape(tokens.shape)
        tokens = tokens + linear(mixed, own.weight, own.bias)

        query = branches(block.attn2.to_q(block.norm2(tokens)), pair).flatten(0, 1)
        # The negative prompt again for every frame, which is less than it would be to join two attentions' answers.
        key, value = (
            torch.cat([positive, negative[:, None].expand_as(positive)]).flatten(0, 1)
            for positive, negative in ((prompt.key, prompt.negative_key), (prompt.value, prompt.negative_value))
        )
        mixed = _attend(query, key, value, block.attn2.heads).unflatten(0, (pair, -1))
        tokens = branches(tokens, pair) + linear(mixed, other.weight, other.bias)

        # proj_out(tokens + ff(norm(tokens)))
        gated = block.ff.net[0](block.norm3(tokens))
        out = branches(x, pair) + self._project(gated, tokens)
        return out.reshape(-1, *shape[1:])

    def _project(self, gated: Tensor, tokens: Tensor) -> Tensor:
        if torch.compiler.is_compiling():  # both are written to where they are read from, one behind the other
            return linear(torch.cat([gated, tokens], dim=-1), self.out, self.out_bias)
        down, out = self.out.split([gated.shape[-1], tokens.shape[-1]], dim=1)
        return F.linear(gated, down) + F.linear(tokens, out, self.out_bias)


class Temporal(nn.Module):
    """Temporal self-attention TA with residual, one operator over packed qkv."""

    def __init__(self, attention: TemporalAttention, length: int) -> None:
        super().__init__()
        self.attention = attention
        positions = attention.frame_positions(length).detach()[:, None, None] if attention.positions else None
        self.register_buffer("positions", positions)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, L, h, w, c)."""
        attention = self.attention
        normed = attention.norm(x)
        if self.positions is not None:
            normed = normed + self.positions
        qkv = attention.to_qkv(normed).flatten(2, 3)
        mixed = ops.temporal_attention(qkv, attention.heads)
        return x + linear(mixed, attention.to_out.weight, attention.to_out.bias).reshape(x.shape)


def branches(x: Tensor, n: int) -> Tensor:
    """x (b, ..) twice where n is 2b, x itself where it has n rows."""
    return x if x.shape[0] == n else torch.cat([x, x])


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """query (n, q, c), key and value (n, k, c) -> (n, q, c), by torch's fused attention."""

    def split(tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)  # (n, heads, k, d), a view

    return F.scaled_dot_product_attention(split(query), split(key), split(value)).transpose(1, 2).flatten(2)

"""The temporal layers of NUWA-XL: convolution (eq. 1, 9), self-attention (eq. 2) over the L frames of a segment.

Frames travel as a batch: every tensor here is (b*L, c, h, w) with the L frames of a segment next to each other.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.kernels import ops
from nuwaxl.train.networks.layout import from_frames, to_frames, use_operator
from nuwaxl.train.networks.spatial import timestep_embedding


class TemporalConv(nn.Module):
    """Conv1d over the L frames, c_out == c_in; with init="identity" it returns its input exactly (eq. 1).

    Written as one 1x1 convolution over the k shifted frames stacked on channels: no axis is transposed, and a
    runtime's matrix multiplication does all of the work. `weight` keeps Conv1d's shape (c_out, c_in, k).
    """

    def __init__(self, channels: int, kernel: int = 3, init: Literal["identity", "random"] = "identity") -> None:
        super().__init__()
        conv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2)
        if init == "identity":
            nn.init.dirac_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
        self.weight = conv.weight
        self.bias = conv.bias

    def forward(self, x: Tensor, length: int) -> Tensor:
        """x (b*L, c, h, w) -> the same shape; frames outside the segment count as zero."""
        channels, kernel = self.weight.shape[1], self.weight.shape[2]
        height, width = x.shape[2], x.shape[3]
        if use_operator(x, self.weight, self.bias):
            return from_frames(self.fused(to_frames(x, length)), height, width)
        half = kernel // 2
        frames = x.reshape(-1, length, channels, height, width)
        padded = F.pad(frames, (0, 0, 0, 0, 0, 0, half, half))
        shifted = torch.cat([padded[:, i : i + length] for i in range(kernel)], dim=2)
        weight = self.weight.permute(0, 2, 1).reshape(channels, kernel * channels, 1, 1)
        return F.conv2d(shifted.reshape(-1, kernel * channels, height, width), weight, self.bias)

    def fused(self, frames: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """frames (n * b, L, h*w, c), scale and shift (b, L, h*w, c) -> shape of frames, by one operator."""
        weight, bias = self.weight.permute(2, 1, 0).to(frames.dtype), self.bias.to(frames.dtype)
        return ops.temporal_conv(frames, weight, bias, scale, shift)


class TemporalAttention(nn.Module):
    """Temporal self-attention TA with residual; h*w is batch, L the sequence (eq. 12, 13 over time).

    The output projection starts at zero, so that the layer starts as the identity (eq. 2). With `positions` the
    sinusoidal embedding of each frame's number in the segment is added to the normalised tokens: attention alone does
    not see the frames' order (docs/adr/0005).
    """

    def __init__(
        self, channels: int, heads: int, init: Literal["identity", "random"] = "identity", positions: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.positions = positions
        self.norm = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        if init == "identity":
            nn.init.zeros_(self.to_out.weight)
        nn.init.zeros_(self.to_out.bias)

    def frame_positions(self, length: int) -> Tensor:
        """What is added to the L frames' normalised tokens, (L, c)."""
        numbers = torch.arange(length, device=self.to_qkv.weight.device)
        return timestep_embedding(numbers, self.to_qkv.in_features).to(self.to_qkv.weight.dtype)

    def forward(self, x: Tensor, length: int) -> Tensor:
        """x (b*L, c, h, w) -> the same shape."""
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        if use_operator(x, gradient=True):
            return x + from_frames(self.fused(to_frames(x, length)), height, width)
        pixels, head_dim = height * width, channels // self.heads
        tokens = x.reshape(-1, length, channels, pixels).permute(0, 3, 1, 2)  # (b, hw, L, c)
        tokens = tokens.reshape(-1, length, channels)
        normed = self.norm(tokens)
        if self.positions:
            normed = normed + self.frame_positions(length)
        qkv = self.to_qkv(normed).reshape(-1, length, 3, self.heads, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (b*hw, heads, L, head_dim)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out = self.to_out(mixed.permute(0, 2, 1, 3).reshape(-1, length, channels))
        out = out.reshape(-1, pixels, length, channels).permute(0, 2, 3, 1)
        return x + out.reshape(-1, channels, height, width)

    def fused(self, frames: Tensor) -> Tensor:
        """frames (b, L, h*w, c) -> what the residual adds, the same shape, by one operator."""
        normed = self.norm(frames)
        if self.positions:
            normed = normed + self.frame_positions(frames.shape[1])[:, None]
        return self.to_out(ops.temporal_attention(self.to_qkv(normed), self.heads))

"""Spatial layers of latent diffusion, under the parameter names of its published weights (diffusers' naming)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.train.networks.layout import norm_silu


def timestep_embedding(timestep: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of (b,) timesteps -> (b, dim), cosines first, as the pretrained U-Net expects."""
    half = dim // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half)
    angles = timestep[:, None].float() * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Two linear layers over the sinusoidal embedding: (b,) -> (b, dim_out)."""

    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.dim = dim
        self.linear_1 = nn.Linear(dim, dim_out)
        self.linear_2 = nn.Linear(dim_out, dim_out)

    def forward(self, timestep: Tensor) -> Tensor:
        embedded = timestep_embedding(timestep, self.dim).to(self.linear_1.weight.dtype)
        return self.linear_2(F.silu(self.linear_1(embedded)))


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, (timestep embedding on channels, eq. 7), norm, SiLU, conv, residual. x (n, c_in, h, w)."""

    def __init__(self, c_in: int, c_out: int, groups: int, embedding_dim: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=eps)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time_emb_proj = nn.Linear(embedding_dim, c_out) if embedding_dim is not None else None
        self.norm2 = nn.GroupNorm(groups, c_out, eps=eps)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """embedding (n, embedding_dim), one row for each of the n frames."""
        h = self.conv1(norm_silu(self.norm1, x))
        if self.time_emb_proj is not None and embedding is not None:
            h = h + self.time_emb_proj(F.silu(embedding))[:, :, None, None]
        h = self.conv2(norm_silu(self.norm2, h))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """Multi-head attention of tokens (n, q, c) to keys and values (n, k, c)."""

    def __init__(self, channels: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_dim, channels, bias=False)
        self.to_v = nn.Linear(context_dim, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (n, k, context_dim) -> keys and values (n, k, c)."""
        return self.to_k(context), self.to_v(context)

    def forward(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        channels = tokens.shape[2]
        head_dim = channels // self.heads

        def split(t: Tensor) -> Tensor:
            return t.reshape(-1, t.shape[1], self.heads, head_dim).permute(0, 2, 1, 3)

        mixed = F.scaled_dot_product_attention(split(self.to_q(tokens)), split(key), split(value))
        return self.to_out[0](mixed.permute(0, 2, 1, 3).reshape(-1, tokens.shape[1], channels))


class GEGLU(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        return hidden * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, channels: int, multiple: int) -> None:
        super().__init__()
        inner = channels * multiple
        # The middle entry stands where the published weights count a dropout layer, which holds no parameters.
        self.net = nn.ModuleList([GEGLU(channels, inner), nn.Identity(), nn.Linear(inner, channels)])

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class BasicTransformerBlock(nn.Module):
    """SA (eq. 12, 13), PA (eq. 14, 15), feed-forward; each with its norm and residual. tokens (b*L, h*w, c)."""

    def __init__(self, channels: int, prompt_dim: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, prompt_dim, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels, feed_forward)

    def forward(self, tokens: Tensor, key: Tensor, value: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        tokens = tokens + self.attn1(normed, *self.attn1.keys_values(normed))
        tokens = tokens + self.attn2(self.norm2(tokens), key, value)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """The U-Net's spatial transformer: SA and PA over the h*w tokens of each frame. x (b*L, c, h, w)."""

    def __init__(self, channels: int, prompt_dim: int, heads: int, groups: int, feed_forward: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(channels, prompt_dim, heads, feed_forward)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def keys_values(self, prompt: Tensor) -> Tensor:
        """prompt (n, l_p, d_p) -> prompt keys and values (n, l_p, 2c): they do not depend on the step."""
        return torch.cat(self.transformer_blocks[0].attn2.keys_values(prompt), dim=-1)

    def forward(self, x: Tensor, keys_values: Tensor) -> Tensor:
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        tokens = self.proj_in(self.norm(x)).reshape(-1, channels, height * width).permute(0, 2, 1)
        key, value = keys_values.chunk(2, dim=-1)
        tokens = self.transformer_blocks[0](tokens, key, value)
        return x + self.proj_out(tokens.permute(0, 2, 1).reshape(-1, channels, height, width))


class Downsample(nn.Module):
    """Halve height and width by a strided convolution; `asymmetric` pads right and bottom only (AutoencoderKL)."""

    def __init__(self, channels: int, asymmetric: bool = False) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

"""T-KLVAE (paper section 3.1): latent diffusion's AutoencoderKL with temporal layers after its spatial ones.

A temporal convolution follows every spatial 3x3 convolution, a temporal attention the spatial attention, in encoder
and decoder. Spatial parameters keep the names of the published weights; the temporal ones carry `temporal` in theirs.
Frames travel as a batch (b*L, c, h, w).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.train.config import TKLVAEConfig
from nuwaxl.train.networks.layout import norm_silu
from nuwaxl.train.networks.spatial import Downsample, ResnetBlock, Upsample
from nuwaxl.train.networks.temporal import TemporalAttention, TemporalConv

_EPS = 1e-6  # of AutoencoderKL's group norms


def _temporal_conv(channels: int, config: TKLVAEConfig) -> TemporalConv | None:
    if config.temporal == "none":
        return None
    return TemporalConv(channels, config.temporal_kernel, config.temporal)


def _apply(layer: nn.Module | None, x: Tensor, length: int) -> Tensor:
    return x if layer is None else layer(x, length)


class _Resnet(ResnetBlock):
    """A spatial residual block whose two 3x3 convolutions are each followed by a temporal one."""

    def __init__(self, c_in: int, c_out: int, config: TKLVAEConfig) -> None:
        super().__init__(c_in, c_out, config.norm_groups, eps=_EPS)
        self.temporal1 = _temporal_conv(c_out, config)
        self.temporal2 = _temporal_conv(c_out, config)

    def forward(self, x: Tensor, length: int) -> Tensor:  # type: ignore[override]
        h = _apply(self.temporal1, self.conv1(norm_silu(self.norm1, x)), length)
        h = _apply(self.temporal2, self.conv2(norm_silu(self.norm2, h)), length)
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class _SpatialAttention(nn.Module):
    """One-head self-attention over the pixels of each frame, as in AutoencoderKL's middle block."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        channels, height, width = x.shape[1], x.shape[2], x.shape[3]
        tokens = self.group_norm(x).reshape(-1, channels, height * width).permute(0, 2, 1)
        query, key, value = (layer(tokens)[:, None] for layer in (self.to_q, self.to_k, self.to_v))
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.to_out[0](mixed).permute(0, 2, 1).reshape(-1, channels, height, width)


class _MidBlock(nn.Module):
    def __init__(self, channels: int, config: TKLVAEConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(channels, channels, config) for _ in range(2)])
        self.attentions = nn.ModuleList([_SpatialAttention(channels, config.norm_groups)])
        self.temporal_attention = (
            None if config.temporal == "none" else TemporalAttention(channels, config.temporal_heads, config.temporal)
        )

    def forward(self, h: Tensor, length: int) -> Tensor:
        h = self.attentions[0](self.resnets[0](h, length))
        h = _apply(self.temporal_attention, h, length)
        return self.resnets[1](h, length)


class _Block(nn.Module):
    """Residual blocks of one resolution and the resampling after them, if any."""

    def __init__(self, c_in: int, c_out: int, layers: int, resample: str | None, config: TKLVAEConfig) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_Resnet(c_in if i == 0 else c_out, c_out, config) for i in range(layers)])
        self.downsamplers = nn.ModuleList([Downsample(c_out, asymmetric=True)] if resample == "down" else [])
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if resample == "up" else [])
        self.temporal_resample = _temporal_conv(c_out, config) if resample is not None else None

    def forward(self, h: Tensor, length: int) -> Tensor:
        for resnet in self.resnets:
            h = resnet(h, length)
        for resampler in (*self.downsamplers, *self.upsamplers):
            h = _apply(self.temporal_resample, resampler(h), length)
        return h


class Encoder(nn.Module):
    """Pixels (b*L, C, H, W) -> mean and log variance of the latent (b*L, 2c, H/f, W/f)."""

    def __init__(self, config: TKLVAEConfig) -> None:
        super().__init__()
        widths = config.block_channels
        self.conv_in = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        self.temporal_in = _temporal_conv(widths[0], config)
        self.down_blocks = nn.ModuleList(
            _Block(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block,
                "down" if i < len(widths) - 1 else None,
                config,
            )
            for i, width in enumerate(widths)
        )
        self.mid_block = _MidBlock(widths[-1], config)
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)
        self.temporal_out = _temporal_conv(2 * config.latent_channels, config)

    def forward(self, x: Tensor, length: int) -> Tensor:
        h = _apply(self.temporal_in, self.conv_in(x), length)
        for block in self.down_blocks:
            h = block(h, length)
        h = self.conv_out(norm_silu(self.conv_norm_out, self.mid_block(h, length)))
        return _apply(self.temporal_out, h, length)


class Decoder(nn.Module):
    """Latents (b*L, c, H/f, W/f) -> pixels (b*L, C, H, W) in [-1, 1]."""

    def __init__(self, config: TKLVAEConfig) -> None:
        super().__init__()
        widths = tuple(reversed(config.block_channels))
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.temporal_in = _temporal_conv(widths[0], config)
        self.mid_block = _MidBlock(widths[0], config)
        self.up_blocks = nn.ModuleList(
            _Block(
                widths[max(i - 1, 0)],
                width,
                config.layers_per_block + 1,
                "up" if i < len(widths) - 1 else None,
                config,
            )
            for i, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.channels, 3, padding=1)
        self.temporal_out = _temporal_conv(config.channels, config)

    def forward(self, z: Tensor, length: int) -> Tensor:
        h = self.mid_block(_apply(self.temporal_in, self.conv_in(z), length), length)
        for block in self.up_blocks:
            h = block(h, length)
        return _apply(self.temporal_out, self.conv_out(norm_silu(self.conv_norm_out, h)), length)


class TKLVAE(nn.Module):
    """Video (b, L, C, H, W) in [-1, 1] to and from latents (b, L, c, h, w).

    `latent_shift` and `latent_scale` (c,) standardise each latent channel for the diffusion:
    x_0 = (mean - shift) * scale. They are measured on the training videos after training.
    """

    latent_shift: Tensor
    latent_scale: Tensor

    def __init__(self, config: TKLVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.register_buffer("latent_shift", torch.zeros(config.latent_channels))
        self.register_buffer("latent_scale", torch.ones(config.latent_channels))

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """video (b, L, C, H, W) -> posterior mean and log variance, each (b, L, c, h, w), not standardised."""
        length = video.shape[1]
        moments = self.quant_conv(self.encoder(video.flatten(0, 1), length))
        mean, log_variance = moments.reshape(-1, length, *moments.shape[1:]).chunk(2, dim=2)
        return mean, log_variance.clamp(-30.0, 20.0)

    def reconstruct(self, z: Tensor) -> Tensor:
        """Latents as `moments` gives them (b, L, c, h, w) -> video (b, L, C, H, W)."""
        length = z.shape[1]
        video = self.decoder(self.post_quant_conv(z.flatten(0, 1)), length)
        return video.reshape(-1, length, *video.shape[1:])

    def encode(self, video: Tensor) -> Tensor:
        """video (b, L, C, H, W) in [-1, 1] -> standardised latents x_0 (b, L, c, h, w)."""
        mean, _ = self.moments(video)
        return (mean - self.latent_shift[:, None, None]) * self.latent_scale[:, None, None]

    def decode(self, latents: Tensor) -> Tensor:
        """Standardised latents x_0 (b, L, c, h, w) -> video (b, L, C, H, W)."""
        return self.reconstruct(latents / self.latent_scale[:, None, None] + self.latent_shift[:, None, None])

    def temporal_parameters(self) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.named_parameters() if "temporal" in name]

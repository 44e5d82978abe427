"""MTD, Mask Temporal Diffusion (paper section 3.2): one masked 3-D U-Net for the global and the local diffusions.

What does not depend on the step (the condition's scales and shifts, the prompts' keys and values) is computed once a
segment by `prepare`; `denoise` is what runs at every step. Frames travel as a batch (b*L, c, h, w).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.train.config import MTDConfig
from nuwaxl.train.networks.injection import ConditionInjection, Injection
from nuwaxl.train.networks.spatial import Downsample, ResnetBlock, SpatialTransformer, TimestepEmbedding, Upsample
from nuwaxl.train.networks.temporal import TemporalAttention, TemporalConv


class Prepared(NamedTuple):
    """The step-independent inputs of a segment, in the order in which the layers use them."""

    injections: list[Injection]  # one for each layer that injects
    keys_values: list[Tensor]  # (b*L, l_p, 2c), one for each layer with attention


class _Layer(nn.Module):
    """One layer of a block: spatial conv, temporal conv, injection, SA, PA, TA (the paper's order)."""

    def __init__(self, c_in: int, c_out: int, attention: bool, config: MTDConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        self.resnet = ResnetBlock(c_in, c_out, groups, 4 * config.block_channels[0])
        self.temporal_conv = TemporalConv(c_out, config.temporal_kernel)
        self.attention = (
            SpatialTransformer(c_out, config.prompt_dim, config.heads, groups, config.feed_forward)
            if attention
            else None
        )
        self.temporal_attention = (
            TemporalAttention(c_out, config.heads, positions=config.frame_positions) if attention else None
        )

    def forward(
        self, h: Tensor, embedding: Tensor, injection: Injection | None, keys_values: Tensor | None, length: int
    ) -> Tensor:
        h = self.temporal_conv(self.resnet(h, embedding), length)
        if injection is not None:
            h = injection.scale * h + injection.shift
        if self.attention is not None and self.temporal_attention is not None and keys_values is not None:
            h = self.temporal_attention(self.attention(h, keys_values), length)
        return h


class _Block(nn.Module):
    def __init__(self, layers: list[_Layer], resample: nn.Module | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.resample = resample


def _injection_places(config: MTDConfig) -> list[tuple[int, bool]]:
    """The level of every layer in the order of use (down, middle, up), and whether it injects the condition: the
    ablations MI and SI of Table 2b."""
    last = len(config.block_channels) - 1
    down = [level for level in range(last + 1) for _ in range(config.layers_per_block)] + [last]
    up = [level for level in reversed(range(last + 1)) for _ in range(config.layers_per_block + 1)]
    places = [(level, False) for level in down] + [(level, True) for level in up]
    return [(level, (upward or config.symmetric) and (config.multi_scale or level == 0)) for level, upward in places]


class MTD(nn.Module):
    """eps_theta(x_t, p, t, x_0^c) of eq. 5 for segments of L frames, global (mask all 0) and local alike."""

    def __init__(self, config: MTDConfig) -> None:
        super().__init__()
        self.config = config
        widths, attention, count = config.block_channels, config.attention, config.layers_per_block
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(widths[0], 4 * widths[0])

        self.down_blocks = nn.ModuleList()
        skips = [widths[0]]
        for level, width in enumerate(widths):
            previous = widths[max(level - 1, 0)]
            layers = [_Layer(previous if i == 0 else width, width, attention[level], config) for i in range(count)]
            last = level == len(widths) - 1
            self.down_blocks.append(_Block(layers, None if last else Downsample(width)))
            skips += [width] * (count if last else count + 1)

        self.mid_layer = _Layer(widths[-1], widths[-1], True, config)
        self.mid_resnet = ResnetBlock(widths[-1], widths[-1], config.norm_groups, 4 * widths[0])
        self.mid_temporal_conv = TemporalConv(widths[-1], config.temporal_kernel)

        self.up_blocks = nn.ModuleList()
        below = widths[-1]
        for level in reversed(range(len(widths))):
            width = widths[level]
            layers = []
            for i in range(count + 1):
                layers.append(_Layer((below if i == 0 else width) + skips.pop(), width, attention[level], config))
            self.up_blocks.append(_Block(layers, Upsample(width) if level > 0 else None))
            below = width

        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.latent_channels, 3, padding=1)
        places = _injection_places(config)
        self._injects = [injects for _, injects in places]
        self.injection = ConditionInjection(config, [level for level, injects in places if injects])

    def _layers(self) -> list[tuple[_Layer, bool]]:
        """Every layer in the order of use, with whether it injects the condition."""
        down = [layer for block in self.down_blocks for layer in block.layers]
        up = [layer for block in self.up_blocks for layer in block.layers]
        return list(zip([*down, self.mid_layer, *up], self._injects, strict=True))

    def prompt_keys_values(self, prompt: Tensor) -> list[Tensor]:
        """Prompt embeddings (n, l_p, d_p) -> keys and values (n, l_p, 2c) of every layer with attention."""
        return [layer.attention.keys_values(prompt) for layer, _ in self._layers() if layer.attention is not None]

    def prepare(self, prompt: Tensor, condition: Tensor, mask: Tensor) -> Prepared:
        """Per-frame prompts (b, L, l_p, d_p), x_0^c (b, L, c, h, w), x_0^m (b, L, 1, h, w) -> inputs of `denoise`."""
        return Prepared(self.injection(condition, mask), self.prompt_keys_values(prompt.flatten(0, 1)))

    def denoise(self, x: Tensor, timestep: Tensor, prepared: Prepared) -> Tensor:
        """x_t (b, L, c, h, w), timestep (b,) -> the prediction (eps or v), shape of x_t."""
        length = self.config.length
        embedding = self.time_embedding(timestep).repeat_interleave(length, dim=0)
        injections, keys_values = iter(prepared.injections), iter(prepared.keys_values)
        injects = iter([injected for _, injected in self._layers()])

        def run(layer: _Layer, h: Tensor) -> Tensor:
            injection = next(injections) if next(injects) else None
            return layer(h, embedding, injection, next(keys_values) if layer.attention is not None else None, length)

        h = self.conv_in(x.flatten(0, 1))
        skips = [h]
        for block in self.down_blocks:
            for layer in block.layers:
                h = run(layer, h)
                skips.append(h)
            if block.resample is not None:
                h = block.resample(h)
                skips.append(h)

        h = self.mid_temporal_conv(self.mid_resnet(run(self.mid_layer, h), embedding), length)

        for block in self.up_blocks:
            for layer in block.layers:
                h = run(layer, torch.cat([h, skips.pop()], dim=1))  # eq. 6
            if block.resample is not None:
                h = block.resample(h)

        h = self.conv_out(F.silu(self.conv_norm_out(h)))
        return h.reshape(-1, length, *h.shape[1:])

    def forward(self, x: Tensor, timestep: Tensor, prompt: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
        """`prepare` and `denoise` in one, for training."""
        return self.denoise(x, timestep, self.prepare(prompt, condition, mask))

    def temporal_parameters(self) -> list[nn.Parameter]:
        """Of the layers that NUWA-XL adds: temporal convolutions, temporal attentions, condition injection."""
        return [p for name, p in self.named_parameters() if "temporal" in name or name.startswith("injection.")]

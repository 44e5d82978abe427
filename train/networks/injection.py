"""Condition injection (eq. 10, 11): first and last frame's latents and the frame mask, at every scale of MTD."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.train.config import MTDConfig


class Injection(NamedTuple):
    """Eq. 10 and 11 in one: h := scale * h + shift, each (b*L, c, h, w)."""

    scale: Tensor
    shift: Tensor


class _Pyramid(nn.Module):
    """A cascade of convolutions: (n, c_in, h, w) -> one feature map (n, channels, h/2^i, w/2^i) for each level."""

    def __init__(self, c_in: int, channels: int, levels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(c_in, channels, 3, padding=1)
        self.downs = nn.ModuleList(nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(levels - 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = [F.silu(self.conv_in(x))]
        for down in self.downs:
            features.append(F.silu(down(features[-1])))
        return features


class _ScaleShift(nn.Module):
    """Linear projection, then a zero-initialised convolution: features -> w and b, both 0 at initialisation."""

    def __init__(self, channels: int, c_out: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(channels, channels, 1)
        self.zero_conv = nn.Conv2d(channels, 2 * c_out, 3, padding=1)
        nn.init.zeros_(self.zero_conv.weight)
        assert self.zero_conv.bias is not None
        nn.init.zeros_(self.zero_conv.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        w, b = self.zero_conv(self.projection(features)).chunk(2, dim=1)
        return w, b


class ConditionInjection(nn.Module):
    """x_0^c (b, L, c, h, w) and x_0^m (b, L, 1, h, w) -> one `Injection` for each injecting layer.

    Eq. 10 then eq. 11 are h := (1 + w_m) * ((1 + w_c) * h + b_c) + b_m, folded here since neither depends on the step.
    """

    def __init__(self, config: MTDConfig, levels: list[int]) -> None:
        super().__init__()
        self.levels = levels
        depth, channels = max(levels) + 1, config.condition_channels
        self.condition = _Pyramid(config.latent_channels, channels, depth)
        self.mask = _Pyramid(1, channels, depth)
        widths = [config.block_channels[level] for level in levels]
        self.condition_layers = nn.ModuleList(_ScaleShift(channels, width) for width in widths)
        self.mask_layers = nn.ModuleList(_ScaleShift(channels, width) for width in widths)

    def forward(self, condition: Tensor, mask: Tensor) -> list[Injection]:
        condition_features, mask_features = self.condition(condition.flatten(0, 1)), self.mask(mask.flatten(0, 1))
        injections = []
        for level, of_condition, of_mask in zip(self.levels, self.condition_layers, self.mask_layers, strict=True):
            w_c, b_c = of_condition(condition_features[level])
            w_m, b_m = of_mask(mask_features[level])
            injections.append(Injection((1 + w_m) * (1 + w_c), (1 + w_m) * b_c + b_m))
        return injections

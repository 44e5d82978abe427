"""The five graphs of a bundle as torch modules over the trained networks (docs/structure.md, "The bundle").

text, encode and decode wrap one network; prepare computes once a segment what does not depend on the timestep; step
is one denoising step with guidance and the sampler's update inside. The networks may be in a lower precision
(precision.py): what a caller gives and gets stays in float32, the state between prepare and step is in the lower one.
With `kernels` the graphs call the operators `nuwaxl::*`, the state's scales and shifts are in frame layout
(b, L, h*w, c), and its keys and values are not split into heads (docs/adr/0007).
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from nuwaxl.export import denoiser, frames_denoiser
from nuwaxl.export.denoiser import GuidedDenoiser, PromptState
from nuwaxl.export.frames_denoiser import FramesDenoiser
from nuwaxl.export.precision import cast
from nuwaxl.kernels import ops
from nuwaxl.train.networks.injection import Injection
from nuwaxl.train.networks.layout import operators, to_frames
from nuwaxl.train.networks.mtd import MTD
from nuwaxl.train.networks.text import CLIPText
from nuwaxl.train.networks.tklvae import TKLVAE


class TextGraph(nn.Module):
    """tokens int64 (n, l_p) -> prompt (n, l_p, d_p)."""

    def __init__(self, text: CLIPText) -> None:
        super().__init__()
        self.text = text

    def forward(self, tokens: Tensor) -> Tensor:
        return self.text(tokens)


class DecodeGraph(nn.Module):
    """latents (b, L, c, h, w) -> video uint8 (b, L, H, W, C)."""

    def __init__(self, tklvae: TKLVAE, *, kernels: bool = False) -> None:
        super().__init__()
        self.tklvae = tklvae
        self.kernels = kernels

    def forward(self, latents: Tensor) -> Tensor:
        with operators() if self.kernels else nullcontext():
            decoded = self.tklvae.decode(latents)
        pixels = (decoded.permute(0, 1, 3, 4, 2) + 1.0) * 127.5
        return pixels.clamp(0.0, 255.0).round().to(torch.uint8)


class EncodeGraph(nn.Module):
    """video uint8 (b, L, H, W, C) -> latents (b, L, c, h, w), the posterior's mean."""

    def __init__(self, tklvae: TKLVAE) -> None:
        super().__init__()
        self.tklvae = tklvae

    def forward(self, video: Tensor) -> Tensor:
        # The cast comes first: TensorRT takes uint8 for nothing else.
        return self.tklvae.encode(video.float().permute(0, 1, 4, 2, 3) / 127.5 - 1.0)


class PrepareGraph(nn.Module):
    """prompt (b, L, l_p, d_p), negative (b, l_p, d_p), condition (b, L, c, h, w), mask (b, L, 1, h, w) -> state."""

    def __init__(self, mtd: MTD, *, kernels: bool = False) -> None:
        super().__init__()
        self.mtd = mtd
        self.kernels = kernels

    def forward(self, prompt: Tensor, negative: Tensor, condition: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        length = self.mtd.config.length
        injections = self.mtd.injection(condition, mask)
        attentions = [layer.attention for layer, _ in self.mtd._layers() if layer.attention is not None]
        dtype = self.mtd.mid_resnet.conv1.weight.dtype
        prompt, negative = cast(prompt, dtype), cast(negative, dtype)
        prompt_state = frames_denoiser.prompt_state if self.kernels else denoiser.prompt_state
        prompts = [prompt_state(layer.transformer_blocks[0].attn2, prompt, negative) for layer in attentions]
        fused = [cast(tensor, dtype) for injection in injections for tensor in injection]
        return (
            *(
                to_frames(tensor, length) if self.kernels else tensor.reshape(-1, length, *tensor.shape[1:])
                for tensor in fused
            ),
            *(tensor for state in prompts for tensor in state),
        )

    def state_names(self) -> list[str]:
        """Names of the outputs, in order."""
        layers = sum(layer.attention is not None for layer, _ in self.mtd._layers())
        return [
            *(f"{part}_{i}" for i in range(len(self.mtd.injection.levels)) for part in Injection._fields),
            *(f"{part}_{i}" for i in range(layers) for part in PromptState._fields),
        ]


class StepGraph(nn.Module):
    """One denoising step of b segments, each at its own timestep and with its own guidance scale.

    With coefficients (b, 6) = (a_x, a_p, c_x, c_0, c_h, c_n):
        pred = uncond + guidance * (cond - uncond);  x0 = a_x * x + a_p * pred
        x_next = c_x * x + c_0 * x0 + c_h * history + c_n * noise
    """

    def __init__(self, mtd: MTD, *, kernels: bool = False) -> None:
        super().__init__()
        self.mtd = mtd
        self.kernels = kernels
        self.denoise = FramesDenoiser(mtd) if kernels else GuidedDenoiser(mtd)
        self.injections = len(mtd.injection.levels)

    def forward(
        self,
        x: Tensor,
        history: Tensor,
        noise: Tensor,
        timestep: Tensor,
        coefficients: Tensor,
        guidance: Tensor,
        *state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        fused, prompts = state[: 2 * self.injections], state[2 * self.injections :]
        size = len(PromptState._fields)
        cond, uncond = self.denoise(
            x,
            timestep,
            list(zip(fused[::2], fused[1::2], strict=True)),
            [PromptState(*prompts[i : i + size]) for i in range(0, len(prompts), size)],
        )
        if self.kernels:
            return ops.guided_update(x, history, noise, cond, uncond, coefficients, guidance)
        return update(x, history, noise, cond, uncond, coefficients, guidance)


def update(
    x: Tensor, history: Tensor, noise: Tensor, cond: Tensor, uncond: Tensor, coefficients: Tensor, guidance: Tensor
) -> tuple[Tensor, Tensor]:
    """Guidance and the sampler's update; x_next and x0, each (b, L, c, h, w)."""
    a_x, a_p, c_x, c_0, c_h, c_n = coefficients[:, :, None, None, None, None].unbind(1)
    pred = uncond + guidance[:, None, None, None, None] * (cond - uncond)
    x0 = a_x * x + a_p * pred
    return c_x * x + c_0 * x0 + c_h * history + c_n * noise, x0

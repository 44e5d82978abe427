"""The two graphs of the inner loop in the form a GPU runs under torch: `Prepare` once a segment, `Step` once a step.

Their arguments and answers are those of `export.graphs`, but for the state tensors between them, which are this form's
own. The guided pair are two batches one after the other, (2b, ..); what comes before the first prompt attention is the
same for both and computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.export.torch_runner.layers import (
    Convolution,
    Prompt,
    Resnet,
    Temporal,
    Transformer,
    Upsampling,
    branches,
    convolve,
    group_norm,
)
from nuwaxl.kernels import ops
from nuwaxl.train.networks.mtd import MTD, _Layer


class Layer(nn.Module):
    """One layer of a block: spatial conv, temporal conv, injection, SA, PA, TA (the paper's order)."""

    def __init__(self, layer: _Layer, length: int) -> None:
        super().__init__()
        self.resnet = Resnet(layer.resnet)
        self.convolution = Convolution(layer.temporal_conv)
        self.transformer = None if layer.attention is None else Transformer(layer.attention)
        self.temporal = None if layer.temporal_attention is None else Temporal(layer.temporal_attention, length)


class Denoiser(nn.Module):
    """An MTD's layers in this form, and what its state tensors are."""

    def __init__(self, mtd: MTD) -> None:
        super().__init__()
        self.mtd = mtd
        length = mtd.config.length
        layers = mtd._layers()
        self.layers = nn.ModuleList(Layer(layer, length) for layer, _ in layers)
        self.injects = [injecting for _, injecting in layers]
        self.mid_resnet = Resnet(mtd.mid_resnet)
        self.mid_convolution = Convolution(mtd.mid_temporal_conv)
        self.upsamplings = nn.ModuleList(
            Upsampling(block.resample) for block in mtd.up_blocks if block.resample is not None
        )

    def forward(self, x: Tensor, timestep: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """x (b, L, c, h, w), timestep (b,), state of `Prepare` -> the predictions cond and uncond, of x's shape."""
        mtd = self.mtd
        dtype = mtd.conv_in.weight.dtype
        alone = F.silu(mtd.time_embedding(timestep))
        # Doubled here, not where it is added: torch.compile would find every element's row by a division there.
        paired = torch.cat([alone, alone])
        tensors, layers, injects = iter(state), iter(self.layers), iter(self.injects)
        upsamplings = iter(self.upsamplings)

        def embedding(h: Tensor) -> Tensor:
            return alone if h.shape[0] == alone.shape[0] else paired

        def run(h: Tensor) -> Tensor:
            layer = next(layers)
            injection = [next(tensors), next(tensors)] if next(injects) else []
            h = layer.convolution(layer.resnet(h, embedding(h)), *injection)
            if layer.transformer is not None:
                h = layer.temporal(layer.transformer(h, Prompt(*(next(tensors) for _ in Prompt._fields))))
            return h

        h = convolve(mtd.conv_in, x.to(dtype).permute(0, 1, 3, 4, 2))
        skips = [h]
        for block in mtd.down_blocks:
            for _ in block.layers:
                h = run(h)
                skips.append(h)
            if block.resample is not None:
                h = convolve(block.resample.conv, h)
                skips.append(h)

        h = run(h)
        h = self.mid_convolution(self.mid_resnet(h, embedding(h)))

        for block in mtd.up_blocks:
            for _ in block.layers:
                h = run(torch.cat([h, branches(skips.pop(), h.shape[0])], dim=-1))  # eq. 6
            if block.resample is not None:
                h = convolve(next(upsamplings), h)

        h = convolve(mtd.conv_out, group_norm(mtd.conv_norm_out, h)).permute(0, 1, 4, 2, 3)
        cond, uncond = h.chunk(2)
        return cond, uncond


class Prepare(nn.Module):
    """prompt (b, L, l_p, d_p), negative (b, l_p, d_p), condition (b, L, c, h, w), mask (b, L, 1, h, w) -> state.

    For every layer in order: scale and shift (b, L, h, w, c) where it injects, a `Prompt` where it has attention.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, prompt: Tensor, negative: Tensor, condition: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        denoiser, dtype = self.denoiser, self.denoiser.mtd.conv_in.weight.dtype
        prompt, negative, condition, mask = (t.to(dtype) for t in (prompt, negative, condition, mask))
        injections = iter(denoiser.mtd.injection(condition, mask))
        state: list[Tensor] = []
        for layer, injects in zip(denoiser.layers, denoiser.injects, strict=True):
            if injects:
                for tensor in next(injections):
                    state.append(tensor.permute(0, 2, 3, 1).unflatten(0, condition.shape[:2]).contiguous())
            if layer.transformer is not None:
                attention = layer.transformer.block.attn2
                state += Prompt(*attention.keys_values(prompt), *attention.keys_values(negative))
        return tuple(state)


class Step(nn.Module):
    """One denoising step with guidance and the sampler's update, see `export.graphs.StepGraph`."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

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
        cond, uncond = self.denoiser(x, timestep, state)
        return ops.guided_update(x, history, noise, cond.to(x.dtype), uncond.to(x.dtype), coefficients, guidance)

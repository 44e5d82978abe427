"""What every graph of a bundle is: its module, and fresh random inputs with torch's answer to them, by name.

The answers come from the networks as they were trained, in float32 and in training's own form, whatever precision and
form the graph's module has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nuwaxl.engine.bundle_schema import PrecisionName
from nuwaxl.export.graphs import DecodeGraph, EncodeGraph, PrepareGraph, StepGraph, TextGraph, update
from nuwaxl.export.model import Model
from nuwaxl.export.precision import DTYPES, cast, lowered

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """Inputs of a graph, and a function that computes what it must answer; both by name."""

    inputs: Tensors
    answer: Callable[[], Tensors]


@dataclass(frozen=True)
class GraphSource:
    """A graph to export: `module` takes the tensors of `sample(b, generator).inputs` in their order."""

    name: str
    module: nn.Module
    outputs: tuple[str, ...]
    sample: Callable[[int, torch.Generator], Sample]


def graph_sources(model: Model, precision: PrecisionName = "fp32", *, kernels: bool = False) -> Iterator[GraphSource]:
    """The five graphs of a bundle, one after the other: a network in a lower precision is made when it is its turn.

    With `kernels` step and decode call the operators of nuwaxl.kernels.
    """
    dtype = DTYPES[precision]
    network = model.network(decode_overlap=0)
    latent = (network.length, network.latent_channels, network.latent_height, network.latent_width)
    pixels = (network.length, network.height, network.width, network.channels)
    text, encode, decode = TextGraph(model.text), EncodeGraph(model.tklvae), DecodeGraph(model.tklvae)
    prepare = PrepareGraph(model.mtd, kernels=kernels)
    state_names = prepare.state_names()

    def alone(module: nn.Module, output: str, inputs: Tensors) -> Sample:
        return Sample(inputs, lambda: {output: module(*inputs.values())})

    def text_sample(b: int, random: torch.Generator) -> Sample:
        shape = (b, network.prompt_tokens)
        tokens = torch.randint(0, model.config.text.vocabulary, shape, generator=random)
        return alone(text, "prompt", {"tokens": tokens})

    def encode_sample(b: int, random: torch.Generator) -> Sample:
        video = torch.randint(0, 256, (b, *pixels), generator=random).to(torch.uint8)
        return alone(encode, "latents", {"video": video})

    def decode_sample(b: int, random: torch.Generator) -> Sample:
        return alone(decode, "video", {"latents": torch.randn(b, *latent, generator=random)})

    def segments(b: int, random: torch.Generator) -> Tensors:
        prompts = (network.prompt_tokens, network.prompt_dim)
        # Even segments are local (first and last frame known), odd ones global (nothing known).
        mask = torch.zeros(b, network.length, 1, *latent[2:])
        mask[::2, [0, -1]] = 1.0
        return {
            "prompt": torch.randn(b, network.length, *prompts, generator=random),
            "negative": torch.randn(b, *prompts, generator=random),
            "condition": torch.randn(b, *latent, generator=random) * mask,
            "mask": mask,
        }

    def state(inputs: Tensors) -> Tensors:
        return dict(zip(state_names, prepare(*inputs.values()), strict=True))

    def prepare_sample(b: int, random: torch.Generator) -> Sample:
        inputs = segments(b, random)
        return Sample(inputs, lambda: state(inputs))

    def step_sample(b: int, random: torch.Generator) -> Sample:
        of_segments = segments(b, random)
        x, history, noise = (torch.randn(b, *latent, generator=random) for _ in range(3))
        timestep = torch.randint(0, model.config.diffusion.train_steps, (b,), generator=random).float()
        coefficients = torch.randn(b, 6, generator=random)
        guidance = 1.0 + 7.0 * torch.rand(b, generator=random)
        inputs = {
            "x": x,
            "history": history,
            "noise": noise,
            "timestep": timestep,
            "coefficients": coefficients,
            "guidance": guidance,
            **{name: cast(tensor, dtype) for name, tensor in state(of_segments).items()},
        }

        def answer() -> Tensors:
            unwanted = of_segments["negative"][:, None].expand_as(of_segments["prompt"])
            cond = model.mtd(x, timestep, *_but(of_segments, "negative"))
            uncond = model.mtd(x, timestep, unwanted, of_segments["condition"], of_segments["mask"])
            x_next, x0 = update(x, history, noise, cond, uncond, coefficients, guidance)
            return {"x_next": x_next, "x0": x0}

        return Sample(inputs, answer)

    yield GraphSource("text", TextGraph(lowered(model.text, dtype)), ("prompt",), text_sample)
    mtd = lowered(model.mtd, dtype)
    yield GraphSource("prepare", PrepareGraph(mtd, kernels=kernels), tuple(state_names), prepare_sample)
    yield GraphSource("step", StepGraph(mtd, kernels=kernels), ("x_next", "x0"), step_sample)
    del mtd
    tklvae = lowered(model.tklvae, dtype)
    yield GraphSource("decode", DecodeGraph(tklvae, kernels=kernels), ("video",), decode_sample)
    yield GraphSource("encode", EncodeGraph(tklvae), ("latents",), encode_sample)


def _but(tensors: Mapping[str, Tensor], name: str) -> list[Tensor]:
    return [tensor for key, tensor in tensors.items() if key != name]

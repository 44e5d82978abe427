"""Our step and decoding at the benchmark's size against float32, beside the plain network in the same narrow type."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nuwaxl.bench.gpu import opponents
from nuwaxl.bench.gpu.model import Workload, networks
from nuwaxl.bench.plain import prepare, step
from nuwaxl.engine.runners.base import Segments
from nuwaxl.export.torch_runner.device import parse
from nuwaxl.export.torch_runner.runner import TorchRunner

_BATCH = 2
_TIMESTEPS, _GUIDANCE = (900.0, 300.0), (7.5, 3.0)


def measure(work: Workload, device: str) -> dict[str, Any]:
    """Errors in bfloat16 of ours and of the plain network: `step_error` of the latents after a step, ||x - x32|| /
    ||x32||, and `frames_error` of a decoded window, the mean absolute difference in values of 0 to 255."""
    place = torch.device(device)
    torch.backends.cudnn.allow_tf32 = False  # for the reference
    text, mtd, tklvae = networks(work.config, place)
    random = torch.Generator(place).manual_seed(1)
    for network in (mtd, tklvae):
        _move_what_is_constant(network, random)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, device=place)

    c, latents = work.config.mtd, opponents.latent_shape(work)
    x, condition = normal(_BATCH, *latents), normal(_BATCH, *latents)
    mask = (normal(_BATCH, c.length, 1, *latents[2:]) > 0).float()
    negative = normal(_BATCH, c.prompt_tokens, c.prompt_dim)
    prompt = normal(_BATCH, c.length, c.prompt_tokens, c.prompt_dim)
    timestep, guidance = (torch.tensor(values, device=place) for values in (_TIMESTEPS, _GUIDANCE))
    coefficients = torch.rand(_BATCH, 6, generator=random, device=place)
    segments = Segments(*map(_array, (x, prompt, negative, condition, mask)))

    def plain(dtype: torch.dtype) -> tuple[NDArray[Any], NDArray[Any]]:
        network, decoder = deepcopy(mtd).to(dtype), deepcopy(tklvae).to(dtype)
        prepared = prepare(network, segments, place)
        moved, _ = step(network, x, torch.zeros_like(x), timestep, coefficients, guidance, prepared)
        video = decoder.decode(x[:1].to(dtype)).float()
        return _array(moved), np.clip(np.round((_array(video.permute(0, 1, 3, 4, 2)) + 1) * 127.5), 0, 255)

    with torch.no_grad(), opponents.without_operators():
        exact, rounded = plain(torch.float32), plain(torch.bfloat16)
    runner = TorchRunner(text, mtd, tklvae, parse(f"{device}/bfloat16"))  # compiled where that is the default
    denoising = runner.start(segments)
    denoising.step(_array(timestep).astype(np.int64), _array(coefficients), _array(guidance), None)
    found = denoising.latents(range(_BATCH)), runner.decode(_array(x[:1])).astype(np.float32)
    return {
        "step_error": _relative(found[0], exact[0]),
        "plain_step_error": _relative(rounded[0], exact[0]),
        "frames_error": float(np.abs(found[1] - exact[1]).mean()),
        "plain_frames_error": float(np.abs(rounded[1] - exact[1]).mean()),
    }


def _move_what_is_constant(network: nn.Module, random: torch.Generator) -> None:
    """Convolutions that begin at zero would hide what comes before them, and norms' ones their scale."""
    for parameter in network.parameters():
        if parameter.numel() > 1 and parameter.std() == 0:
            noise = torch.randn(parameter.shape, generator=random, device=parameter.device)
            parameter.data += (0.05 if parameter.ndim == 1 else 0.02) * noise


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.cpu().numpy()


def _relative(found: NDArray[Any], exact: NDArray[Any]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))

"""Random inputs of a bundle's graphs, as a render would give them: what plans are compared on."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from nuwaxl.engine.bundle_schema import Manifest, Network

Arrays = dict[str, NDArray[np.generic]]
Run = Callable[[str, Mapping[str, NDArray[np.generic]]], Arrays]


def random_prepare(network: Network, batch: int, rng: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Inputs of the prepare graph: prompt, negative, condition and mask, as Segments has them.

    Even segments are global (nothing known), odd ones local (first and last frame known).
    """
    n = network
    mask = np.zeros((batch, n.length, 1, n.latent_height, n.latent_width), dtype=np.float32)
    mask[1::2, [0, -1]] = 1.0
    return {
        "prompt": _normal(rng, batch, n.length, n.prompt_tokens, n.prompt_dim),
        "negative": _normal(rng, batch, n.prompt_tokens, n.prompt_dim),
        "condition": random_latents(n, batch, rng) * mask,
        "mask": mask,
    }


def random_latents(network: Network, batch: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Noise (b, L, c, h, w)."""
    n = network
    return _normal(rng, batch, n.length, n.latent_channels, n.latent_height, n.latent_width)


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape).astype(np.float32)


class Samples:
    """Inputs by graph. The state tensors of the step graph come from the prepare graph, by `run`.

    Args:
        vocabulary: tokens are below it.
        run: runs a graph by name.
    """

    def __init__(self, manifest: Manifest, vocabulary: int, run: Run, seed: int = 20_221) -> None:
        self._manifest = manifest
        self._vocabulary = vocabulary
        self._run = run
        self._seed = seed

    def __call__(self, graph: str, batch: int) -> Arrays:
        """Inputs of a graph for `batch` segments (of the text graph: prompts), every row another one."""
        rng = np.random.default_rng(self._seed)
        n = self._manifest.network
        if graph == "text":
            return {"tokens": rng.integers(0, self._vocabulary, (batch, n.prompt_tokens))}
        if graph == "encode":
            return {"video": rng.integers(0, 256, (batch, n.length, n.height, n.width, n.channels), dtype=np.uint8)}
        if graph == "decode":
            return {"latents": random_latents(n, batch, rng)}
        segments = random_prepare(n, batch, rng)
        if graph == "prepare":
            return {**segments}
        return {
            "x": random_latents(n, batch, rng),
            "history": random_latents(n, batch, rng),
            "noise": random_latents(n, batch, rng),
            "timestep": rng.integers(0, self._manifest.diffusion.train_steps, batch).astype(np.float32),
            "coefficients": _normal(rng, batch, 6),
            "guidance": (1.0 + 7.0 * rng.random(batch)).astype(np.float32),
            **self._run("prepare", segments),
        }

"""A batch of noise under way, to time a runner's steps by."""

import numpy as np

from nuwaxl.engine.bundle_schema import Network
from nuwaxl.engine.runners.base import Runner, Segments
from nuwaxl.engine.samples import random_latents, random_prepare


class Probe:
    """A batch of `size` segments that stay noise, step after step: a GPU spends less power on the same arithmetic of
    zeros, and is faster for it. A runner has one batch under way, so each probe is used before the next is made.
    """

    def __init__(self, runner: Runner, network: Network, size: int) -> None:
        rng = np.random.default_rng(size)
        self._denoising = runner.start(
            Segments(x=random_latents(network, size, rng), **random_prepare(network, size, rng))
        )
        # Of a sampler's row (a_x, a_p, c_x, c_0, c_h, c_n): x after the step is x before it.
        self._coefficients = np.tile(np.array([1, 1, 1, 0, 0, 0], dtype=np.float32), (size, 1))
        self._timestep = np.full(size, 500, dtype=np.int64)
        self._guidance = np.full(size, 7.5, dtype=np.float32)
        self.wait()

    def step(self) -> None:
        """One step of all. Where the device works by itself it is queued, see DecodesLater."""
        self._denoising.step(self._timestep, self._coefficients, self._guidance, None)

    def wait(self) -> None:
        """Until the device has done what was queued."""
        self._denoising.latents([0])

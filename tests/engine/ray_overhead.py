"""Measures what a Ray actor adds to a denoising step: run it on a node of a cluster with a free CPU (docs/ray.md).

The tiny bundle's steps take next to nothing, so that the difference is the call.
"""

import statistics
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np
from conftest import NETWORK, write_tiny_bundle

from nuwaxl.engine import Engine
from nuwaxl.engine.runners.base import Runner, Segments

CALLS = 500
BATCH = 4


def step_ms(runner: Runner) -> list[float]:
    """Milliseconds of every one of some steps of a batch, after a few to warm up."""
    x = np.zeros(
        (BATCH, NETWORK.length, NETWORK.latent_channels, NETWORK.latent_height, NETWORK.latent_width), np.float32
    )
    prompt = np.zeros((BATCH, NETWORK.length, NETWORK.prompt_tokens, NETWORK.prompt_dim), np.float32)
    denoising = runner.start(Segments(x, prompt, prompt[:, 0], x, x[:, :, :1]))
    timestep, guidance = np.zeros(BATCH, np.int64), np.ones(BATCH, np.float32)
    coefficients = np.zeros((BATCH, 6), np.float32)
    times = []
    for _ in range(CALLS + 10):
        began = perf_counter()
        denoising.step(timestep, coefficients, guidance, None)
        times.append((perf_counter() - began) * 1000)
    return times[10:]


def main() -> None:
    """Print the step's time by device."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_bundle(Path(folder))
        for devices in ("cpu:1", "ray:1"):
            with Engine.open(folder, devices=devices) as engine:
                times = step_ms(engine._runners[0])
                print(f"{devices}: median {statistics.median(times):.2f} ms, least {min(times):.2f} ms a step")


if __name__ == "__main__":
    main()

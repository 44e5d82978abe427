"""The smallest training: a line through noisy points, and its [run] table."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nuwaxl.train import checkpoint
from nuwaxl.train.distributed import Share
from nuwaxl.train.run import RunConfig
from nuwaxl.train.task import Game, Objective


class Regression:
    """Learn y = 3x - 1 from noisy samples: the smallest task."""

    game: Game | None = None

    def __init__(self, poison_at: int | None = None, batch_size: int = 32) -> None:
        torch.manual_seed(0)
        self.modules: dict[str, nn.Module] = {"line": nn.Linear(1, 1)}
        self.poison_at, self.calls, self.batch_size = poison_at, 0, batch_size

    def configuration(self) -> dict[str, dict[str, Any]]:
        return {"training": {"truth": [3, -1]}}

    def parameters(self) -> list[nn.Parameter]:
        return list(self.modules["line"].parameters())

    def _samples(self, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.normal(size=(self.batch_size, 1)).astype(np.float32))

    def files(self, rng: np.random.Generator, share: Share) -> list[str]:
        return [f"x = {float(x):.6f}" for x in share.of(self._samples(rng))]

    def loss(self, rng: np.random.Generator, generator: torch.Generator, share: Share, step: int) -> Objective:
        x = share.of(self._samples(rng))
        noise = share.of(torch.randn(self.batch_size, 1, generator=generator))
        loss = (self.modules["line"](x) - (3 * x - 1 + 0.01 * noise)).square().mean()
        self.calls += 1
        if self.poison_at == self.calls:
            loss = loss * float("nan")
        return Objective(loss, {"loss": loss.item()})

    def publish(self, weights: dict[str, dict[str, Tensor]], folder: Path) -> None:
        checkpoint.save_weights(weights["line"], folder / "line.safetensors")


def config(out: Path, **changes: object) -> RunConfig:
    settings: dict[str, object] = {
        "data": "", "out": str(out), "steps": 60, "batch_size": 32, "learning_rate": 0.1, "warmup": 5,
        "ema_decay": 0.9, "log_every": 10, "checkpoint_every": 20, "device": "cpu",
    }  # fmt: skip
    return RunConfig(**{**settings, **changes})  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}

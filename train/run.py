"""How long, how fast and where a training runs: the [run] table of a training configuration."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nuwaxl.errors import InputError, reason
from nuwaxl.formats import parse_toml
from nuwaxl.train.config import require, require_positive, require_table
from nuwaxl.train.devices import torch_device


@dataclass(frozen=True)
class RunConfig:
    """Paths are relative to the working directory; rates are per optimiser step.

    `batch_size` is what one optimiser step learns from, over all processes; each process takes its share in
    `accumulation` parts, one after the other. `precision` "bf16" computes the networks by autocast and keeps weights,
    losses and optimiser in float32. `gradient_checkpointing` keeps no activations within a layer and computes them
    again for the gradients. `compile` runs the network through torch.compile: minutes to start, then faster steps.
    """

    data: str
    out: str
    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.01
    clip: float = 1.0
    ema_decay: float = 0.999
    accumulation: int = 1
    precision: Literal["float32", "bf16"] = "float32"
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    tensorboard: bool = True
    device: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints")
        require_positive(self, "run", *counts)
        for key in ("warmup", "weight_decay", "seed"):
            require(getattr(self, key) >= 0, f"[run] {key}", "0 or more", getattr(self, key))
        require(self.seed < 2**63, "[run] seed", "below 2^63", self.seed)
        for key in ("learning_rate", "clip"):
            require(getattr(self, key) > 0, f"[run] {key}", "above 0", getattr(self, key))
        require(math.isfinite(self.learning_rate), "[run] learning_rate", "finite", self.learning_rate)
        require(0 <= self.ema_decay < 1, "[run] ema_decay", "at least 0 and below 1", self.ema_decay)

    def torch_device(self) -> torch.device:
        """The device asked for; "auto" is a GPU where torch sees one, unless `accelerate launch --cpu` started this."""
        wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
        name = "cpu" if self.device == "auto" and wants_cpu else self.device
        return torch_device(name, "[run] device")

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The context in which networks and losses are computed."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def rate_at(self, step: int) -> float:
        """Learning rate of 0-based `step`: linear warm-up, then the schedule."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(progress * math.pi))


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a training configuration. Raises InputError if it cannot be read, or holds anything but tables."""
    try:
        tables = parse_toml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            expected=f"a TOML file at {path}", found=reason(error), fix="name one, or correct it"
        ) from error
    for name, table in tables.items():
        require_table(table, f"[{name}] of {path}")
    return tables

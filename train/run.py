"""How long, how fast and where a training runs: the [run] table of a training configuration."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nuwaxl.errors import InputError


@dataclass(frozen=True)
class RunConfig:
    """Paths are relative to the working directory; rates are per optimiser step.

    `compile` runs the network through torch.compile: minutes to start, then faster steps.
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
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    device: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(
                    expected=f"[run] {name} to be a positive integer", found=repr(value), fix="give 1 or more"
                )

    def torch_device(self) -> torch.device:
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise InputError(
                expected="a device such as auto, cpu or cuda", found=repr(self.device), fix="change [run] device"
            ) from error
        if device.type == "cuda":
            if not torch.cuda.is_available():
                raise InputError(expected="a CUDA device", found="none that torch sees", fix='use device = "cpu"')
            if device.index is None:  # torchrun numbers the processes of one machine
                device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        return device

    def rate_at(self, step: int) -> float:
        """Learning rate of 0-based `step`: linear warm-up, then the schedule."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.learning_rate
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(progress * math.pi))


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a training configuration. Raises InputError if it cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(expected=f"a TOML file at {path}", found=str(error), fix="correct it") from error

"""What a training loop needs to know of what it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nuwaxl.train.distributed import Share


@dataclass(frozen=True)
class Objective:
    """The losses of one share of a batch, scalars with gradients, and figures to log.

    A figure that shares have different numbers of is all of its values, so that each counts once in the log's mean.
    `loss` teaches the task's parameters. In a game there are two more: `adversarial` teaches them to deceive the
    discriminator, `discriminator` teaches that one not to be deceived.
    """

    loss: Tensor
    figures: Mapping[str, float | list[float]]
    adversarial: Tensor | None = None
    discriminator: Tensor | None = None


@dataclass(frozen=True)
class Game:
    """A discriminator, trained against the task's network and saved with it, but not averaged nor published.

    The adversarial term's gradient counts `weight` times as much as the other terms', both measured at `last_layer`,
    the last weights before the pixels (the adaptive weight of VQGAN, Esser et al. 2021, eq. 7).
    """

    discriminator: nn.Module
    last_layer: nn.Parameter
    weight: float


class Task(Protocol):
    """What is trained: its modules by name (saved under it, and averaged), what they learn from, what becomes of them.

    All randomness of `loss` comes from its generators, which are the same for every share of a batch.
    """

    modules: dict[str, nn.Module]
    game: Game | None

    def configuration(self) -> dict[str, dict[str, Any]]:
        """All that decides what is learned but the [run] table: tables of JSON values."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """What learns; all else is frozen by this call."""
        ...

    def loss(self, rng: np.random.Generator, generator: torch.Generator, share: Share, step: int) -> Objective:
        """What this share of step `step`'s batch teaches."""
        ...

    def files(self, rng: np.random.Generator, share: Share) -> list[str]:
        """Where this share of the batch comes from, for people: `rng` is in the state that `loss` gets it in."""
        ...

    def publish(self, weights: dict[str, dict[str, Tensor]], folder: Path) -> None:
        """Write what the next stage reads, from the averaged weights of each module."""
        ...

"""Data-parallel training over processes: each takes a share of the batch, gradients are averaged once a step.

Started by `torchrun --nproc-per-node N`, which sets RANK and WORLD_SIZE; without it there is one process. On CPUs one
single-threaded process a core is faster than one process with a thread a core, since they meet once a step only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from nuwaxl.errors import InputError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """What this process does of every batch."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, batch_size: int, device: torch.device) -> Share:
        """Meet the other processes that torchrun started, if any; each trains on its own `device`."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if batch_size % world:
            raise InputError(
                expected=f"a batch_size that {world} processes can share equally",
                found=str(batch_size),
                fix=f"use a multiple of {world}",
            )
        if world > 1 and not distributed.is_initialized():
            backend = "nccl" if device.type == "cuda" else "gloo"
            # Filling a latent cache takes long, and the leader does some things alone.
            distributed.init_process_group(backend, timeout=timedelta(hours=12))
        return cls(int(os.environ.get("RANK", "0")), world)

    @property
    def leads(self) -> bool:
        """Whether this process writes log and checkpoints."""
        return self.rank == 0

    def of(self, batch: T) -> T:
        """This process's part of a batch; every process draws the whole one, so that all agree on it."""
        return batch[self.rank :: self.world]  # type: ignore[index, no-any-return]

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.world > 1:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            self._average(gradients)

    def average(self, figures: dict[str, float]) -> dict[str, float]:
        """Means over the processes that have a figure."""
        if self.world == 1:
            return figures
        gathered: list[dict[str, float] | None] = [None] * self.world
        distributed.all_gather_object(gathered, figures)
        values: dict[str, list[float]] = {}
        for of_one in gathered:
            for name, value in (of_one or {}).items():
                values.setdefault(name, []).append(value)
        return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}

    def _average(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat /= self.world
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.reshape(tensor.shape))

    @staticmethod
    def leave() -> None:
        """Part from the other processes, if any were met."""
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def wait(self) -> None:
        """Wait for the other processes."""
        if self.world > 1:
            distributed.barrier()

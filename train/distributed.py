"""Data-parallel training over processes, through Accelerate: each takes a share of the batch.

`accelerate launch` (or torchrun) starts the processes; the plain command is one. Accelerate makes their group and gives
each its device. The networks are not wrapped in DistributedDataParallel: losses here call several networks, or one
twice, and the adversarial loss needs gradients apart, so gradients are averaged once a step instead, after the last
part of the batch. What a step learns is then that of the whole batch, however many processes share it. On CPUs one
single-threaded process a core is faster than one process with a thread a core, since they meet once a step only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object, reduce
from torch import Tensor

from nuwaxl.errors import InputError, NuwaxlError
from nuwaxl.train.run import RunConfig

T = TypeVar("T")
_BUCKET = 2**25  # values averaged at once: 128 MiB in float32


@dataclass(frozen=True)
class Share:
    """One of `count` equal shares of a batch."""

    index: int = 0
    count: int = 1

    def of(self, batch: T) -> T:
        """This share of a batch; everyone draws the whole one, so that all agree on it."""
        return batch[self.index :: self.count]  # type: ignore[index, no-any-return]


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls, run: RunConfig) -> Processes:
        """Meet the other processes that were started, if any.

        Raises InputError for a batch they cannot share equally, and for ways of sharing a network that are not built.
        """
        for name in ("DEEPSPEED", "FSDP", "MEGATRON_LM"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
                raise InputError(
                    expected="data-parallel training, with a whole network on each device",
                    found=f"{name} in Accelerate's configuration",
                    fix="start by: accelerate launch --multi_gpu --num_processes N",
                )
        device = run.torch_device()
        # Filling a latent cache takes long, and the leader does some things alone.
        state = PartialState(cpu=device.type == "cpu", timeout=timedelta(hours=12))
        parts = state.num_processes * run.accumulation
        if run.batch_size % parts:
            raise InputError(
                expected=f"a batch_size that {state.num_processes} processes x {run.accumulation} parts "
                "(accumulation) can share equally",
                found=str(run.batch_size),
                fix=f"use a multiple of {parts}",
            )
        if state.num_processes > 1:
            device = state.device
        if device.type == "cuda":
            device = torch.device("cuda", device.index or 0)
            torch.cuda.set_device(device)
        return cls(state.process_index, state.num_processes, device)

    @property
    def leads(self) -> bool:
        """Whether this process writes log and checkpoints."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        return Share(self.rank, self.world)

    def parts(self, accumulation: int) -> list[Share]:
        """This process's share, in `accumulation` parts."""
        return [Share(self.rank * accumulation + part, self.world * accumulation) for part in range(accumulation)]

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.world == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            if bucket and sum(t.numel() for t in bucket) + tensor.numel() > _BUCKET:
                _average(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            _average(bucket)

    def gather(self, values: Tensor) -> Tensor:
        """(n,) of each process -> (world * n,) in order of rank."""
        if self.world == 1:
            return values
        with _together():
            return gather(values)

    def means(self, figures: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """Mean of each figure over the values that all processes have of it."""
        sums = {name: (sum(values), len(values)) for name, values in figures.items()}
        totals: dict[str, tuple[float, int]] = {}
        with _together():
            of_all = gather_object([sums]) if self.world > 1 else [sums]
        for of_one in of_all:
            for name, (total, count) in of_one.items():
                before = totals.get(name, (0.0, 0))
                totals[name] = (before[0] + total, before[1] + count)
        return {name: total / count for name, (total, count) in totals.items()}

    def wait(self) -> None:
        """Wait for the other processes."""
        with _together():
            PartialState().wait_for_everyone()

    @staticmethod
    def leave() -> None:
        """Part from the other processes, if any were met."""
        if torch.distributed.is_initialized():
            PartialState().destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Raises NuwaxlError where another process has ended: what went wrong is in its own words, not in ours."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
            raise
        found = str(error).split(". ")[0]  # without advice
        raise NuwaxlError(
            f"expected the other processes to go on; found one that ended: {found}; see what it says, then go on by "
            "--resume"
        ) from error


def _average(tensors: Sequence[Tensor]) -> None:
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _together():
        flat = reduce(whole, "mean")
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.reshape(tensor.shape))

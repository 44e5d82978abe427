"""The tensors of a batch under way, in a device's memory: where each segment's rows are, and how they come and go.

The batch is the first axis of every tensor, so one piece of memory serves every batch size: a run of `bucket` segments
takes its first rows. Addresses therefore do not change while segments come and go, as CUDA graphs need it. Segments
keep their row: only those beyond the bucket that is left are moved.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nuwaxl.engine.bundle_schema import Graph, TensorSpec
from nuwaxl.engine.runners.device.base import Device, Memory, Stream
from nuwaxl.engine.runners.stored import stored


def bucket(count: int) -> int:
    """The smallest of 1, 2, ..., 8, 10, 12, 14, 16, 20, ... that holds `count` segments; padding is below a fifth."""
    step = 1 << max((count - 1).bit_length() - 3, 0)
    return -(-count // step) * step


def room(count: int) -> int:
    """Rows of memory for `count` segments, a size of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...

    Larger steps than those of buckets, since what was captured of the old addresses is lost with each.
    """
    size = 1 << (count - 1).bit_length()
    return size // 4 * 3 if size >= 4 and count <= size // 4 * 3 else size


def row_bytes(spec: TensorSpec) -> int:
    """Bytes of one segment's part of a tensor."""
    return int(np.prod([int(size) for size in spec.shape[1:]], dtype=np.int64)) * stored(spec.dtype).itemsize


@dataclass(frozen=True)
class Tensor:
    """A tensor in a device's memory: `memory` holds as many rows as its owner has room for."""

    spec: TensorSpec
    memory: Memory
    row_bytes: int

    def at(self, row: int) -> int:
        """Address of a row."""
        return self.memory.address + row * self.row_bytes


class Tensors:
    """Named tensors with room for the same number of rows."""

    def __init__(self, device: Device, specs: Sequence[TensorSpec], rows: int) -> None:
        self.rows = rows
        self._tensors: dict[str, Tensor] = {}
        try:
            for spec in specs:
                size = row_bytes(spec)
                self._tensors[spec.name] = Tensor(spec, device.allocate(rows * size), size)
        except BaseException:
            self.free()
            raise

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def all(self) -> Mapping[str, Tensor]:
        """By name."""
        return self._tensors

    def addresses(self) -> dict[str, int]:
        """Where each begins, by name."""
        return {name: tensor.at(0) for name, tensor in self._tensors.items()}

    def zero(self, stream: Stream, first: int = 0) -> None:
        """Set all rows from `first` on to zero."""
        for tensor in self._tensors.values():
            stream.zero(tensor.at(first), (self.rows - first) * tensor.row_bytes)

    def free(self) -> None:
        """Give the memory back."""
        for tensor in self._tensors.values():
            tensor.memory.free()


def both_ends(device: Device, graph: Graph, rows: int) -> tuple[Tensors, Tensors]:
    """A graph's inputs and its outputs; where there is no memory for these, none is kept for those."""
    inputs = Tensors(device, graph.inputs, rows)
    try:
        return inputs, Tensors(device, graph.outputs, rows)
    except BaseException:
        inputs.free()
        raise


class Rows:
    """Which row each slot of a batch has. A slot is a segment's number in the batch, a row its place in memory."""

    def __init__(self) -> None:
        self._of_slot: list[int] = []

    def __len__(self) -> int:
        return len(self._of_slot)

    def of(self, slots: Sequence[int]) -> list[int]:
        """Rows of some slots."""
        return [self._of_slot[slot] for slot in slots]

    @property
    def all(self) -> list[int]:
        """Row of every slot."""
        return list(self._of_slot)

    @property
    def bucket(self) -> int:
        """Rows that a run takes: every slot's row is below."""
        return bucket(len(self._of_slot))

    def join(self, count: int) -> list[int]:
        """Rows for `count` newcomers, the lowest that are free."""
        taken = set(self._of_slot)
        free = [row for row in range(len(taken) + count) if row not in taken]
        self._of_slot += free[:count]
        return free[:count]

    def leave(self, count: int) -> None:
        """Drop the last `count` slots."""
        del self._of_slot[len(self._of_slot) - count :]

    def keep(self, slots: Sequence[int]) -> list[tuple[int, int]]:
        """Drop all slots but these, in this order; (from, to) of the rows that must move to stay below the bucket."""
        kept = [self._of_slot[slot] for slot in slots]
        limit = bucket(len(kept)) if kept else 0
        free = iter([row for row in range(limit) if row not in set(kept)])
        moves = {row: next(free) for row in kept if row >= limit}
        self._of_slot = [moves.get(row, row) for row in kept]
        return list(moves.items())


def copy_rows(
    stream: Stream,
    target: Callable[[int], int],
    source: Callable[[int], int],
    moves: Sequence[tuple[int, int]],
    size: int,
) -> None:
    """Copy rows of `size` bytes, (from, to) each; neighbours that go to neighbours go as one."""
    start = 0
    while start < len(moves):
        end = start + 1
        while end < len(moves) and moves[end] == (moves[end - 1][0] + 1, moves[end - 1][1] + 1):
            end += 1
        stream.copy(target(moves[start][1]), source(moves[start][0]), (end - start) * size)
        start = end

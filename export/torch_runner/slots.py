"""The batch under way on a device: tensors that stay where they are, a row a segment, and the step that moves them.

A batch of n segments runs in the first rows, on a GPU padded to the next of a few sizes, so that each size is captured
once as a CUDA graph over fixed addresses and then only replayed; the same tensors serve every size. Rows are
independent: what lies in the padding does not reach the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nuwaxl.engine.runners.slots import bucket, room
from nuwaxl.export.torch_runner.device import TorchDevice
from nuwaxl.export.torch_runner.graphs import captured

Step = Callable[..., tuple[Tensor, Tensor]]
_ROWS_AT_ONCE = 16  # made at first on a GPU, where growing means capturing again,
_SHARE = 8  # if they take at most this part of the free memory


class Slots:
    """Rows 0 to `count` are segments under way.

    Args:
        step: takes x, history, noise, timestep, coefficients, guidance and the state; gives x and history after it.
        alone: the same for a batch of one: of a step that is compiled torch would make a program of its own for it, in
            minutes.
        device: where; on a GPU a CUDA graph is made for every number of rows.
    """

    def __init__(self, step: Step, alone: Step, device: TorchDevice) -> None:
        self.count = 0
        self._step = step
        self._alone = alone
        self._device = device
        self._tensors: list[Tensor] = []
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        # One replay at a time, and nothing is left in it afterwards: the graphs share their scratch memory.
        self._pool = torch.cuda.graph_pool_handle() if device.on_cuda else None

    @property
    def x(self) -> Tensor:
        """The latents (count, L, c, h, w), float32."""
        return self._tensors[0][: self.count]

    def add(self, x: Tensor, state: Sequence[Tensor]) -> None:
        """Take segments into the next rows: noise x (b, L, c, h, w), and the state tensors (b, ..) they start from."""
        b = x.shape[0]
        zeros = torch.zeros_like(x)
        row = torch.zeros(b, device=x.device)
        new = [x, zeros, zeros, row, row[:, None].expand(-1, 6), row, *state]
        self._grow(new, self.count + b)
        for tensor, rows in zip(self._tensors, new, strict=True):
            tensor[self.count : self.count + b] = rows
        self.count += b

    def keep(self, slots: Sequence[int]) -> None:
        """Move these rows to the front, in this order, and drop the others."""
        first = next((i for i, slot in enumerate(slots) if slot != i), len(slots))
        moved = torch.tensor(list(slots[first:]), dtype=torch.int64, device=self._device.device)
        if first < len(slots):
            for tensor in self._tensors:
                tensor[first : len(slots)] = tensor[moved]
        self.count = len(slots)

    def move(self, timestep: Tensor, coefficients: Tensor, guidance: Tensor, noise: Tensor | None) -> None:
        """Move every row by one step; (count, ..) each, as `Denoising.step` has them."""
        for place, rows in ((3, timestep), (4, coefficients), (5, guidance), (2, noise)):
            if rows is not None:  # without noise its coefficient is 0
                self._tensors[place][: self.count].copy_(rows)
        if not self._device.on_cuda:
            self._run(self.count)
            return
        rows = bucket(self.count)
        if rows not in self._graphs:
            self._graphs[rows], _ = captured(lambda: self._call(rows), lambda: self._run(rows), self._pool)
        self._graphs[rows].replay()

    def _run(self, rows: int) -> None:
        x, history = self._call(rows)
        self._tensors[0][:rows].copy_(x)
        self._tensors[1][:rows].copy_(history)

    def _call(self, rows: int) -> tuple[Tensor, Tensor]:
        inputs = [tensor[:rows] for tensor in self._tensors]
        if rows == 1:
            return self._alone(*inputs)
        if self._device.compiled:
            for tensor in inputs:
                torch._dynamo.mark_dynamic(tensor, 0)
        return self._step(*inputs)

    def _grow(self, new: Sequence[Tensor], count: int) -> None:
        """Room for `count` rows; graphs of the old addresses are dropped."""
        capacity = self._tensors[0].shape[0] if self._tensors else 0
        if count <= capacity:
            return
        rows = room(count)
        if self._device.on_cuda:
            free, _ = torch.cuda.mem_get_info(self._device.device)
            a_row = sum(tensor[:1].nbytes for tensor in new)
            rows = max(rows, min(_ROWS_AT_ONCE, free // _SHARE // a_row))
        self._graphs.clear()
        old = self._tensors
        self._tensors = [
            torch.zeros((rows, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device) for tensor in new
        ]
        for tensor, before in zip(self._tensors, old, strict=False):
            tensor[: self.count] = before[: self.count]

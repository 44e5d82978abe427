"""How a kernel is specialised, cut into programs and launched: the same whether compiled now or ahead of time.

Every kernel takes its inputs, one int32 scalar (`pixels` or `values`), its outputs, then constants. The batch is in the
grid alone, which is one-dimensional: the other axes of a CUDA grid end at 65,535.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

from nuwaxl.errors import InputError
from nuwaxl.kernels.checks import INT32_MAX

# Set before triton is imported, kernels run as numpy on the CPU. numpy has no bfloat16: products of it would be wrong.
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET", "0") == "1"


def kernel(function: Any) -> Any:
    """A function as a Triton kernel, compiled once for any number of `pixels`, as it is ahead of time: of one pixel
    Triton would make a constant, which has no methods of a tensor."""
    return triton.jit(function, do_not_specialize=["pixels"])


@dataclass(frozen=True)
class Grid:
    """Programs on axis 0: batch * fixed, times ceil(items * per_item / block) unless block is 0."""

    fixed: int
    per_item: int = 0
    block: int = 0

    def programs(self, batch: int, items: int) -> int:
        return batch * self.fixed * (-(-items * self.per_item // self.block) if self.block else 1)


@dataclass(frozen=True)
class Specialisation:
    """A kernel with all but its tensors and its scalar decided."""

    kernel: Any
    constants: Mapping[str, int | float | bool]
    grid: Grid
    num_warps: int
    num_stages: int = 2
    float32_arguments: frozenset[str] = frozenset()  # pointers that stay float32 whatever the tensors are

    @property
    def options(self) -> dict[str, Any]:
        """Of the compiler. Triton 3.10 would no longer fuse multiplications and additions by itself."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": True}


def launch(specialisation: Specialisation, batch: int, items: int, arguments: tuple[Tensor | int, ...]) -> None:
    """Run the kernel on the tensors' device; nothing to do is no launch."""
    programs = specialisation.grid.programs(batch, items)
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if programs == 0 or any(tensor.numel() == 0 for tensor in tensors):
        return
    per_segment = max(tensor.numel() // batch for tensor in tensors)
    if programs > INT32_MAX or per_segment > INT32_MAX:
        raise InputError(
            expected=f"at most {INT32_MAX} values a segment, and as many programs",
            found=f"{per_segment} values, {programs} programs",
            fix="use a smaller batch or smaller frames",
        )
    with torch.cuda.device_of(tensors[0]):
        specialisation.kernel[(programs,)](*arguments, **specialisation.constants, **specialisation.options)


def architecture(device: torch.device) -> int:
    """Of a GPU, 90 for 9.0; 0 where kernels are interpreted."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@triton.jit
def dot(a, b, accumulator, UPCAST: tl.constexpr):
    """accumulator + a @ b with float32 accumulation, no TF32; UPCAST is for the interpreter."""
    if UPCAST:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, accumulator, input_precision="ieee")

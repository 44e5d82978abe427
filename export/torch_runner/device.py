"""What may follow "torch:" in a device: a torch device, then options: "cuda:0", "cpu", "cuda:1/float16/eager"."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from nuwaxl.errors import InputError

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FIX = 'use "torch:cpu", "torch:cuda:0", or with options "torch:cuda:0/float16/eager" (docs/gpu.md)'


@dataclass(frozen=True)
class TorchDevice:
    """A device, the type that the networks compute in there, and whether torch.compile fuses them."""

    device: torch.device
    dtype: torch.dtype
    compiled: bool

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def description(self) -> str:
        """All that its speed depends on."""
        name = torch.cuda.get_device_name(self.device) if self.on_cuda else "cpu"
        kind = f"{str(self.dtype).removeprefix('torch.')}, {'compiled' if self.compiled else 'eager'}"
        return f"{name}, torch {torch.__version__}, {kind}"


def parse(text: str) -> TorchDevice:
    """bfloat16 and compiled on a GPU (float16 on those before Ampere), float32 and eager on the CPU, unless it says so.

    Raises:
        InputError: another form, or a GPU that is not there.
    """
    place, *options = text.split("/")
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", place)
    types = [option for option in options if option in _TYPES]
    modes = [option for option in options if option in ("eager", "compile")]
    if match is None or len(types) > 1 or len(modes) > 1 or len(types) + len(modes) != len(options):
        raise InputError(
            expected=f"torch:cpu or torch:cuda:N, then options among {', '.join(_TYPES)}; eager, compile",
            found=f"torch:{text}",
            fix=_FIX,
        )
    if place == "cpu":
        device, usual = torch.device("cpu"), torch.float32
    else:
        present, number = torch.cuda.device_count(), int(match[1] or 0)
        if number >= present:
            raise InputError(
                expected=f"the GPU {place} that torch {torch.__version__} can use",
                found=f"{present} of them",
                fix='install the CUDA build of torch and a driver for it, or use "torch:cpu"',
            )
        device = torch.device("cuda", number)
        usual = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    compiled = modes[0] == "compile" if modes else place != "cpu"
    return TorchDevice(device, _TYPES[types[0]] if types else usual, compiled)

"""The exponential moving average of weights, which is what a training publishes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Averages:
    """Exponential moving average of the modules' state, names prefixed by the module's.

    average := d * average + (1 - d) * weight after each step n = 0, 1, ..., with d = min(decay, (1 + n) / (10 + n)).
    """

    def __init__(self, modules: dict[str, nn.Module], decay: float) -> None:
        self.modules = modules
        self.decay = decay
        self.values = {name: tensor.detach().clone() for name, tensor in self._state().items()}

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{prefix}/{name}": tensor
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        # Early on the average follows quickly, or the initialisation would stay in it for long.
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self._state().items():
            self.values[name].lerp_(tensor, 1 - decay)

    def by_module(self) -> dict[str, dict[str, Tensor]]:
        result: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in self.modules}
        for name, tensor in self.values.items():
            prefix, key = name.split("/", 1)
            result[prefix][key] = tensor
        return result

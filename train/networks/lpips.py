"""LPIPS (Zhang et al. 2018), version 0.1 on VGG16: the distance of two pictures in the features of a classifier."""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nuwaxl.errors import InputError, reason
from nuwaxl.train.checkpoint import load_weights

# VGG16's 3x3 convolutions: each stage ends where its features are compared, and a 2x2 max pooling follows.
_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# Names of torchvision's VGG16 and of the lpips package -> names here; what neither pattern matches is not needed
# (the classifier, the scaling's constants, and the heads' second name in a saved lpips.LPIPS).
_NAMES = ((r"^(?:features|net\.slice\d)\.(\d+)\.(weight|bias)$", r"\1.\2"), (r"^lin(\d)\.model\.1\.weight$", r"head\1"))
# Mean and deviation of ImageNet's colours, for pictures in [-1, 1].
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Frames (n, 3, H, W) in [-1, 1], twice -> their distance (n,). Its weights do not learn."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        c_in = 3
        self.stages = nn.ModuleList()
        for widths in _STAGES:
            self.stages.append(nn.ModuleList())
            for width in widths:
                self.stages[-1].append(nn.Conv2d(c_in, width, 3, padding=1))
                c_in = width
        self.heads = nn.ParameterList(torch.ones(widths[-1]) for widths in _STAGES)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])
        self.requires_grad_(False)

    @classmethod
    def load(cls, files: Sequence[str]) -> LPIPS:
        """From VGG16's features and the heads, in one file or several (.safetensors, or .pth without code in it).

        Raises InputError if they cannot be read, or lack a tensor or give it another shape.
        """
        given: dict[str, Tensor] = {}
        for file in files:
            for name, tensor in _read(Path(file)).items():
                for pattern, replacement in _NAMES:
                    if re.search(pattern, name):
                        given[re.sub(pattern, replacement, name)] = tensor
        network = cls()
        with torch.no_grad():
            for name, own in network._by_published_name().items():
                found = given.get(name)
                # A head is published as a 1x1 convolution: (1, c, 1, 1).
                if found is None or found.numel() != own.numel() or (own.dim() > 1 and found.shape != own.shape):
                    raise InputError(
                        expected=f"in {', '.join(files)} the tensor {_published(name)} of {own.numel()} values",
                        found="none" if found is None else f"one of shape {tuple(found.shape)}",
                        fix="name VGG16's weights as torchvision has them, and the lpips package's vgg.pth",
                    )
                own.copy_(found.reshape(own.shape))
        return network

    def _by_published_name(self) -> dict[str, Tensor]:
        """`number.weight`, `number.bias` as in torchvision's `features`, and `head0` to `head4`."""
        names: dict[str, Tensor] = {}
        number = 0
        for stage in self.stages:
            for convolution in stage:
                names[f"{number}.weight"], names[f"{number}.bias"] = convolution.weight, convolution.bias
                number += 2  # a rectifier follows each
            number += 1  # a pooling follows each stage
        return names | {f"head{i}": head for i, head in enumerate(self.heads)}

    def features(self, frames: Tensor) -> list[Tensor]:
        """Features of each stage, of unit length along channels, (n, c_i, h_i, w_i)."""
        h = (frames - self.shift) / self.scale
        found = []
        for number, stage in enumerate(self.stages):
            if number > 0:
                h = F.max_pool2d(h, 2)
            for convolution in stage:
                h = F.relu(convolution(h))
            # Where a pixel has no feature at all vector_norm's gradient is 0, and a square root's would be infinite.
            length = torch.linalg.vector_norm(h.float(), dim=1, keepdim=True)
            found.append(h.float() / (length + 1e-10))
        return found

    def forward(self, frames: Tensor, reference: Tensor) -> Tensor:
        """The gradient goes to `frames` alone."""
        with torch.no_grad():
            expected = self.features(reference)
        distance = torch.zeros(len(frames), device=frames.device)
        for mine, other, head in zip(self.features(frames), expected, self.heads, strict=True):
            distance = distance + ((mine - other).square() * head[:, None, None]).sum(dim=1).mean(dim=(1, 2))
        return distance


def _published(name: str) -> str:
    return f"lin{name[4:]}.model.1.weight" if name.startswith("head") else f"features.{name}"


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_weights(path)
    try:
        # weights_only refuses pickles that hold more than tensors.
        state = torch.load(path, map_location="cpu", weights_only=True)
        return {name: tensor.float() for name, tensor in state.items() if isinstance(tensor, Tensor)}
    except (OSError, RuntimeError, AttributeError, EOFError, pickle.UnpicklingError) as error:
        raise InputError(
            expected=f"a state dictionary of tensors in {path}", found=reason(error).split(". ")[0], fix="name another"
        ) from error

"""The patch discriminator of the image KLVAE's adversarial term (PatchGAN, Isola et al. 2017), and its hinge loss."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 8


class PatchDiscriminator(nn.Module):
    """Frames (n, C, H, W) in [-1, 1] -> one logit a patch, (n, 1, h', w'), above 0 for real ones.

    `layers` convolutions halve the picture, two more follow; channels double from `channels` to 8 times it. Where
    PatchGAN normalises over the batch this one normalises each picture's channels in groups: what it says of a picture
    then does not depend on the others, so that a batch may be shared among processes and parts.
    """

    def __init__(self, picture_channels: int, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(picture_channels, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i in range(1, layers + 1):
            stride = 2 if i < layers else 1
            stack += [
                nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_GROUPS, widths[i]),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*stack, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @staticmethod
    def smallest_picture(layers: int) -> int:
        """Least height and width, in pixels, that leave a patch to judge."""
        return 3 * 2**layers

    def forward(self, frames: Tensor) -> Tensor:
        return self.layers(frames)


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss from its logits of real and of decoded frames: a scalar, 0 beyond the margins."""
    return 0.5 * (F.relu(1.0 - real.float()).mean() + F.relu(1.0 + fake.float()).mean())

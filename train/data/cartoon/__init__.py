"""A generator of long cartoons: four characters, five sceneries, a caption for every frame."""

from nuwaxl.train.data.cartoon.brush import SIZE
from nuwaxl.train.data.cartoon.episode import FPS, generate

__all__ = ["FPS", "SIZE", "generate"]

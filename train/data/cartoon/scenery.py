"""The five sceneries: large flat shapes in a palette of their own. Clouds, waves and the moon sway slowly."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from PIL import Image

from nuwaxl.train.data.cartoon.brush import SCALE, SIZE, Brush, Color

SWAY = 3.0  # pixels to either side
SWAY_PERIOD = 240  # frames

SHADOWS: dict[str, Color] = {
    "meadow": (90, 165, 75),
    "beach": (215, 185, 125),
    "mountains": (195, 205, 230),
    "city": (60, 55, 85),
    "desert": (190, 105, 50),
}

_WHITE: Color = (255, 255, 255)


def backdrop(scenery: str, frame: int) -> Image.Image:
    """A fresh canvas (RGB, SIZE * SCALE both ways) showing the scenery at this frame of the episode."""
    sway = SWAY * math.sin(2 * math.pi * frame / SWAY_PERIOD)
    return _backdrop(scenery, round(sway * SCALE)).copy()


@cache
def _backdrop(scenery: str, sway: int) -> Image.Image:
    """The sway is in canvas pixels, so that there are few different pictures and each is drawn once."""
    canvas = Image.new("RGB", (SIZE * SCALE, SIZE * SCALE))
    _DRAW[scenery](Brush(canvas), sway / SCALE)
    return canvas


def _cloud(brush: Brush, x: float, y: float, size: float, color: Color) -> None:
    for dx, dy, r in ((-1.2, 0.0, 0.8), (0.0, 0.35, 1.1), (1.2, 0.0, 0.8)):
        brush.ellipse(x + dx * size, y + dy * size, r * size, r * size * 0.8, color)


def _draw_meadow(brush: Brush, sway: float) -> None:
    brush.box(0, 0, 64, 64, (150, 215, 250))
    _cloud(brush, 16 + sway, 54, 4.2, _WHITE)
    _cloud(brush, 44 - sway, 57, 3.2, _WHITE)
    brush.ellipse(10, 16, 34, 20, (120, 195, 95))
    brush.ellipse(60, 12, 36, 18, (140, 210, 100))
    brush.box(53, 20, 57, 38, (130, 85, 50))
    brush.ellipse(55, 43, 8.5, 9, (70, 150, 70))
    brush.box(0, 0, 64, 18, (165, 225, 110))
    for x, color in ((6, (250, 120, 160)), (24, _WHITE), (44, (250, 120, 160)), (59, _WHITE)):
        brush.ellipse(x, 2.8, 1.5, 1.5, color)


def _draw_beach(brush: Brush, sway: float) -> None:
    brush.box(0, 0, 64, 64, (255, 205, 175))
    brush.ellipse(46, 45, 9, 9, (255, 240, 150))
    brush.box(0, 0, 64, 40, (35, 160, 185))
    for row, way in ((35, 1), (28, -1)):
        for x in range(-8, 80, 24):
            brush.ellipse(x + way * sway * 1.5 + row, row, 7, 1.0, (130, 215, 220))
    brush.box(0, 0, 64, 20, (250, 228, 175))
    for x in range(-8, 80, 16):
        brush.ellipse(x + sway, 20, 9, 2.6, (235, 250, 250))
        brush.ellipse(x + sway, 18.4, 9, 2.2, (250, 228, 175))


def _draw_mountains(brush: Brush, sway: float) -> None:
    brush.box(0, 0, 64, 64, (190, 185, 230))
    _cloud(brush, 33 + sway, 57, 3.6, (230, 228, 248))
    for peak, top, half in ((14, 54, 22), (50, 58, 26)):
        brush.polygon([(peak - half, 18), (peak, top), (peak + half, 18)], (115, 115, 160))
        drop, wide = (top - 18) * 0.36, half * 0.36  # the snow reaches down 36 % of the slopes, in a zigzag
        left, right = (peak - wide, top - drop), (peak + wide, top - drop)
        zigzag = [(peak + wide * x, top - drop * y) for x, y in ((0.4, 0.75), (0.0, 1.2), (-0.4, 0.75))]
        brush.polygon([left, (peak, top), right, *zigzag], _WHITE)
    for x in (3, 33, 61):
        brush.polygon([(x - 5, 17), (x, 32), (x + 5, 17)], (45, 110, 105))
    brush.ellipse(14, 10, 40, 11, (236, 242, 252))
    brush.box(0, 0, 64, 17, (236, 242, 252))


def _draw_city(brush: Brush, sway: float) -> None:
    brush.box(0, 0, 64, 64, (25, 25, 70))
    brush.ellipse(47 + sway, 54, 5.5, 5.5, (255, 245, 205))
    brush.ellipse(50 + sway, 55.5, 4.8, 4.8, (25, 25, 70))
    for left, right, top, color in (
        (-2, 13, 46, (75, 50, 105)),
        (14, 27, 56, (60, 40, 95)),
        (28, 40, 41, (85, 60, 120)),
        (41, 53, 47, (60, 40, 95)),
        (54, 66, 40, (75, 50, 105)),
    ):
        brush.box(left, 10, right, top, color)
        for row in range(top - 7, 18, -8):
            for x in (left + 2.2, left + 7.8):
                brush.box(x, row, x + 3.4, row + 4, (255, 215, 90))
    brush.box(0, 0, 64, 17, (95, 90, 125))
    brush.box(0, 15.5, 64, 17.5, (140, 135, 165))


def _draw_desert(brush: Brush, sway: float) -> None:
    brush.box(0, 0, 64, 64, (255, 190, 95))
    brush.ellipse(15, 52, 6, 6, (255, 245, 200))
    _cloud(brush, 44 + sway, 55, 3.4, (255, 222, 165))
    brush.ellipse(10, 14, 36, 19, (215, 125, 65))
    brush.ellipse(58, 12, 34, 15, (225, 140, 75))
    brush.box(0, 0, 64, 18, (235, 160, 90))
    for x, base, tall in ((7, 16, 22), (57, 16, 26)):
        color = (60, 125, 75)
        brush.line([(x, base), (x, base + tall)], 4.4, color)
        brush.ellipse(x, base + tall, 2.2, 2.2, color)
        for side, height in ((-1, 0.45), (1, 0.6)):
            arm = base + tall * height
            brush.line([(x, arm), (x + side * 5, arm), (x + side * 5, arm + 6)], 3.0, color)
            brush.ellipse(x + side * 5, arm + 6, 1.5, 1.5, color)


_DRAW: dict[str, Callable[[Brush, float], None]] = {
    "meadow": _draw_meadow,
    "beach": _draw_beach,
    "mountains": _draw_mountains,
    "city": _draw_city,
    "desert": _draw_desert,
}

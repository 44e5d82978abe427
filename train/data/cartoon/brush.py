"""A brush for flat shapes in pixel units on an enlarged canvas; shrinking the canvas smooths the edges."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

SIZE = 64  # pixels of a finished frame, both ways
SCALE = 4  # canvas pixels a frame pixel
OUTLINE = 0.75  # pixels

Color = tuple[int, int, int]
Point = tuple[float, float]


def shade(color: Color, factor: float) -> Color:
    """The colour made darker (factor < 1) channel by channel."""
    return (int(color[0] * factor), int(color[1] * factor), int(color[2] * factor))


class Brush:
    """Draws around an origin, y upwards, in frame pixels; `mirror` = -1 turns left and right around."""

    def __init__(self, canvas: Image.Image, x: float = 0.0, y: float = SIZE, mirror: int = 1) -> None:
        self._draw = ImageDraw.Draw(canvas)
        self._x, self._y, self._mirror = x * SCALE, y * SCALE, mirror * SCALE

    def _at(self, x: float, y: float) -> Point:
        return self._x + x * self._mirror, self._y - y * SCALE

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color, outline: bool = False) -> None:
        cx, cy = self._at(x, y)
        rx, ry = rx * SCALE, ry * SCALE
        box = (cx - rx, cy - ry, cx + rx - 1, cy + ry - 1)
        if outline:
            self._draw.ellipse(box, fill, shade(fill, 0.5), round(OUTLINE * SCALE))
        else:
            self._draw.ellipse(box, fill)

    def cap(self, x: float, y: float, rx: float, ry: float, start: float, end: float, fill: Color) -> None:
        """The part of an ellipse cut off by a chord; `start`, `end` in degrees clockwise from the right."""
        cx, cy = self._at(x, y)
        rx, ry = rx * SCALE, ry * SCALE
        if self._mirror < 0:
            start, end = 180 - end, 180 - start
        self._draw.chord((cx - rx, cy - ry, cx + rx - 1, cy + ry - 1), start, end, fill)

    def polygon(self, points: Sequence[Point], fill: Color, outline: bool = False) -> None:
        corners = [self._at(x, y) for x, y in points]
        self._draw.polygon(corners, fill)
        if outline:
            self._draw.line([*corners, corners[0]], shade(fill, 0.5), round(OUTLINE * SCALE), joint="curve")

    def box(self, left: float, bottom: float, right: float, top: float, fill: Color) -> None:
        self.polygon([(left, bottom), (right, bottom), (right, top), (left, top)], fill)

    def line(self, points: Sequence[Point], width: float, fill: Color) -> None:
        self._draw.line([self._at(x, y) for x, y in points], fill, round(width * SCALE), joint="curve")

    def limb(self, start: Point, end: Point, width: float, fill: Color) -> None:
        """A thick stroke with round ends and an outline: an arm or a leg."""
        for wide, color in ((width + 2 * OUTLINE, shade(fill, 0.5)), (width, fill)):
            self.line([start, end], wide, color)
            for x, y in (start, end):
                self.ellipse(x, y, wide / 2, wide / 2, color)

"""Draws the loss curve of a training from its log.jsonl, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nuwaxl.errors import InputError, reason
from nuwaxl.files import write_file
from nuwaxl.formats import parse_json

_SIZE = (960, 480)
_MARGIN = (70, 20, 20, 50)  # left, top, right, bottom, in pixels
_COLOURS = ("#1f4e9c", "#c2410c", "#15803d", "#7e22ce")


def read_log(path: Path, names: Sequence[str]) -> dict[str, list[tuple[float, float]]]:
    """(step, value) of each named figure. Raises InputError if the log lacks one."""
    try:
        lines = [dict(parse_json(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(expected=f"a training log at {path}", found=reason(error), fix="name a log.jsonl") from error
    curves = {name: [(line["step"], line[name]) for line in lines if name in line] for name in names}
    for name, points in curves.items():
        if not points:
            known = sorted({key for line in lines for key in line} - {"step"})
            raise InputError(expected=f"the figure {name} in {path}", found=f"{known}", fix="name one of these")
    return curves


def draw(curves: dict[str, list[tuple[float, float]]], out: Path) -> None:
    """One line a figure over steps; the value axis is logarithmic. All values must be positive."""
    values = [value for points in curves.values() for _, value in points]
    if min(values) <= 0:
        raise InputError(
            expected="positive figures for a logarithmic axis", found=f"{min(values):g}", fix="name other figures"
        )
    last = max(step for points in curves.values() for step, _ in points)
    low, high = math.log10(min(values)) - 0.02, math.log10(max(values)) + 0.02
    left, top, right, bottom = _MARGIN
    width, height = _SIZE[0] - left - right, _SIZE[1] - top - bottom

    def place(step: float, value: float) -> tuple[float, float]:
        return left + width * step / last, top + height * (high - math.log10(value)) / (high - low)

    image = Image.new("RGB", _SIZE, "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for i in range(6):
        value = 10 ** (low + (high - low) * i / 5)
        y = place(0, value)[1]
        pen.line([(left, y), (left + width, y)], fill="#dddddd")
        pen.text((left - 8, y), f"{value:.3g}", fill="black", font=font, anchor="rm")
        x = left + width * i / 5
        pen.text((x, top + height + 8), f"{last * i / 5:.0f}", fill="black", font=font, anchor="mt")
    pen.text((left + width / 2, _SIZE[1] - 4), "optimiser step", fill="black", font=font, anchor="mb")
    for number, (name, points) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        pen.line([place(step, value) for step, value in points], fill=colour, width=2)
        pen.text((left + width - 8, top + 8 + 20 * number), name, fill=colour, font=font, anchor="rt")
    picture = BytesIO()
    image.save(picture, "PNG")
    write_file(out, picture.getvalue())

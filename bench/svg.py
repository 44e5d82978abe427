"""Pieces of SVG and of its axes; whatever text comes in is escaped."""

import math
from html import escape

AXIS_DECADES = (1.0, 2.0, 5.0)


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """One element. `content` is markup; attribute values are escaped, `class_` gives class and a_b gives a-b."""
    parts = [name, *(f'{key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())]
    return f"<{' '.join(parts)}>{content}</{name}>" if content else f"<{' '.join(parts)}/>"


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> str:
    """Text whose baseline is at y; anchor is start, middle or end."""
    return tag("text", escape(content), x=x, y=y, text_anchor=anchor, **({"class_": class_} if class_ else {}))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def figure(content: str, width: float, height: float, label: str) -> str:
    """A whole picture, which scales with the page; `label` is what a screen reader says."""
    body = tag("svg", content, viewBox=f"0 0 {_value(width)} {_value(height)}", role="img", aria_label=label)
    return f'<div class="chart" style="--width: {width:g}px">{body}</div>'


def legend(entries: list[tuple[str, str]]) -> str:
    """A line of HTML: (class, what it means) of each colour."""
    keys = "".join(f'<span><i class="{escape(class_)}"></i>{escape(label)}</span>' for class_, label in entries)
    return f'<p class="legend">{keys}</p>'


def ticks(end: float, most: int = 8) -> list[float]:
    """Round numbers from 0 to `end`, which is above 0, at most `most` + 1 of them."""
    step = 10.0 ** math.floor(math.log10(end / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if end / (step * factor) <= most * (1 + 1e-9))
    return [number * step for number in range(math.floor(end / step * (1 + 1e-9)) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis: 1, 2 and 5 times powers of ten, from at most low to at least high."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    marks = [factor * 10.0**decade for decade in decades for factor in AXIS_DECADES]
    first = max(place for place, mark in enumerate(marks) if mark <= low * (1 + 1e-9))
    last = min(place for place, mark in enumerate(marks) if mark >= high * (1 - 1e-9))
    return marks[first : max(last, first + 1) + 1]


def plain(value: float) -> str:
    """A number of an axis, without an exponent: 0.25, 15,000."""
    return f"{value:,.10g}"


def duration(seconds: float) -> str:
    """A time for people: 12.3 ms, 4.56 s, 12.3 min, 4.5 h."""
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _value(value: object) -> str:
    """An attribute's value; two decimals are finer than any screen."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else escape(str(value))

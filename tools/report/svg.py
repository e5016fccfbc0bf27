"""The few pieces of SVG the report's charts are made of: elements, linear scales, round tick values.

Text is escaped by markupsafe, and a number that is not finite is refused, so a chart is either right or not made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

Attribute = str | float | int | None


def number(value: float) -> str:
    """A coordinate with at most two decimals. Raises ValueError for NaN and infinities."""
    if not math.isfinite(value):
        raise ValueError(f"a chart coordinate is {value}; leave the point out before drawing")
    return f"{value:.2f}".rstrip("0").rstrip(".")


def el(tag: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """One element; `class_` and `stroke_width` become `class` and `stroke-width`, None leaves an attribute out."""
    parts = [Markup("<"), tag]
    for name, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else number(value)
            parts.append(Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), text))
    inner = Markup("").join(children)
    parts.append(Markup(">{}</{}>").format(inner, tag) if inner else Markup("/>"))
    return Markup("").join(parts)


def text(x: float, y: float, content: str, **attributes: Attribute) -> Markup:
    """A line of text."""
    return el("text", content, x=x, y=y, **attributes)


def picture(width: float, height: float, name: str, *children: Markup, class_: str = "chart") -> Markup:
    """The outer element: scales to its column, and is announced as one image called `name`."""
    return el(
        "svg",
        *children,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_label=name,
        class_=class_,
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values in `[low, high]` linearly to pixels `[start, end]`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values inside `[low, high]`; one value if the range is empty."""
    if high <= low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near `wanted`, at least `gap` apart where the room allows, kept in `[low, high]`; order is kept."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = [min(max(wanted[index], low), high) for index in order]
    for here in range(1, len(placed)):
        placed[here] = max(placed[here], placed[here - 1] + gap)
    ceiling = high
    for here in reversed(range(len(placed))):
        placed[here] = min(placed[here], ceiling)
        ceiling = placed[here] - gap
    result = [0.0] * len(wanted)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result

"""Loss over cost, ours and the published one in two panels of one kind, both as shares of one-by-one's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tools.experiment.report.costs import Currency, ratio_to_one_by_one
from tools.experiment.report.published import PUBLISHED, hours_ratio, loss_ratio
from tools.experiment.report.rows import Bench
from tools.experiment.report.stats import paired_ratio
from tools.report.svg import Scale, el, number, picture, text, ticks

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 500.0, 340.0, 46.0, 14.0, 26.0, 46.0
_COSTS = (0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)
_CSS = {"one-by-one": "c-one-by-one", "all-in-one": "c-all-in-one", "mas": "c-mas", "tag": "c-tag", "hoa": "c-hoa"}
_SHOWN = ("one-by-one", "all-in-one", "gradnorm", "fedprox", "mas", "tag", "hoa")


@dataclass(frozen=True, slots=True)
class Point:
    """A method: cost and loss over one-by-one's, with the limits of the loss where seeds give them."""

    label: str
    scheme: str
    cost: float
    loss: float
    low: float | None = None
    high: float | None = None


def css(scheme: str) -> str:
    """CSS class that carries a scheme's colour."""
    return _CSS.get(scheme, "c-other")


def our_points(bench: Bench, currency: Currency) -> list[Point]:
    """The table's methods at the base settings, where both figures and one-by-one's are known."""
    base = bench.row("one-by-one")
    found = []
    for row in bench.rows if base is not None else ():
        cost = ratio_to_one_by_one(bench, row, currency)
        loss = None if base is None else paired_ratio(row.losses, base.losses)
        if row.scheme in _SHOWN and not row.departures and cost is not None and loss is not None:
            found.append(Point(row.label, row.scheme, cost.mean, loss.mean, loss.low, loss.high))
    return found


def published_points() -> list[Point]:
    """The published plot."""
    names = {"mas": "MAS", "tag": "TAG", "hoa": "HOA"}
    return [
        Point(
            f"{names[entry.scheme]}-{entry.splits}" if entry.splits else entry.scheme,
            entry.scheme, hours_ratio(entry), loss_ratio(entry),
        )
        for entry in PUBLISHED
    ]  # fmt: skip


def cost_plot(points: Sequence[Point], name: str, x_label: str) -> Markup | None:
    """One panel; cost on a logarithmic axis. None without a point."""
    if not points:
        return None
    ends = [end for p in points for end in (p.loss, p.low, p.high) if end is not None]
    pad = (max(ends) - min(ends)) * 0.08 or 0.01
    costs = [math.log(point.cost) for point in points]
    x = Scale(min(costs) - 0.15, max(costs) + 0.35, _LEFT, _WIDTH - _RIGHT)
    y = Scale(min(ends) - pad, max(ends) + pad, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        _axes(x, y, x_label),
        _paths(points, x, y),
        *(_dot(point, x, y) for point in points),
        _labels(points, x, y),
    ]
    return picture(_WIDTH, _HEIGHT, name, *parts)


def _axes(x: Scale, y: Scale, x_label: str) -> Markup:
    parts = [text(0, 11, "total loss against one-by-one", class_="axis-name")]
    for value in ticks(y.low, y.high, 5):
        parts.append(el("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        shown = f"{(value - 1) * 100:+.3g} %".replace("-", "\N{MINUS SIGN}") if abs(value - 1) > 1e-9 else "0"
        parts.append(text(x.start - 6, y(value) + 3.5, shown, class_="tick", text_anchor="end"))
    last = -math.inf
    for value in _COSTS:
        at = x(math.log(value))
        if x.start <= at <= x.end and at - last >= 38:
            parts.append(el("line", x1=at, x2=at, y1=y.start, y2=y.start + 4, class_="axis"))
            parts.append(text(at, y.start + 16, f"{value:g}×", class_="tick", text_anchor="middle"))
            last = at
    if y.low < 1 < y.high:
        parts.append(el("line", x1=x.start, x2=x.end, y1=y(1), y2=y(1), class_="mark"))
    parts.append(el("line", x1=x(0), x2=x(0), y1=y.start, y2=y.end, class_="mark"))
    parts.append(el("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(text(x.end, y.start + 34, x_label, class_="axis-name", text_anchor="end"))
    return Markup("").join(parts)


def _paths(points: Sequence[Point], x: Scale, y: Scale) -> Markup:
    lines = []
    for scheme in ("mas", "tag", "hoa"):
        members = [(number(x(math.log(p.cost))), number(y(p.loss))) for p in points if p.scheme == scheme]
        if len(members) > 1:
            joined = " ".join(f"{a},{b}" for a, b in members)
            lines.append(el("polyline", points=joined, class_=f"thread {css(scheme)}"))
    return Markup("").join(lines)


def _dot(point: Point, x: Scale, y: Scale) -> Markup:
    at, level = x(math.log(point.cost)), y(point.loss)
    tip = f"{point.label}: {point.cost:.2f} of one-by-one’s cost, {(point.loss - 1) * 100:+.1f} % loss"
    parts = [el("title", tip)]
    if point.low is not None and point.high is not None:
        parts.append(el("line", x1=at, x2=at, y1=y(point.low), y2=y(point.high), class_="whisker"))
        for end in (point.low, point.high):
            parts.append(el("line", x1=at - 4, x2=at + 4, y1=y(end), y2=y(end), class_="whisker"))
    parts.append(el("circle", cx=at, cy=level, r=5.0, class_="dot"))
    return el("g", *parts, class_=css(point.scheme))


Box = tuple[float, float, float, float]


def _labels(points: Sequence[Point], x: Scale, y: Scale) -> Markup:
    """Each name beside its dot, on the first side where it covers no dot and no other name."""
    spots = [(x(math.log(p.cost)), y(p.loss)) for p in points]
    taken: list[Box] = [(a - 6, b - 6, a + 6, b + 6) for a, b in spots]
    parts = []
    for point, (a, b) in zip(points, spots, strict=True):
        wide = 6.4 * len(point.label)
        sides = [(a + 9 + dx, b + 4 + dy, "start") for dx, dy in ((0, 0), (0, -9), (0, 10), (-2, -17), (-2, 20))]
        sides += [(a - 9, b + 4 + dy, "end") for dy in (0, -9, 10)] + [(a, b - 11, "middle"), (a, b + 19, "middle")]
        boxes = [_box(left, base, anchor, wide) for left, base, anchor in sides]
        free = [i for i, box in enumerate(boxes) if box[2] <= x.end + 8 and not any(_meet(box, t) for t in taken)]
        left, base, anchor = sides[free[0] if free else 0]
        taken.append(boxes[free[0] if free else 0])
        parts.append(text(left, base, point.label, class_="label", text_anchor=anchor, fill="var(--c)"))
        parts[-1] = el("g", parts[-1], class_=f"end {css(point.scheme)}")
    return Markup("").join(parts)


def _box(left: float, base: float, anchor: str, wide: float) -> Box:
    start = left - {"start": 0.0, "end": wide, "middle": wide / 2}[anchor]
    return start, base - 10, start + wide, base + 2


def _meet(one: Box, two: Box) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]

"""Affinity heatmap: what a step on the source task's gradient does to the target task's loss.

`affinity[source, target]` is the relative fall of the target's loss (MAS, Zhuang et al., ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from tools.report import words
from tools.report.svg import el, picture, text
from tools.report.view import Json, finite

_CELL_W, _CELL_H, _LEFT, _TOP = 51.0, 38.0, 95.0, 64.0

Matrix = Sequence[Sequence[float | None]]


def grouped_order(tasks: Sequence[str], splits: Sequence[Sequence[str]]) -> tuple[list[str], list[int]]:
    """Tasks with each split's members side by side, and the sizes of those runs; tasks in no split come last, alone."""
    known = [[task for task in group if task in tasks] for group in splits]
    chosen = [task for group in known for task in group]
    rest = [task for task in tasks if task not in chosen]
    return chosen + rest, [len(group) for group in known if group] + [1] * len(rest)


def read_matrix(affinity: Json) -> tuple[tuple[str, ...], dict[tuple[str, str], float | None]]:
    """The tasks and `{(source, target): affinity}`; a figure that is not finite is None."""
    tasks = tuple(affinity["tasks"])
    rows: Sequence[Sequence[Any]] = affinity["matrix"]
    cells = {
        (source, target): finite(value)
        for source, row in zip(tasks, rows, strict=True)
        for target, value in zip(tasks, row, strict=True)
    }
    return tasks, cells


def heatmap(affinity: Json, splits: Sequence[Sequence[str]]) -> Markup:
    """The matrix in percent, tasks ordered and outlined by split; the diagonal takes no part and is grey."""
    tasks, cells = read_matrix(affinity)
    order, sizes = grouped_order(tasks, splits)
    used = [value for (source, target), value in cells.items() if source != target and value is not None]
    limit = max((abs(value) for value in used), default=0.0)
    decimals = words.percent_decimals(used)
    parts = _headings(order)
    for row, source in enumerate(order):
        for column, target in enumerate(order):
            x, y = _LEFT + column * _CELL_W, _TOP + row * _CELL_H
            parts.append(_cell(x, y, source, target, cells[source, target], limit, decimals))
    start = 0
    for size in sizes:
        x, y = _LEFT + start * _CELL_W, _TOP + start * _CELL_H
        parts.append(el("rect", x=x, y=y, width=size * _CELL_W, height=size * _CELL_H, rx=5.0, class_="outline"))
        start += size
    name = "Affinity of each source task (rows) for each target task (columns), in percent; outlined: the splits"
    return picture(_LEFT + len(order) * _CELL_W + 4, _TOP + len(order) * _CELL_H + 4, name, *parts, class_="chart heat")


def _headings(order: Sequence[str]) -> list[Markup]:
    width, height = len(order) * _CELL_W, len(order) * _CELL_H
    parts = [
        text(_LEFT + width / 2, 12, "target: whose loss changes", class_="axis-name", text_anchor="middle"),
        text(
            12, _TOP + height / 2, "source: steps first", class_="axis-name", text_anchor="middle",
            transform=f"rotate(-90 12 {_TOP + height / 2:.0f})",
        ),
    ]  # fmt: skip
    for index, task in enumerate(order):
        x, y = _LEFT + (index + 0.5) * _CELL_W, _TOP + (index + 0.5) * _CELL_H
        label, raised = words.task_label(task), 44.0 if index % 2 else 56.0
        parts.append(text(x, raised - 2, label, class_="tick strong", text_anchor="middle"))
        parts.append(el("line", x1=x, x2=x, y1=raised + 2, y2=_TOP - 3, class_="grid"))
        parts.append(text(_LEFT - 8, y + 4, label, class_="tick strong", text_anchor="end"))
    return parts


def _cell(x: float, y: float, source: str, target: str, value: float | None, limit: float, decimals: int) -> Markup:
    own = source == target
    shown = words.DASH if value is None else words.percent(value, decimals).removesuffix(" %")
    tip = f"{words.task_label(source)} → {words.task_label(target)}: {shown} %"
    if own:
        tip += " (a task's effect on itself is not used)"
    strength = 0.0 if own or value is None or not limit else abs(value) / limit
    sign = "own" if own or value is None else "helps" if value > 0 else "hurts"
    shade = el(
        "rect", x=x + 1.5, y=y + 1.5, width=_CELL_W - 3, height=_CELL_H - 3, rx=4.0,
        class_=f"cell {sign}", fill_opacity=None if sign == "own" else 0.08 + 0.72 * strength,
    )  # fmt: skip
    figure = text(x + _CELL_W / 2, y + _CELL_H / 2 + 4.5, shown, text_anchor="middle", class_=f"figure {sign}")
    return el("g", el("title", tip), shade, figure)


def helped(affinity: Json, splits: Sequence[Sequence[str]]) -> dict[str, float]:
    """Each task's share in the score of a partition (MAS, step 3).

    In a group: the mean affinity of the other members for it. Alone: the mean of all affinities into and out of it.
    Tasks whose figures are incomplete are left out.
    """
    tasks, cells = read_matrix(affinity)
    shares = {}
    for group in splits:
        for task in group:
            others = [other for other in (group if len(group) > 1 else tasks) if other != task]
            used = [cells.get((other, task)) for other in others]
            if len(group) == 1:
                used += [cells.get((task, other)) for other in others]
            known = [value for value in used if value is not None]
            if known and len(known) == len(used):
                shares[task] = sum(known) / len(known)
    return shares

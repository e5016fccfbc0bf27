"""How the merged job came apart: one strand a task, bundled while merged, then spread; and the runners-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from models.tasks import TASKS
from tools.report import words
from tools.report.svg import Scale, el, number, picture, text, ticks
from tools.report.view import Json, Scheme, Split, finite

_WIDTH, _LEFT, _RIGHT, _TOP = 360.0, 8.0, 130.0, 24.0
_STRAND, _BUNDLED, _GROUP_GAP = 24.0, 7.0, 26.0
#: Letters that have a colour; a task with another letter takes these in turn.
_COLOURED = "sdnktaoverc"


def task_css(task: str, tasks: Sequence[str]) -> str:
    """CSS class that carries a task's colour; tasks without one of their own take the colours in turn."""
    letter = TASKS[task].letter if task in TASKS else ""
    if letter and letter in _COLOURED:
        return f"t-{letter}"
    return f"t-{_COLOURED[(list(tasks).index(task) if task in tasks else 0) % len(_COLOURED)]}"


@dataclass(frozen=True, slots=True)
class Alternative:
    """A partition that was weighed, as the page lists it; `width` is its bar's share of the largest."""

    splits: tuple[tuple[str, ...], ...]
    score: float
    width: float
    chosen: bool


def alternatives(decision: Json, most: int = 6) -> list[Alternative]:
    """The chosen partition and its best rivals, best score first."""
    chosen = _partition(decision["splits"])
    scores = {_key(chosen): (chosen, float(decision["score"]))}
    for other in decision.get("alternatives") or ():
        score, splits = finite(other["score"]), _partition(other["splits"])
        if score is not None:
            scores.setdefault(_key(splits), (splits, score))
    ranked = sorted(scores.values(), key=lambda item: (-item[1], _key(item[0]) != _key(chosen)))[:most]
    largest = max(abs(score) for _, score in ranked) or 1.0
    return [Alternative(splits, score, abs(score) / largest, _key(splits) == _key(chosen)) for splits, score in ranked]


def _partition(splits: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group) for group in splits)


def _key(splits: Sequence[Sequence[str]]) -> frozenset[frozenset[str]]:
    return frozenset(frozenset(group) for group in splits)


def reason(decision: Json) -> Markup:
    """Why this partition: its score beside the runner-up's."""
    ranked = alternatives(decision)
    chosen = next((entry for entry in ranked if entry.chosen), None)
    if chosen is None:
        return Markup("The partition that was trained is not among the best scores of the record.")
    decimals = words.percent_decimals([entry.score for entry in ranked]) + 1
    said = Markup(
        "<b>{}</b> scored {}: the mean fall of a task’s loss after a step for its partners (below zero: a rise)."
    )
    best = said.format(words.groups(chosen.splits), words.percent(chosen.score, decimals))
    rivals = [entry for entry in ranked if not entry.chosen]
    if not rivals:
        return best + " The record names no other partition."
    gap = words.percent(chosen.score - rivals[0].score, decimals).removesuffix(" %")
    return best + Markup(" The runner-up, {}, scored {}: a lead of {} points.").format(
        words.groups(rivals[0].splits), words.percent(rivals[0].score, decimals), gap.lstrip("+")
    )


def strands(scheme: Scheme, tasks: Sequence[str], shares: Mapping[str, float]) -> Markup | None:
    """The course of a scheme that was merged and then split; None where it was not. `shares` as by `helped`."""
    merged = next((split for split in scheme.splits if split.parent is None), None)
    children = [split for split in scheme.splits if split.parent is not None]
    if merged is None or not children:
        return None
    count = sum(len(split.tasks) for split in children)
    height = _TOP + count * _STRAND + (len(children) - 1) * _GROUP_GAP + 62
    x = Scale(merged.first_round, max(split.last_round for split in children) + 1, _LEFT, _WIDTH - _RIGHT)
    middle = (_TOP + height - 62) / 2
    order = [task for split in children for task in split.tasks]
    starts = {task: middle + (index - (len(order) - 1) / 2) * _BUNDLED for index, task in enumerate(order)}
    parts = [_bundle(merged, x, starts)]
    y = _TOP + 14
    for split in children:
        parts.append(_group(split, x, y - _STRAND * 0.8))
        for task in split.tasks:
            parts.append(_strand(task, task_css(task, tasks), split, x, (starts[task], y)))
            parts.append(_end(task, scheme, shares, x.end + 8, y))
            y += _STRAND
        y += _GROUP_GAP
    parts += [_bundle_label(merged, x, starts), _rounds(x, height - 40)]
    name = f"{scheme.name}: {len(order)} tasks merged for {len(merged.rounds)} rounds, then split into "
    return picture(_WIDTH, height, name + words.groups([split.tasks for split in children]), *parts)


def _bundle(merged: Split, x: Scale, starts: Mapping[str, float]) -> Markup:
    low, high = min(starts.values()), max(starts.values())
    end = x(merged.last_round + 1)
    tip = el("title", f"{merged.name}: {len(merged.tasks)} tasks share one encoder for {len(merged.rounds)} rounds")
    shade = el("rect", tip, x=x.start, y=low - 8, width=end - x.start, height=high - low + 16, rx=8.0, class_="bundle")
    return shade


def _bundle_label(merged: Split, x: Scale, starts: Mapping[str, float]) -> Markup:
    low = min(starts.values())
    name = text(x.start, low - 26, "merged", class_="tick strong halo")
    return name + text(x.start, low - 13, f"{len(merged.rounds)} rounds", class_="tick halo")


def _group(split: Split, x: Scale, y: float) -> Markup:
    label = f"{split.name}: {len(split.rounds)} rounds"
    return text(x.end, y + 3, label, class_="tick strong", text_anchor="end")


def _strand(task: str, css: str, split: Split, x: Scale, y: tuple[float, float]) -> Markup:
    begin, end = x(split.first_round), x.end
    bend = begin + (end - begin) * 0.45
    half = (begin + bend) / 2
    a, b = number(y[0]), number(y[1])
    path = (
        f"M{number(x.start)} {a} H{number(begin)} C{number(half)} {a} {number(half)} {b} {number(bend)} {b}"
        f" H{number(end)}"
    )
    return el("path", el("title", words.task_label(task)), d=path, class_=f"strand {css}")


def _end(task: str, scheme: Scheme, shares: Mapping[str, float], x: float, y: float) -> Markup:
    name = el("tspan", words.task_label(task), class_="label")
    figure = el("tspan", f" {words.loss(scheme.losses.get(task))}", class_="tick")
    decimals = words.percent_decimals(list(shares.values()))
    tip = f"{words.task_label(task)}: final loss {words.loss(scheme.losses.get(task))}"
    if task in shares:
        tip += f"; its share in the score {words.percent(shares[task], decimals)}"
    return el("text", el("title", tip), name, figure, x=x, y=y + 4)


def _rounds(x: Scale, y: float) -> Markup:
    parts = [el("line", x1=x.start, x2=x.end, y1=y, y2=y, class_="axis")]
    for value in ticks(x.low, x.high, 5):
        parts.append(el("line", x1=x(value), x2=x(value), y1=y, y2=y + 4, class_="axis"))
        parts.append(text(x(value), y + 16, f"{value:g}", class_="tick", text_anchor="middle"))
    parts.append(text(x.end, y + 30, "rounds trained", class_="axis-name", text_anchor="end"))
    parts.append(text(x.end + 8, y + 4, "task, final loss", class_="axis-name"))
    return Markup("").join(parts)

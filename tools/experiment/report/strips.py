"""Every partition of the tasks by its measured loss, one line each, and its score against that loss."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

from markupsafe import Markup

from tools.experiment.report.partitions import Ranking, standing
from tools.experiment.report.rows import short_groups
from tools.report import words
from tools.report.svg import Scale, el, picture, text, ticks

_WIDTH, _LEFT, _RIGHT, _TOP, _LINE = 480.0, 100.0, 14.0, 40.0, 18.0
_SIDE, _EDGE = 250.0, 36.0
#: Of more partitions than this the best and the worst are drawn, and those that were chosen.
_MOST, _BEST, _WORST = 40, 24, 8


def deviations(ranked: Ranking) -> dict[int, list[float]]:
    """Losses by seed less the seed's own mean over all partitions, so that seeds can be laid over one another."""
    means = {seed: math.fsum(found) / len(found) for seed, found in ranked.losses.items()}
    return {seed: [value - means[seed] for value in found] for seed, found in ranked.losses.items()}


def partition_strip(ranked: Ranking, groups: int, noise: float | None) -> Markup:
    """The partitions into `groups` groups, best mean first; all sizes share one axis, so panels compare."""
    apart = deviations(ranked)
    every = [value for found in apart.values() for value in found]
    chosen: dict[int, list[int]] = {}
    for seed in ranked.seeds:
        chosen.setdefault(standing(ranked, groups, seed).chosen, []).append(seed)
    places = drawn(ranked.of_size(groups), chosen)
    bottom = _TOP + len(places) * _LINE
    pad = (max(every) - min(every)) * 0.04 or 0.01
    x = Scale(min(every) - pad, max(every) + pad, _LEFT, _WIDTH - _RIGHT)
    parts = [_axis(x, bottom), _noise_bar(x, noise)]
    for line, at in enumerate(places):
        parts.append(_partition(ranked, at, apart, chosen.get(at, []), x, _TOP + (line + 0.5) * _LINE))
    name = f"Measured loss of the {len(places)} partitions into {groups} groups, best first: " + ", ".join(
        short_groups(ranked.partitions[at]) for at in places
    )
    return picture(_WIDTH, bottom + 34, name, *parts)


def drawn(places: Sequence[int], chosen: Container[int]) -> list[int]:
    """Which of the partitions, best first, have a line of their own."""
    if len(places) <= _MOST:
        return list(places)
    last = len(places) - _WORST
    return [at for line, at in enumerate(places) if line < _BEST or line >= last or at in chosen]


def _axis(x: Scale, bottom: float) -> Markup:
    parts = []
    for value in ticks(x.low, x.high, 4):
        parts.append(el("line", x1=x(value), x2=x(value), y1=_TOP - 4, y2=bottom, class_="grid"))
        shown = f"{value:+.3g}".replace("-", words.MINUS) if value else "0"
        parts.append(text(x(value), bottom + 14, shown, class_="tick", text_anchor="middle"))
    parts.append(text(x.end, bottom + 29, "loss, less the seed’s mean", class_="axis-name", text_anchor="end"))
    return Markup("").join(parts)


def _noise_bar(x: Scale, noise: float | None) -> Markup:
    if noise is None:
        return Markup("")
    half = x(noise) - x(0)
    left, right = x.end - 2 * half, x.end
    return Markup("").join(
        [
            el("line", x1=left, x2=right, y1=22, y2=22, class_="whisker muted"),
            el("line", x1=left, x2=left, y1=18, y2=26, class_="whisker muted"),
            el("line", x1=right, x2=right, y1=18, y2=26, class_="whisker muted"),
            text(left - 6, 26, "seed noise ±1 sd", class_="tick", text_anchor="end"),
        ]
    )


def _partition(
    ranked: Ranking, at: int, apart: dict[int, list[float]], seeds: Sequence[int], x: Scale, y: float
) -> Markup:
    label = short_groups(ranked.partitions[at])
    mean = math.fsum(found[at] for found in apart.values()) / len(apart)
    tip = f"{words.groups(ranked.partitions[at])}: mean loss {words.loss(ranked.mean(at))}"
    if seeds:
        tip += f"; chosen in seed {', '.join(map(str, seeds))}"
    parts = [el("title", tip)]
    if seeds:
        parts.append(el("rect", x=0.0, y=y - _LINE / 2, width=_WIDTH, height=_LINE, rx=4.0, class_="band"))
    parts.append(text(_LEFT - 12, y + 4, label, class_="part strong" if seeds else "part", text_anchor="end"))
    for seed, found in apart.items():
        parts.append(el("circle", cx=x(found[at]), cy=y, r=2.6, class_="speck"))
        if seed in seeds:
            parts.append(el("circle", cx=x(found[at]), cy=y, r=5.2, class_="ring"))
    parts.append(el("line", x1=x(mean), x2=x(mean), y1=y - 5, y2=y + 5, class_="tock"))
    return el("g", *parts, class_="c-mas" if seeds else "c-one-by-one")


def score_scatter(ranked: Ranking, seed: int, correlation: float | None) -> Markup:
    """Score (right is better) against measured loss (down is better), a dot a partition, in one seed."""
    scores, losses = ranked.scores[seed], ranked.losses[seed]
    x = Scale(*_padded(scores), _EDGE + 4, _SIDE - 8)
    y = Scale(*_padded(losses), _SIDE - _EDGE, 22)
    parts = [text(0, 10, "measured loss", class_="axis-name")]
    for value in ticks(y.low, y.high, 4):
        parts.append(el("line", x1=x.start, x2=x.end, y1=y(value), y2=y(value), class_="grid"))
        parts.append(text(x.start - 5, y(value) + 3.5, f"{value:.4g}", class_="tick", text_anchor="end"))
    for value in ticks(x.low, x.high, 4):
        shown = f"{value * 100:.3g}".replace("-", words.MINUS)
        parts.append(text(x(value), y.start + 14, shown, class_="tick", text_anchor="middle"))
    parts.append(el("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(text(x.end, y.start + 29, "score, %", class_="axis-name", text_anchor="end"))
    best = ranked.preferred[seed][0]
    for at, groups in enumerate(ranked.partitions):
        tip = f"{short_groups(groups)}: score {scores[at] * 100:+.2f} %, loss {words.loss(losses[at])}"
        parts.append(
            el("circle", el("title", tip), cx=x(scores[at]), cy=y(losses[at]), r=3.2, class_=f"g{len(groups)}")
        )
    parts.append(el("circle", cx=x(scores[best]), cy=y(losses[best]), r=6.5, class_="ring c-mas"))
    said = "not defined" if correlation is None else f"{correlation:.2f}"
    return picture(_SIDE, _SIDE, f"Seed {seed}: score against measured loss, Spearman {said}", *parts)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    pad = (max(values) - min(values)) * 0.06 or 0.01
    return min(values) - pad, max(values) + pad

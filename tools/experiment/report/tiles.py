"""Tiles of the split that each client and each window of rounds would choose, and claims about their limits."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from tools.experiment.report.agreement import Agreement, Choice
from tools.experiment.report.claims import Claim
from tools.experiment.report.figures import estimate
from tools.experiment.report.rows import short_groups
from tools.report import words
from tools.report.svg import Scale, el, picture, text

_LEFT, _TOP, _HIGH = 92.0, 40.0, 26.0


def agreement_tiles(found: Agreement) -> Markup:
    """One seed: a line a client, a column a window of rounds; strong blue is the pooled split."""
    letters = max(len(short_groups(found.pooled)), 5)
    wide = max(74.0, 8.5 * letters + 16)
    names = ("", *found.clients)
    parts = []
    for column, window in enumerate(found.windows):
        x = _LEFT + (column + 0.5) * wide
        rounds = f"rounds {window.first + 1}–{window.last + 1}"
        parts.append(text(x, 14, window.name, class_="tick strong", text_anchor="middle"))
        parts.append(text(x, 28, rounds, class_="tick", text_anchor="middle"))
    for line, client in enumerate(names):
        y = _TOP + line * _HIGH + (6 if line else 0)
        label = client or "all clients"
        shown = label if len(label) <= 14 else f"{label[:13]}…"
        css = "tick strong" if not client else "tick"
        parts.append(text(_LEFT - 8, y + 17, shown, class_=css, text_anchor="end"))
        for column, window in enumerate(found.windows):
            choice = found.cells[client, window.name]
            parts.append(_tile(_LEFT + column * wide, y, wide, choice, f"{label}, {window.name}"))
    name = f"Splits that each client and each window of rounds would choose in seed {found.seed}"
    return picture(_LEFT + len(found.windows) * wide, _TOP + len(names) * _HIGH + 8, name, *parts)


def _tile(x: float, y: float, wide: float, choice: Choice | None, who: str) -> Markup:
    shape = {"x": x + 1.5, "y": y + 1.5, "width": wide - 3, "height": _HIGH - 3, "rx": 4.0}
    middle = (x + wide / 2, y + _HIGH / 2 + 4)
    if choice is None:
        rect = el("rect", class_="cell own", **shape)
        return el(
            "g",
            el("title", f"{who}: not probed"),
            rect,
            text(*middle, words.DASH, class_="figure own small", text_anchor="middle"),
        )
    tip = (
        f"{who}: {short_groups(choice.splits)}; adjusted Rand index {choice.adjusted:.2f}, Rand index {choice.rand:.2f}"
    )
    if choice.same:
        tip += "; the pooled split"
    strength = 0.08 + 0.62 * min(abs(choice.adjusted), 1.0)
    rect = el("rect", class_=f"cell {'helps' if choice.adjusted >= 0 else 'hurts'}", fill_opacity=strength, **shape)
    css = "part strong" if choice.same else "part"
    return el("g", el("title", tip), rect, text(*middle, short_groups(choice.splits), class_=css, text_anchor="middle"))


def forest(claims: Sequence[Claim]) -> list[Markup | None]:
    """For each claim its estimate and interval about the value it is held against; like units share a scale."""
    return [_whisker(claim, [c for c in claims if c.unit == claim.unit]) for claim in claims]


def _whisker(claim: Claim, alike: Sequence[Claim]) -> Markup | None:
    found = claim.estimate
    if found is None:
        return None
    reach = max((_reach(other) for other in alike), default=0.0) or 1.0
    x = Scale(-reach, reach, 4.0, 156.0)

    def at(value: float) -> float:
        return x(max(-reach, min(reach, value - claim.against)))

    parts = [el("line", x1=x(0), x2=x(0), y1=1, y2=21, class_="mark")]
    if found.low is not None and found.high is not None:
        parts.append(el("line", x1=at(found.low), x2=at(found.high), y1=11, y2=11, class_="whisker"))
    parts.append(el("circle", cx=at(found.mean), cy=11, r=4.0, class_="dot"))
    whole = el("g", *parts, class_=f"o-{claim.outcome}")
    return picture(
        160, 22, f"{claim.text}: {estimate(claim)}, held against {claim.against:g}", whole, class_="chart forest"
    )


def _reach(claim: Claim) -> float:
    found = claim.estimate
    ends = [] if found is None else [found.mean, found.low, found.high]
    return max((abs(end - claim.against) for end in ends if end is not None), default=0.0)

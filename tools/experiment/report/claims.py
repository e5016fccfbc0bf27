"""What a verdict is made of: claims about differences over seeds, each decided by its interval, and how they add up.

A claim is "yes" when the 95 % interval of its difference lies on the claimed side of zero, "no" when it lies on the
other, "unclear" when it holds zero, and "missing" with fewer than two seeds on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tools.experiment.report.stats import Interval

Outcome = Literal["yes", "no", "unclear", "missing"]
Verdict = Literal["holds", "does not hold", "mixed", "not enough data"]


@dataclass(frozen=True, slots=True)
class Claim:
    """One statement with the figure that decides it, which is held against `against`.

    Claims that are not `deciding` are shown and not counted.
    """

    text: str
    outcome: Outcome
    estimate: Interval | None
    unit: Literal["loss", "ratio", "share", "index"] = "loss"
    deciding: bool = True
    against: float = 0.0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question of the protocol with what the runs say. `figures` are plain JSON values."""

    question: str
    title: str
    rule: str
    claims: tuple[Claim, ...]
    remark: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """By `decide`, from the claims that count."""
        return decide([claim.outcome for claim in self.claims if claim.deciding])

    @property
    def reason(self) -> str:
        """One sentence: how many claims held, and which did not."""
        return explain([claim for claim in self.claims if claim.deciding], self.remark)


Rule = Callable[..., Answer]


def decide(outcomes: Sequence[Outcome]) -> Verdict:
    """Holds: every claim does. Does not hold: none does and at least one is refuted. Not enough data: none is decided
    either way, or all that have runs hold but some have none. Mixed: all else.
    """
    held, refuted, open_ = (outcomes.count(kind) for kind in ("yes", "no", "unclear"))
    if not held and not refuted:
        return "not enough data"
    if not held:
        return "does not hold"
    if held == len(outcomes):
        return "holds"
    return "mixed" if refuted or open_ else "not enough data"


def explain(claims: Sequence[Claim], remark: str = "") -> str:
    """The reason of a verdict in one sentence, from the claims themselves."""
    kinds: dict[Outcome, list[str]] = {"yes": [], "no": [], "unclear": [], "missing": []}
    for claim in claims:
        kinds[claim.outcome].append(claim.text)
    parts = [f"{len(kinds['yes'])} of {len(claims)} claims hold by their rule"]
    if kinds["no"]:
        parts.append(f"refuted: {_listed(kinds['no'])}")
    if kinds["unclear"]:
        parts.append(f"not separated by the seeds: {_listed(kinds['unclear'])}")
    if kinds["missing"]:
        parts.append(f"fewer than two seeds for: {_listed(kinds['missing'])}")
    if remark:
        parts.append(remark)
    return "; ".join(parts) + "."


def _listed(texts: Sequence[str], most: int = 4) -> str:
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return ", ".join(texts[:most]) + more


def positive(difference: Interval | None) -> Outcome:
    """Whether a difference is above zero beyond its interval."""
    if difference is None or difference.low is None or difference.high is None:
        return "missing"
    if difference.low > 0:
        return "yes"
    return "no" if difference.high < 0 else "unclear"


def not_negative(difference: Interval | None) -> Outcome:
    """Whether a difference is zero or more on average; refuted only beyond its interval."""
    found = positive(difference)
    return "yes" if found == "unclear" and difference is not None and difference.mean >= 0 else found


def below(value: Interval | None, limit: float) -> Outcome:
    """Whether a value lies under `limit` with its whole interval; refuted when the whole interval lies above."""
    if value is None or value.low is None or value.high is None:
        return "missing"
    if value.high < limit:
        return "yes"
    return "no" if value.low > limit else "unclear"


def plain(value: Interval | None) -> dict[str, Any] | None:
    """An interval as JSON."""
    return None if value is None else {"n": value.n, "mean": value.mean, "low": value.low, "high": value.high}

"""Figures of the experiment's report as people read them, the same in HTML and Markdown."""

from __future__ import annotations

from tools.experiment.report.claims import Claim
from tools.experiment.report.stats import Interval
from tools.report.words import DASH, MINUS, percent

OUTCOMES = {"yes": "holds", "no": "refuted", "unclear": "not separated", "missing": "too few seeds"}


def plain_number(value: float, decimals: int = 3, sign: bool = False) -> str:
    """A number with a true minus sign."""
    shown = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    return shown.replace("-", MINUS)


def mean(value: Interval | None, decimals: int = 3, sign: bool = False) -> str:
    """The mean alone; unknown is a dash."""
    return DASH if value is None else plain_number(value.mean, decimals, sign)


def half(value: Interval | None, decimals: int = 3) -> str:
    """Half the interval's width as `± 0.012`; nothing for a single value, or where all seeds have the same figure."""
    if value is None or value.half is None or value.half < 1e-9 * abs(value.mean):
        return ""
    return f"± {value.half:.{decimals}f}"


def share(value: Interval | None) -> str:
    """A signed percentage of the mean, e.g. `+1.2 %`."""
    return DASH if value is None else percent(value.mean)


def with_half(value: Interval | None, decimals: int = 3, sign: bool = False) -> str:
    """Mean and half width, e.g. `2.114 ± 0.012`."""
    return f"{mean(value, decimals, sign)} {half(value, decimals)}".strip()


def estimate(claim: Claim) -> str:
    """A claim's figure with its limits, in its own unit."""
    found = claim.estimate
    if found is None:
        return DASH
    if claim.unit == "share":
        ends = [
            f"{value * 100:.1f} %".replace("-", MINUS)
            for value in (found.mean, found.low, found.high)
            if value is not None
        ]
    else:
        sign, decimals = claim.unit == "loss", 4 if claim.unit == "loss" else 3
        ends = [plain_number(v, decimals, sign) for v in (found.mean, found.low, found.high) if v is not None]
    limits = f" [{ends[1]}, {ends[2]}]" if len(ends) == 3 else ""
    return f"{ends[0]}{limits}, n = {found.n}"

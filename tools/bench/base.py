"""What a benchmark is, and what it gives: rows of SI figures, each the median of several runs beside its bound.

Absolute figures move with the machine and with what else runs on it. Where two figures can be taken in the same run,
their ratio is the one to trust.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

#: "share" is a part of a whole (1 is all of it), "ratio" a quotient of two like figures.
Unit = Literal["B", "s", "B/s", "1/s", "1/min", "share", "ratio"]


class BenchError(Exception):
    """A benchmark that could not be run; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What the project promises of a figure, in the figure's unit."""

    limit: float
    kind: Literal["at_most", "at_least"] = "at_most"

    def holds(self, value: float) -> bool:
        """Whether `value` keeps the promise."""
        return value <= self.limit if self.kind == "at_most" else value >= self.limit


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: the median of `runs` runs, the lowest and the highest of them, and its bound if it has one."""

    figure: str
    value: float
    unit: Unit
    runs: int
    low: float
    high: float
    bound: Bound | None = None

    @property
    def holds(self) -> bool | None:
        """Whether the median keeps its bound; None without one."""
        return None if self.bound is None else self.bound.holds(self.value)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """`run(quick)`: quick is the smallest form that still runs everything; its figures mean little.

    `faults` are the expected errors of the parts it uses: they end this benchmark with their message.
    """

    name: str
    measures: str
    run: Callable[[bool], list[Row]]
    faults: tuple[type[Exception], ...] = ()


def row(figure: str, values: Sequence[float], unit: Unit, bound: Bound | None = None) -> Row:
    """The row of one figure's runs. Raises ValueError when there was none."""
    if not values:
        raise ValueError(f"no run of {figure!r} was measured")
    return Row(figure, statistics.median(values), unit, len(values), min(values), max(values), bound)


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def rate_per_s(work: Callable[[], object], least_s: float) -> float:
    """Calls per second, over as many calls as take at least `least_s` together."""
    calls, took_s = 1, 0.0
    while True:
        began_s = time.perf_counter()
        for _ in range(calls):
            work()
        took_s = time.perf_counter() - began_s
        if took_s >= least_s:
            return calls / took_s
        calls *= 2

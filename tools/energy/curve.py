"""Joules of a plug over a whole night: a meter is asked piece by piece, and any window is cut out of the pieces.

A meter remembers samples for a limited time; windows that are only known once a job has ended need longer. Pieces are
short against a job, so a straight line inside the two that an edge cuts does no harm.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

import msgspec

from edge_agent.power.base import Measurement
from tools.energy.block_record import Figure
from tools.energy.figures import missing, of_measurement, total


class Curve:
    """Pieces of one meter, end to end. `measure(start_s, end_s)` is the meter's; times are of its monotonic clock."""

    def __init__(self, measure: Callable[[float, float], Measurement], start_s: float) -> None:
        self._measure = measure
        self._starts: list[float] = []
        self._pieces: list[Figure] = []
        self._end_s = start_s

    def advance(self, now_s: float) -> None:
        """Take the piece from the last end until now."""
        if now_s > self._end_s:
            self._starts.append(self._end_s)
            self._pieces.append(of_measurement(self._measure(self._end_s, now_s)))
            self._end_s = now_s

    def forget(self, before_s: float) -> None:
        """Drop what ended before."""
        keep = max(0, bisect_right(self._starts, before_s) - 1)
        del self._starts[:keep], self._pieces[:keep]

    def between(self, start_s: float, end_s: float) -> Figure:
        """Joules of a window; what lies outside the pieces is not covered."""
        if end_s <= start_s:
            return missing("the window is empty")
        if not self._pieces:
            return missing("the plug was not read yet", end_s - start_s)
        first = max(0, bisect_right(self._starts, start_s) - 1)
        parts = []
        for begin_s, piece in zip(self._starts[first:], self._pieces[first:], strict=True):
            if begin_s >= end_s:
                break
            low_s, high_s = max(begin_s, start_s), min(begin_s + piece.duration_s, end_s)
            if high_s > low_s:
                parts.append(_cut(piece, (high_s - low_s) / piece.duration_s))
        if not parts:
            return missing("the plug was not read in this window", end_s - start_s)
        whole = total(parts)
        lacking_s = (end_s - start_s) - whole.duration_s
        return total([whole, missing("the plug was not read throughout", lacking_s)]) if lacking_s > 1e-6 else whole


def _cut(piece: Figure, share: float) -> Figure:
    if share >= 1.0:
        return piece
    return msgspec.structs.replace(
        piece,
        energy_j=None if piece.energy_j is None else piece.energy_j * share,
        uncertainty_j=None if piece.uncertainty_j is None else piece.uncertainty_j * share,
        duration_s=piece.duration_s * share,
        n_samples=round(piece.n_samples * share),
    )

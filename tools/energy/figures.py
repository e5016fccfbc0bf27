"""Adding figures of energy up, and what a net figure is. Pure.

A sum is as weak as its weakest part (`models.energy`). Its uncertainty is the plain sum of its parts': what a meter
is wrong by, it is wrong by all night, and boards of one make share their faults.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from edge_agent.power.base import Measurement
from models.energy import EnergyTotal, add_energy, summarise_energy
from models.wire.messages import PhaseEnergy
from tools.energy.block_record import Figure


def missing(reason: str, duration_s: float = 0.0) -> Figure:
    """No figure, and why."""
    return Figure(None, "missing", "none", "none", duration_s, reason=reason)


def of_phase(part: PhaseEnergy) -> Figure:
    """What an agent reported of one phase."""
    return Figure(
        energy_j=part.energy_j,
        state=part.state,
        source=part.source,
        scope=part.scope,
        duration_s=part.duration_s,
        coverage=part.coverage,
        uncertainty_j=part.uncertainty_j,
        n_samples=part.n_samples,
        max_gap_s=part.max_gap_s,
        flags=part.flags,
        reason=part.reason,
    )


def of_measurement(part: Measurement) -> Figure:
    """What a meter says of a window."""
    return Figure(
        energy_j=part.energy_j,
        state=part.state,
        source=part.source,
        scope=part.scope,
        duration_s=part.duration_s,
        coverage=part.coverage,
        uncertainty_j=part.uncertainty_j,
        n_samples=part.n_samples,
        max_gap_s=part.max_gap_s,
        flags=part.flags,
        reason=part.reason,
    )


def total(parts: Sequence[Figure]) -> Figure:
    """The sum of figures of domains that do not overlap, or of windows that do not."""
    if not parts:
        return missing("nothing was reported")
    if len(parts) == 1:
        return parts[0]
    summed = EnergyTotal()
    for part in parts:
        summed = add_energy(summed, PhaseEnergy(
            "wait", part.duration_s, 0.0, part.energy_j, part.state, part.source, part.scope
        ))  # fmt: skip
    said = summarise_energy(summed)
    known = [part for part in parts if part.energy_j is not None]
    unsure = [part.uncertainty_j for part in known]
    gaps = [part.max_gap_s for part in known if part.max_gap_s is not None]
    reasons = dict.fromkeys(filter(None, (said.reason, *(part.reason for part in parts))))
    return Figure(
        energy_j=said.energy_j,
        state=said.state,
        source=said.source,
        scope=said.scope,
        duration_s=said.duration_s,
        coverage=_coverage(parts),
        uncertainty_j=math.fsum(u for u in unsure if u is not None) if unsure and None not in unsure else None,
        n_samples=sum(part.n_samples for part in parts),
        max_gap_s=max(gaps, default=None),
        flags=tuple(sorted({flag for part in parts for flag in part.flags})),
        reason="; ".join(list(reasons)[:4]),
    )


def _coverage(parts: Sequence[Figure]) -> float | None:
    if any(part.coverage is None and part.energy_j is not None for part in parts):
        return None
    duration_s = math.fsum(part.duration_s for part in parts)
    covered_s = math.fsum(part.duration_s * (part.coverage or 0.0) for part in parts)
    return min(1.0, covered_s / duration_s) if duration_s > 0 else None


def idle_w(before: Figure, after: Figure) -> float | None:
    """Watts of idling: the mean of both sides, or the one there is. None where neither was had."""
    known = [figure.power_w for figure in (before, after) if figure.power_w is not None]
    return math.fsum(known) / len(known) if known else None


def net_j(gross: Figure, idle: float | None) -> float | None:
    """Gross joules less what idling would have taken in the same time; None where either is not known whole.

    Of a partial figure only the covered time is charged. It may be below zero, which says that nothing was to be seen.
    """
    if gross.energy_j is None or idle is None:
        return None
    return gross.energy_j - idle * gross.duration_s * (1.0 if gross.coverage is None else gross.coverage)


def comparable(figures: Iterable[Figure]) -> str:
    """Why figures must not be compared with each other; empty where they may be."""
    kinds = {_kind(figure) for figure in figures if figure.energy_j is not None}
    scopes = {figure.scope for figure in figures if figure.energy_j is not None}
    found = []
    if len(kinds) > 1:
        found.append(f"some are {' and others '.join(sorted(kinds))}")
    if len(scopes) > 1:
        found.append(f"scopes differ: {', '.join(sorted(scopes))}")
    return "; ".join(found)


def _kind(figure: Figure) -> str:
    return "estimated" if figure.state == "estimated" else "measured"

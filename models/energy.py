"""Adding up joules without saying more than is known.

A sum of figures has the state of its weakest part: measured only if every part was measured; estimated as soon as one
part was; partial as soon as one part is partial or missing (the sum then covers the rest); missing when no part says
anything. Sources and scopes that differ are all named, because a board's joules and a module's are not alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from models.wire.messages import EnergyState, PhaseEnergy


class EnergyTotal(msgspec.Struct, frozen=True):
    """A running sum of energy figures. Adding is associative, so parts may be summed in any grouping.

    `energy_j` sums the figures that say something; `figures` counts them, and `missing` counts those that do not.
    `states` are the states of the counted figures, `sources` and `scopes` where they come from, each sorted.
    """

    energy_j: float = 0.0
    duration_s: float = 0.0
    cpu_s: float = 0.0
    figures: int = 0
    missing: int = 0
    states: tuple[EnergyState, ...] = ()
    sources: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


class EnergySummary(msgspec.Struct, frozen=True):
    """What a sum says: joules (None if nothing is known), the state of that claim, and why it is not better."""

    energy_j: float | None
    state: EnergyState
    duration_s: float
    cpu_s: float
    source: str
    scope: str
    reason: str


def add_energy(total: EnergyTotal, figure: PhaseEnergy) -> EnergyTotal:
    """`total` with one more figure; a figure without joules counts as missing whatever state it claims."""
    missing = figure.energy_j is None or figure.state == "missing"
    part = EnergyTotal(
        energy_j=0.0 if missing or figure.energy_j is None else figure.energy_j,
        duration_s=figure.duration_s,
        cpu_s=figure.cpu_s,
        figures=0 if missing else 1,
        missing=1 if missing else 0,
        states=() if missing else (figure.state,),
        sources=(figure.source,) if figure.source else (),
        scopes=(figure.scope,) if figure.scope else (),
    )
    return merge_energy(total, part)


def merge_energy(first: EnergyTotal, second: EnergyTotal) -> EnergyTotal:
    """The sum of two sums."""
    return EnergyTotal(
        energy_j=first.energy_j + second.energy_j,
        duration_s=first.duration_s + second.duration_s,
        cpu_s=first.cpu_s + second.cpu_s,
        figures=first.figures + second.figures,
        missing=first.missing + second.missing,
        states=tuple(sorted({*first.states, *second.states})),
        sources=tuple(sorted({*first.sources, *second.sources})),
        scopes=tuple(sorted({*first.scopes, *second.scopes})),
    )


def total_energy(figures: Iterable[PhaseEnergy]) -> EnergyTotal:
    """The sum of any number of figures."""
    total = EnergyTotal()
    for figure in figures:
        total = add_energy(total, figure)
    return total


def summarise_energy(total: EnergyTotal) -> EnergySummary:
    """What the sum says, with its state by the rule of this module and every weakness named."""
    reasons: list[str] = []
    if total.figures == 0:
        state: EnergyState = "missing"
        reasons.append("no figure was reported" if total.missing == 0 else f"all {total.missing} figures are missing")
    elif total.missing or "partial" in total.states:
        state = "partial"
        if total.missing:
            reasons.append(f"{total.missing} of {total.missing + total.figures} figures are missing")
        if "partial" in total.states:
            reasons.append("some figures cover only a part of their time")
    else:
        state = "estimated" if "estimated" in total.states else "measured"
    if {"estimated", "measured"} <= set(total.states):
        reasons.append("estimates are mixed with measurements")
    if len(total.scopes) > 1:
        reasons.append("scopes differ: " + ", ".join(total.scopes))
    return EnergySummary(
        energy_j=total.energy_j if total.figures else None,
        state=state,
        duration_s=total.duration_s,
        cpu_s=total.cpu_s,
        source=" + ".join(total.sources),
        scope=" + ".join(total.scopes),
        reason="; ".join(reasons),
    )

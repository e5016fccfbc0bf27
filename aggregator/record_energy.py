"""The joules of a job's record: by split and phase, by phase, and in all, each with what is known of it."""

from __future__ import annotations

import msgspec

from aggregator.coordinator.state import Job
from models.energy import EnergySummary, EnergyTotal, merge_energy, summarise_energy
from models.wire.messages import EnergyState


class EnergyRecord(msgspec.Struct, frozen=True):
    """Joules of one phase of one split, over all devices."""

    split: str
    phase: str
    energy_j: float | None
    state: EnergyState
    duration_s: float
    cpu_s: float
    source: str
    scope: str
    reason: str


class PhaseJoules(msgspec.Struct, frozen=True):
    """Joules of one phase over the whole job."""

    energy_j: float | None
    state: EnergyState


def total_energy_of(job: Job) -> EnergySummary:
    """The job's joules over all splits, phases and devices; partial where an order was never accounted for."""
    total = EnergyTotal()
    for phases in job.spent.energy.values():
        for part in phases.values():
            total = merge_energy(total, part)
    return _with_unanswered(job, summarise_energy(total))


def _with_unanswered(job: Job, summary: EnergySummary) -> EnergySummary:
    count = len(job.spent.unanswered)
    if not count:
        return summary
    lacking = f"{count} orders were never accounted for"
    return msgspec.structs.replace(
        summary,
        state="partial" if summary.energy_j is not None else "missing",
        reason="; ".join(part for part in (summary.reason, lacking) if part),
    )


def energy_rows(job: Job) -> tuple[EnergyRecord, ...]:
    """A row for each phase of each split."""
    rows = []
    for split, phases in job.spent.energy.items():
        for phase, total in phases.items():
            said = summarise_energy(total)
            rows.append(
                EnergyRecord(
                    split=split,
                    phase=phase,
                    energy_j=said.energy_j,
                    state=said.state,
                    duration_s=said.duration_s,
                    cpu_s=said.cpu_s,
                    source=said.source,
                    scope=said.scope,
                    reason=said.reason,
                )
            )
    return tuple(rows)


def energy_by_phase(job: Job) -> dict[str, PhaseJoules]:
    """Joules by phase over all splits."""
    totals: dict[str, EnergyTotal] = {}
    for phases in job.spent.energy.values():
        for phase, total in phases.items():
            totals[phase] = merge_energy(totals.get(phase, EnergyTotal()), total)
    said = {phase: summarise_energy(total) for phase, total in totals.items()}
    return {phase: PhaseJoules(summary.energy_j, summary.state) for phase, summary in said.items()}

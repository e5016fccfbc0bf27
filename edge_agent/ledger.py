"""What each phase of an order cost: a gapless account of a device's time on a job, turned into joules by the meter.

Everything between two reports of one job is accounted: an upload that ends after its report, and the wait for the
next order, appear in the report that follows. The time before a job's first order belongs to nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge_agent.power.base import Energy, Meter
from models.wire.messages import EnergyState, Phase, PhaseEnergy

#: Weakest first: what a phase's figure may be called when its windows differ.
_STATES: tuple[EnergyState, ...] = ("missing", "partial", "estimated", "measured")


@dataclass(frozen=True, slots=True)
class Window:
    """One stretch of one phase; edges on the monotonic clock, CPU seconds used by this device's processes in it."""

    phase: Phase
    start_s: float
    end_s: float
    cpu_s: float


class Ledger:
    """Accounts the phases of one job at a time. `cpu_clock` counts CPU seconds of the daemon and of its trainer."""

    def __init__(
        self, meter: Meter, cpu_clock: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._meter, self._cpu_clock, self._clock = meter, cpu_clock, clock
        self._job = ""
        self._phase: Phase = "wait"
        self._mark_s, self._mark_cpu_s = clock(), cpu_clock()
        self._figures: dict[Phase, list[tuple[Window, Energy]]] = {}

    def begin(self, job: str) -> None:
        """An order of `job` starts; what came before it belongs to it only if the last order was of the same job."""
        if job != self._job:
            self._job, self._figures = job, {}
            self._mark_s, self._mark_cpu_s, self._phase = self._clock(), self._cpu_clock(), "wait"

    def switch(self, phase: Phase, parts: Sequence[Window] = ()) -> None:
        """Close the open window and go on in `phase`.

        `parts` are windows of other phases inside the closed one (the probe within training), as the trainer saw them.
        """
        now_s, now_cpu_s = self._clock(), self._cpu_clock()
        inner = sorted((part for part in parts if part.phase != self._phase), key=lambda part: part.start_s)
        for window in _fill(self._phase, self._mark_s, now_s, now_cpu_s - self._mark_cpu_s, inner):
            self._figures.setdefault(window.phase, []).append((window, self._energy(window)))
        self._phase, self._mark_s, self._mark_cpu_s = phase, now_s, now_cpu_s

    def take(self, phase: Phase) -> tuple[PhaseEnergy, ...]:
        """Close the open window, go on in `phase`, and hand over every figure since the last report."""
        self.switch(phase)
        figures, self._figures = self._figures, {}
        return tuple(self._sum(phase, rows) for phase, rows in figures.items())

    def _energy(self, window: Window) -> Energy:
        return self._meter.energy(window.start_s, window.end_s, window.cpu_s)

    def _sum(self, phase: Phase, rows: Sequence[tuple[Window, Energy]]) -> PhaseEnergy:
        known = [energy.energy_j for _, energy in rows if energy.energy_j is not None]
        states = {energy.state for _, energy in rows}
        state: EnergyState
        if not known:
            state = "missing"
        elif "missing" in states:
            state = "partial"
        else:
            state = min(states, key=_STATES.index)
        reasons = dict.fromkeys(energy.reason for _, energy in rows if energy.reason)
        return PhaseEnergy(
            phase=phase,
            duration_s=sum(window.end_s - window.start_s for window, _ in rows),
            cpu_s=sum(window.cpu_s for window, _ in rows),
            energy_j=sum(known) if known else None,
            state=state,
            source=self._meter.source,
            scope=self._meter.scope,
            reason="; ".join(reasons)[:200],
        )


def _fill(phase: Phase, start_s: float, end_s: float, cpu_s: float, inner: Sequence[Window]) -> list[Window]:
    """Cut [start_s, end_s] into the `inner` windows and, between them, windows of `phase` that share the other CPU."""
    clipped = [
        Window(w.phase, max(w.start_s, start_s), min(w.end_s, end_s), w.cpu_s)
        for w in inner
        if min(w.end_s, end_s) > max(w.start_s, start_s)
    ]
    edges = [start_s] + [edge for w in clipped for edge in (w.start_s, w.end_s)] + [end_s]
    gaps = [(low, high) for low, high in zip(edges[::2], edges[1::2], strict=True) if high > low]
    rest_s, rest_cpu_s = sum(high - low for low, high in gaps), max(0.0, cpu_s - sum(w.cpu_s for w in clipped))
    mine = [Window(phase, low, high, rest_cpu_s * (high - low) / rest_s) for low, high in gaps]
    return clipped + mine

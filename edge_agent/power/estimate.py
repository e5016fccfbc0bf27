"""Joules guessed from CPU time, for machines without a meter. Never more than an estimate, and marked as such."""

from __future__ import annotations

import os
import time

from edge_agent.power.base import Energy
from models.wire.messages import EnergyState


class CpuTimeEstimate:
    """CPU seconds x a configured figure of watts per busy core: the marginal energy of the work, without idle power."""

    state: EnergyState = "estimated"

    def __init__(self, watts_per_core: float) -> None:
        self.source, self.scope = f"cpu-time x {watts_per_core:g} W per core", "cpu"
        self._watts_per_core = watts_per_core
        self._last: tuple[float, float] | None = None

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def energy(self, start_s: float, end_s: float, cpu_s: float) -> Energy:
        """Estimated joules of `cpu_s` CPU seconds."""
        return Energy(cpu_s * self._watts_per_core, "estimated", "no meter: CPU time x a configured figure")

    def power_w(self) -> float | None:
        """Estimated watts since the last call, of this process and the children it has already waited for."""
        used = os.times()
        now = (time.monotonic(), used.user + used.system + used.children_user + used.children_system)
        last, self._last = self._last, now
        if last is None or now[0] <= last[0]:
            return None
        return (now[1] - last[1]) / (now[0] - last[0]) * self._watts_per_core

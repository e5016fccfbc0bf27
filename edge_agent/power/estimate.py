"""Joules guessed from CPU time, for machines without a meter. Never more than an estimate, and marked as such."""

from __future__ import annotations

import time
from collections.abc import Callable

from edge_agent.power.base import Measurement
from models.wire.messages import EnergyState


class CpuTimeEstimate:
    """CPU seconds x a configured figure of watts per busy core: the marginal energy of the work, without idle power.

    How far off that is nobody knows, so that no uncertainty is given.
    """

    state: EnergyState = "estimated"

    def __init__(
        self, watts_per_core: float, cpu_clock: Callable[[], float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.source, self.scope, self.domain = f"cpu-time x {watts_per_core:g} W per core", "cpu", "cpu"
        self._watts_per_core, self._cpu_clock, self._clock = watts_per_core, cpu_clock, clock
        self._last = (clock(), cpu_clock())

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def measure(self, start_s: float, end_s: float, cpu_s: float) -> Measurement:
        """Estimated joules of `cpu_s` CPU seconds."""
        energy_j = cpu_s * self._watts_per_core
        return Measurement(
            energy_j, "estimated", self.source, self.scope, self.domain, duration_s=end_s - start_s, coverage=1.0
        )

    def power_w(self) -> float | None:
        """Estimated mean watts since the last call; None when asked twice at the same instant."""
        last, self._last = self._last, (self._clock(), self._cpu_clock())
        if self._last[0] <= last[0]:
            return None
        return max(0.0, self._last[1] - last[1]) / (self._last[0] - last[0]) * self._watts_per_core

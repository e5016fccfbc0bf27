"""What a meter says of a window of time, and what a meter is.

Rules: SI units, monotonic clock, a figure that could not be had is None with a reason, never 0 and never another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edge_agent.power.source import PowerSourceError as PowerSourceError
from edge_agent.power.trace import PowerStats
from models.wire.messages import EnergyState


@dataclass(frozen=True, slots=True)
class Measurement:
    """Joules of one window, where they come from, and how far to trust them.

    `energy_j` is None only when `state` is "missing"; `reason` says why it is not whole. A partial figure covers
    `coverage` of the window and is not stretched to the rest. `uncertainty_j` (to both sides, about 95 %, see
    `trace`) is of the covered part; None where it is not known, as for an estimate. `max_gap_s` is the longest time
    without a reading, `n_samples` the readings inside the window, `power_w` the watts of the covered part.
    """

    energy_j: float | None
    state: EnergyState
    source: str = ""
    scope: str = ""
    domain: str = ""
    duration_s: float = 0.0
    n_samples: int = 0
    coverage: float = 0.0
    max_gap_s: float | None = None
    uncertainty_j: float | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""
    power_w: PowerStats | None = None


class Meter(Protocol):
    """Turns windows of time into joules."""

    source: str
    scope: str
    domain: str
    state: EnergyState

    def start(self) -> None:
        """Begin sampling, if this meter samples."""

    def stop(self) -> None:
        """End sampling and let go of the source."""

    def measure(self, start_s: float, end_s: float, cpu_s: float) -> Measurement:
        """Joules between two instants of the monotonic clock, in which the work used `cpu_s` CPU seconds.

        Never raises and never waits long: what cannot be had is missing, and the work goes on.
        """

    def power_w(self) -> float | None:
        """The latest power in watts, or None."""


class NoMeter:
    """No meter at all: every figure is missing, with the reason."""

    state: EnergyState = "missing"

    def __init__(self, reason: str) -> None:
        self.source, self.scope, self.domain, self._reason = "none", "none", "none", reason

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def measure(self, start_s: float, end_s: float, cpu_s: float) -> Measurement:
        """Missing, with the reason."""
        return Measurement(None, "missing", self.source, self.scope, self.domain, end_s - start_s, reason=self._reason)

    def power_w(self) -> float | None:
        """None."""
        return None

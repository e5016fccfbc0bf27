"""The meter's interface, and the meter that integrates samples of a power source.

Rules: SI units, monotonic clock, trapezoids between samples, a figure that could not be had is None with a reason.
"""

from __future__ import annotations

import bisect
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from edge_agent.power.source import PowerSourceError as PowerSourceError
from models.wire.messages import EnergyState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules of one window. `energy_j` is None only when `state` is `missing`; `reason` says why it is not whole."""

    energy_j: float | None
    state: EnergyState
    reason: str = ""


class PowerSource(Protocol):
    """One thing that reports watts. `scope` is wall, board, module, sum_of_rails, gpu or cpu."""

    name: str
    scope: str

    def read_w(self) -> float:
        """Power now, in watts; raises PowerSourceError."""


class Meter(Protocol):
    """Turns windows of time into joules."""

    source: str
    scope: str
    state: EnergyState

    def start(self) -> None:
        """Begin sampling, if this meter samples."""

    def stop(self) -> None:
        """End sampling."""

    def energy(self, start_s: float, end_s: float, cpu_s: float) -> Energy:
        """Joules between two instants of the monotonic clock, in which the work used `cpu_s` CPU seconds."""

    def power_w(self) -> float | None:
        """The latest power in watts, or None."""


class NoMeter:
    """No meter at all: every figure is missing, with the reason."""

    state: EnergyState = "missing"

    def __init__(self, reason: str) -> None:
        self.source, self.scope, self._reason = "none", "none", reason

    def start(self) -> None:
        """Nothing to start."""

    def stop(self) -> None:
        """Nothing to stop."""

    def energy(self, start_s: float, end_s: float, cpu_s: float) -> Energy:
        """Missing, with the reason."""
        return Energy(None, "missing", self._reason)

    def power_w(self) -> float | None:
        """None."""
        return None


@dataclass(frozen=True, slots=True)
class Sample:
    """Watts at an instant of the monotonic clock."""

    at_s: float
    power_w: float


class SampledMeter:
    """Integrates a power source by trapezoids. Keeps the last `keep_s` seconds of samples."""

    state: EnergyState = "measured"

    def __init__(
        self, reader: PowerSource, period_s: float, keep_s: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.source, self.scope = reader.name, reader.scope
        self._reader, self._period_s, self._clock = reader, period_s, clock
        self._samples: deque[Sample] = deque(maxlen=max(16, int(keep_s / period_s)))
        self._fault = "no sample was taken yet"
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Sample in a thread of its own until `stop`."""
        self._thread = threading.Thread(target=self._run, name="power", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.sample()
            self._stop.wait(self._period_s)

    def sample(self) -> None:
        """Take one sample now; a failed read leaves a gap and its reason, never a zero."""
        try:
            power_w = self._reader.read_w()
        except PowerSourceError as error:
            if str(error) != self._fault:
                log.warning("power source %s: %s", self.source, error)
            self._fault = str(error)
            return
        with self._lock:
            self._samples.append(Sample(self._clock(), power_w))
        self._fault = ""

    def power_w(self) -> float | None:
        """The newest sample, unless it is older than three periods."""
        with self._lock:
            last = self._samples[-1] if self._samples else None
        return last.power_w if last and self._clock() - last.at_s <= 3 * self._period_s else None

    def energy(self, start_s: float, end_s: float, cpu_s: float) -> Energy:
        """Trapezoid over the samples around the window; a gap of more than three periods makes it partial."""
        if self._clock() - end_s < self._period_s:
            self.sample()  # a sample at the edge, so that the last part of the window is not extrapolated
        with self._lock:
            samples = list(self._samples)
        return integrate(samples, start_s, end_s, max_gap_s=3 * self._period_s, fault=self._fault)


def integrate(samples: list[Sample], start_s: float, end_s: float, max_gap_s: float, fault: str = "") -> Energy:
    """Joules in [start_s, end_s] from time-ordered samples.

    Power between samples is linear; gaps longer than `max_gap_s` are left out and make the figure partial.
    """
    first = max(0, bisect.bisect_right(samples, start_s, key=lambda sample: sample.at_s) - 1)
    energy_j, covered_s = 0.0, 0.0
    # Without copies: an order has up to a thousand windows, and an hour of samples is long.
    for index in range(first, len(samples) - 1):
        a, b = samples[index], samples[index + 1]
        if a.at_s >= end_s:
            break
        low, high = max(a.at_s, start_s), min(b.at_s, end_s)
        width_s = b.at_s - a.at_s
        if high <= low or width_s > max_gap_s:
            continue
        slope = (b.power_w - a.power_w) / width_s
        middle_w = a.power_w + slope * ((low + high) / 2 - a.at_s)
        energy_j += middle_w * (high - low)
        covered_s += high - low
    duration_s = end_s - start_s
    if covered_s <= 0:
        return Energy(None, "missing", fault or "no samples in this window")
    if covered_s < duration_s - 1e-6:
        return Energy(energy_j, "partial", fault or f"samples cover {covered_s / duration_s:.0%} of the window")
    return Energy(energy_j, "measured")

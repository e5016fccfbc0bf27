"""A world for meters: clocks that stand where they were put, and sources that say what their board really draws."""

from __future__ import annotations

from collections.abc import Callable

from edge_agent.power.source import Accuracy, Count, PowerSourceError, Reading, Scope


class World:
    """Monotonic time, time asleep, the wall's clock, and why the source cannot be read just now."""

    def __init__(self) -> None:
        self.now_s, self.asleep_s, self.trouble = 0.0, 0.0, ""

    def clock(self) -> float:
        return self.now_s

    def asleep(self) -> float:
        return self.asleep_s

    def check(self) -> None:
        if self.trouble:
            raise PowerSourceError(self.trouble)


class Watts:
    """A sampled source: `power(t)` watts."""

    name, domain = "watts", "board"
    scope: Scope = "board"
    rails: tuple[str, ...] = ()

    def __init__(
        self,
        world: World,
        power: Callable[[float], float],
        accuracy: Accuracy | None = None,
        least_period_s: float = 0.0,
    ) -> None:
        self.world, self.power, self.least_period_s = world, power, least_period_s
        self.accuracy = accuracy or Accuracy()
        self.flags: tuple[str, ...] = ()
        self.reads, self.closed = 0, False

    def read(self) -> Reading:
        self.reads += 1
        self.world.check()
        return Reading(self.power(self.world.now_s), flags=self.flags)

    def close(self) -> None:
        self.closed = True


class Joules:
    """A counter: `energy(t)` joules, modulo its range, since its last reset."""

    name, domain = "joules", "board"
    scope: Scope = "board"

    def __init__(
        self,
        world: World,
        energy: Callable[[float], float],
        range_j: float | None = None,
        max_power_w: float = 100.0,
        accuracy: Accuracy | None = None,
    ) -> None:
        self.world, self.energy, self.range_j, self.max_power_w = world, energy, range_j, max_power_w
        self.accuracy, self.least_period_s = accuracy or Accuracy(), 0.0
        self.zero_j = 0.0

    def read(self) -> Count:
        self.world.check()
        energy_j = self.energy(self.world.now_s) - self.zero_j
        return Count(energy_j if self.range_j is None else energy_j % self.range_j)

    def close(self) -> None: ...

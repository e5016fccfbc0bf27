"""What an agent tells of its meter: pieces without gaps, and which of them were idle."""

from __future__ import annotations

from edge_agent.power.base import Measurement
from edge_agent.telemetry import Teller


class Meter:
    """2 W, and a note of every window."""

    source, scope, domain, state = "jetson-sysfs", "module", "board", "measured"

    def __init__(self) -> None:
        self.windows: list[tuple[float, float]] = []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def power_w(self) -> float | None:
        return 2.0

    def measure(self, start_s: float, end_s: float, cpu_s: float) -> Measurement:
        self.windows.append((start_s, end_s))
        seconds = end_s - start_s
        return Measurement(2.0 * seconds, "measured", "jetson-sysfs", "module", "board", seconds, 50, 1.0, 0.1, 0.3)


def test_pieces_follow_on_each_other_and_carry_what_the_meter_says() -> None:
    meter, times = Meter(), iter([10.0, 15.0, 21.0])
    teller = Teller("pi-1", "boot", meter, lambda: 0.0, lambda: next(times))  # type: ignore[arg-type]
    first, second = teller.take(False, 0, None), teller.take(False, 0, None)
    assert meter.windows == [(10.0, 15.0), (15.0, 21.0)]
    assert (first.energy.energy_j, second.energy.energy_j) == (10.0, 12.0)
    assert (second.until_s, second.energy.scope, second.energy.coverage, second.energy.uncertainty_j) == (
        21.0, "module", 1.0, 0.3,
    )  # fmt: skip


def test_only_pieces_without_any_order_are_idle() -> None:
    times = iter(range(100))
    teller = Teller("pi-1", "boot", Meter(), lambda: 0.0, lambda: float(next(times)))  # type: ignore[arg-type]
    steps = [(False, 0), (True, 0), (True, 0), (False, 1), (False, 1), (False, 2), (False, 2)]
    idle = [teller.take(working, orders, None).idle for working, orders in steps]
    # The sixth piece began and ended without an order, but one was done in it.
    assert idle == [True, False, False, False, True, False, True]

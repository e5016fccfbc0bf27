"""A device's own day: from local midnight to local midnight, but never ended by a clock that is set.

The wall clock is asked once, when a day begins, how long it is until midnight; from then on seconds are counted on the
clock that no one can set (CLOCK_BOOTTIME, which also counts while the board sleeps). A wall clock that is stepped, in
either direction and however often, therefore ends no day. A day that follows another lasts at least half a day: where
the wall clock says that midnight is nearer, the day goes on to the midnight after.

A restart of the agent changes nothing, since the count is kept together with the boot it belongs to. After a reboot the
seconds that passed while the board was off can be told by the wall clock alone, so it is believed there, forwards only.
Nothing can be known against a wall clock that is wrong at that moment: such a step grants one new day, once a reboot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import msgspec

#: A day that follows another is no shorter than this.
LEAST_DAY_S = 12 * 3600.0


@dataclass(frozen=True, slots=True)
class Clocks:
    """`wall_s`: seconds since the epoch; `steady_s`: CLOCK_BOOTTIME; `boot`: names the boot. `zone` None: the local."""

    wall_s: Callable[[], float]
    steady_s: Callable[[], float]
    boot: str
    zone: tzinfo | None = None


def system_clocks(root: Path = Path("/")) -> Clocks:
    """The clocks of this machine."""
    try:
        boot = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""  # every start of the agent is then taken for a reboot
    return Clocks(time.time, lambda: time.clock_gettime(time.CLOCK_BOOTTIME), boot)


class Day(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A day with `left_s` to go, as of `steady_s` of boot `boot`, when the wall clock said `wall_s`."""

    left_s: float
    boot: str
    steady_s: float
    wall_s: float


def first_day(clocks: Clocks) -> Day:
    """The day of a device that has had none: until the next local midnight, however near."""
    wall_s = clocks.wall_s()
    return Day(until_midnight_s(wall_s, clocks.zone), clocks.boot, clocks.steady_s(), wall_s)


def follow(day: Day, clocks: Clocks) -> tuple[Day, bool]:
    """The day as of now, and whether it is a new one."""
    now_s, wall_s = clocks.steady_s(), clocks.wall_s()
    if day.boot and day.boot == clocks.boot:
        passed_s = max(0.0, now_s - day.steady_s)
    else:
        passed_s = max(0.0, now_s if clocks.boot else 0.0, wall_s - day.wall_s)
    if passed_s < day.left_s:
        return Day(day.left_s - passed_s, clocks.boot, now_s, wall_s), False
    left_s = until_midnight_s(wall_s, clocks.zone)
    if left_s < LEAST_DAY_S:
        left_s = until_midnight_s(wall_s + left_s + 1.0, clocks.zone) + left_s + 1.0
    return Day(left_s, clocks.boot, now_s, wall_s), True


def until_midnight_s(wall_s: float, zone: tzinfo | None) -> float:
    """Seconds from `wall_s` to the next local midnight; more than none, and 23 to 25 hours at most."""
    here = datetime.fromtimestamp(wall_s, zone)
    midnight = (here + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0, fold=0)
    return max(1.0, midnight.timestamp() - wall_s)

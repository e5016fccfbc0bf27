"""A device's day ends at midnight, and no clock that is set ends it sooner."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import pytest

from edge_agent.days import LEAST_DAY_S, Clocks, Day, first_day, follow, system_clocks, until_midnight_s

UTC = timezone.utc
HOUR_S = 3600.0


class Bench:
    """Two clocks: `pass_` lets time pass on both, `step` sets the one that can be set."""

    def __init__(self, at: datetime, boot: str = "b1") -> None:
        self.wall, self.steady, self.boot = at.timestamp(), 100.0, boot

    @property
    def clocks(self) -> Clocks:
        return Clocks(lambda: self.wall, lambda: self.steady, self.boot, UTC)

    def pass_(self, hours: float) -> None:
        self.wall += hours * HOUR_S
        self.steady += hours * HOUR_S

    def step(self, hours: float) -> None:
        self.wall += hours * HOUR_S

    def reboot(self, off_hours: float, wall_lost: float = 0.0) -> None:
        self.wall += (off_hours - wall_lost) * HOUR_S
        self.steady, self.boot = 20.0, self.boot + "x"


EVENING = datetime(2026, 3, 10, 18, tzinfo=UTC)


def test_a_day_ends_at_midnight_and_the_next_lasts_to_the_next_one() -> None:
    bench = Bench(EVENING)
    day = first_day(bench.clocks)
    assert day.left_s == 6 * HOUR_S
    bench.pass_(5.9)
    day, new = follow(day, bench.clocks)
    assert not new
    bench.pass_(0.2)
    day, new = follow(day, bench.clocks)
    assert new
    assert day.left_s == pytest.approx(23.9 * HOUR_S)


@pytest.mark.parametrize("hours", [6.5, 24.0, 24 * 365 * 30, -3.0, -24 * 400])
def test_a_step_of_the_wall_clock_ends_no_day(hours: float) -> None:
    bench = Bench(EVENING)
    day = first_day(bench.clocks)
    bench.pass_(1)
    bench.step(hours)
    day, new = follow(day, bench.clocks)
    assert not new
    assert day.left_s == pytest.approx(5 * HOUR_S)
    bench.pass_(5.001)
    assert follow(day, bench.clocks)[1], "it ends when its midnight has really come"


def test_however_often_it_is_stepped_there_are_no_more_days_than_half_days() -> None:
    bench = Bench(EVENING)
    day, days = first_day(bench.clocks), 0
    for index in range(240):  # ten days, an hour at a time, each to a minute before some midnight
        bench.pass_(1)
        bench.wall = (EVENING.replace(hour=23, minute=59) + timedelta(days=(index * 7) % 11)).timestamp()
        day, new = follow(day, bench.clocks)
        days += new
    assert days <= 240 * HOUR_S / LEAST_DAY_S
    assert days >= 9, "and days do end"


def test_a_restart_of_the_agent_is_no_new_day() -> None:
    bench = Bench(EVENING)
    kept = msgspec.json.decode(msgspec.json.encode(first_day(bench.clocks)), type=Day)
    bench.pass_(2)
    bench.step(30)
    day, new = follow(kept, bench.clocks)
    assert (new, day.left_s) == (False, 4 * HOUR_S)


def test_a_night_without_power_is_believed_forwards_only() -> None:
    bench = Bench(EVENING)
    day = first_day(bench.clocks)
    bench.reboot(off_hours=10)
    assert follow(day, bench.clocks)[1]
    bench = Bench(EVENING)
    bench.reboot(off_hours=10, wall_lost=400)  # no clock of its own: it woke up in the past
    after, new = follow(day, bench.clocks)
    assert not new
    assert after.left_s == day.left_s - 20.0, "what the steady clock has counted since the boot is certain"
    bench.step(400)  # and then it hears the time
    assert not follow(after, bench.clocks)[1]


def test_without_a_boots_name_every_start_is_a_reboot() -> None:
    bench = Bench(EVENING, boot="")
    day = first_day(bench.clocks)
    bench.pass_(1)
    day, new = follow(day, bench.clocks)
    assert (new, day.left_s) == (False, 5 * HOUR_S)


def test_midnights_of_days_of_23_and_25_hours() -> None:
    zone = ZoneInfo("Europe/Berlin")
    spring, autumn = datetime(2026, 3, 29, tzinfo=zone), datetime(2026, 10, 25, tzinfo=zone)
    assert until_midnight_s(spring.timestamp(), zone) == 23 * HOUR_S
    assert until_midnight_s(autumn.timestamp(), zone) == 25 * HOUR_S
    assert until_midnight_s(replace_zone(autumn).timestamp(), UTC) == 24 * HOUR_S


def replace_zone(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC)


def test_the_machines_clocks(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel/random").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/random/boot_id").write_text("abc\n")
    clocks = system_clocks(tmp_path)
    assert clocks.boot == "abc"
    assert clocks.steady_s() <= clocks.steady_s()
    assert system_clocks(tmp_path / "nowhere").boot == ""
    assert replace(clocks, zone=UTC).zone is UTC

"""What is counted of devices, what is held against them, and how much they may send."""

from __future__ import annotations

from pathlib import Path

import pytest
from lab import CAPABILITIES

from aggregator.config import GuardConfig
from aggregator.coordinator.state import Agent, Kept, State
from aggregator.fleet_status import fleet_status
from aggregator.guard import BURST_S, HELD, HELD_OF_PROVEN, MOST_DEVICES, MOST_WORDS, DeviceStatus, Guard, Kind
from aggregator.guard_memory import EVERY_S, Memory
from models.wire.codec import Foreign, Malformed, NotFinite, Oversized, WireError, WrongVersion
from models.wire.messages import Refused


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Time:
    return Time()


def made(clock: Time, proven: bool = True, **settings: float) -> Guard:
    return Guard(GuardConfig(**settings), clock, clock, proven=proven)  # type: ignore[arg-type]


def test_the_last_of_too_many_within_the_window_makes_it_due_once(clock: Time) -> None:
    guard = made(clock, refusals=3, within_s=100.0)
    for _ in range(2):
        guard.refused("pi-1", "update", "NaN")
    guard.refused("pi-2", "update", "NaN")
    assert guard.due({"pi-1", "pi-2"}) == []
    guard.refused("pi-1", "malformed", "cut short")
    assert guard.due({"pi-2"}) == [], "not before it is known"
    why = "3 of what it sent refused within 100 s; the last: malformed: cut short"
    assert guard.due({"pi-1", "pi-2"}) == [("pi-1", why)]
    assert guard.due({"pi-1", "pi-2"}) == []
    for _ in range(2):  # it begins anew
        guard.refused("pi-1", "update", "NaN")
    assert guard.due({"pi-1"}) == []


def test_what_is_longer_ago_than_the_window_is_forgiven(clock: Time) -> None:
    guard = made(clock, refusals=3, within_s=100.0)
    for _ in range(10):
        guard.refused("pi-1", "update", "NaN")
        clock.now_s += 50.0
        assert guard.due({"pi-1"}) == []
    guard.refused("pi-1", "update", "NaN")
    clock.now_s += 1.0
    guard.refused("pi-1", "update", "NaN")
    assert len(guard.due({"pi-1"})) == 1
    assert guard.tallies["pi-1"].refused == {"update": 12}


@pytest.mark.parametrize("kind", ["not waited for", "protocol version", "too many", "in quarantine", "revoked"])
def test_what_may_be_nobody_s_fault_is_counted_and_held_against_nobody(clock: Time, kind: Kind) -> None:
    guard = made(clock, refusals=1)
    guard.refused("pi-1", kind, "?")
    assert guard.due({"pi-1"}) == []
    assert guard.tallies["pi-1"].refused == {kind: 1}


def test_where_anybody_can_write_in_its_name_rubbish_is_held_against_nobody(clock: Time) -> None:
    guard = made(clock, proven=False, refusals=1)
    for kind in sorted(HELD_OF_PROVEN - HELD):
        guard.refused("pi-1", kind, "?")
    assert guard.due({"pi-1"}) == []
    assert sum(guard.tallies["pi-1"].refused.values()) == len(HELD_OF_PROVEN - HELD)
    guard.refused("pi-1", "report", "NaN")
    assert len(guard.due({"pi-1"})) == 1


@pytest.mark.parametrize(
    "error, kind",
    [
        (Malformed("cut"), "malformed"),
        (Oversized(9, 8), "oversized"),
        (WrongVersion(9), "protocol version"),
        (Foreign("not here"), "foreign message"),
        (NotFinite("x is nan", Refused("")), "not finite"),
        (WireError("?"), "malformed"),
    ],
)
def test_every_fault_of_the_wire_has_its_kind(clock: Time, error: WireError, kind: Kind) -> None:
    guard = made(clock)
    guard.bad_wire("pi-1", error)
    assert guard.tallies["pi-1"].refused == {kind: 1}
    assert guard.tallies["pi-1"].last_reason == str(error)


def test_a_device_may_send_so_much_at_once_and_so_much_over_a_while(clock: Time) -> None:
    guard = made(clock, messages_per_s=2.0)
    burst = int(2 * BURST_S)
    assert [guard.passes("pi-1") for _ in range(burst + 3)] == [True] * burst + [False] * 3
    assert guard.passes("pi-2"), "each has its own"
    clock.now_s += 1.0
    assert [guard.passes("pi-1") for _ in range(3)] == [True, True, False]
    clock.now_s += 1e6
    assert [guard.passes("pi-1") for _ in range(burst + 1)] == [True] * burst + [False]
    assert guard.tallies["pi-1"].refused == {"too many": 5}
    usual = made(clock)
    burst = int(usual.config.messages_per_s * BURST_S)
    assert [usual.passes("pi-1") for _ in range(burst + 1)] == [True] * burst + [False], "however it is rounded"
    slow = made(clock, messages_per_s=0.01)
    assert slow.passes("pi-1"), "one message is always within the rate"
    clock.now_s += BURST_S
    assert not slow.passes("pi-1"), "its bucket is not full again before its rate has filled it"


def test_of_a_device_that_is_silent_nothing_is_kept(clock: Time) -> None:
    guard = made(clock, messages_per_s=2.0)
    for number in range(100):
        guard.passes(f"n{number}")
    clock.now_s += BURST_S
    assert guard.passes("other")
    assert list(guard._full_at_s) == ["other"]


def test_a_flood_of_names_gives_no_flooder_its_burst_back(clock: Time) -> None:
    guard = made(clock, messages_per_s=2.0)
    while guard.passes("flooder"):
        pass
    for number in range(MOST_DEVICES + 10):
        guard.passes(f"n{number}")
        if number % 100 == 0:
            assert not guard.passes("flooder")


def test_only_members_are_admitted(clock: Time) -> None:
    guard = made(clock, refusals=1)
    assert guard.admits("pi-1"), "without a registry everybody is"
    guard.admission = lambda agent: {"pi-1": "", "pi-2": "revoked"}.get(agent, "not enrolled")  # type: ignore[assignment, return-value]
    assert [guard.admits(name) for name in ("pi-1", "pi-2", "pi-3")] == [True, False, False]
    assert {name: tally.refused for name, tally in guard.tallies.items()} == {
        "pi-2": {"revoked": 1},
        "pi-3": {"not enrolled": 1},
    }
    assert guard.due({"pi-2", "pi-3"}) == []


def test_invented_names_and_words_fill_nothing(clock: Time) -> None:
    guard = made(clock, refusals=1)
    guard.refused("first", "update", "NaN")
    for number in range(MOST_DEVICES + 10):
        guard.refused(f"n{number}", "malformed", "x" * 10_000)
        guard.passes(f"n{number}")
    assert len(guard.tallies) == len(guard._full_at_s) == MOST_DEVICES
    assert guard.due({"first"}) == [], "forgotten with its name"
    assert max(len(tally.last_reason) for tally in guard.tallies.values()) <= 300
    for number in range(100):
        guard.told("n20", f"word {number}: more")
    told = guard.tallies["n20"].told
    assert len(told) == MOST_WORDS + 1
    assert told["other"] == 100 - MOST_WORDS


def test_what_a_wrong_clock_once_counted_is_not_held_for_ever(clock: Time) -> None:
    clock.now_s = 1e9
    guard = made(clock, refusals=3, within_s=100.0)
    for _ in range(2):
        guard.refused("pi-1", "update", "NaN")
    clock.now_s = 1e6
    after = made(clock, refusals=3, within_s=100.0)
    after.recall(guard.tallies)
    after.refused("pi-1", "update", "NaN")
    assert after.due({"pi-1"}) == []
    assert after.tallies["pi-1"].held_at == [1e6]


def test_what_was_counted_is_there_in_the_next_process(
    clock: Time, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "guard.msgpack"
    guard = made(clock, refusals=3)
    memory = Memory(guard, path, clock)
    for _ in range(2):
        guard.refused("pi-1", "update", "NaN")
    guard.told("pi-2", "replayed order: 7")
    memory.keep()
    assert not path.exists(), "not every moment"
    clock.now_s += EVERY_S
    memory.keep()
    written = path.stat().st_mtime_ns
    clock.now_s += EVERY_S
    memory.keep()
    assert path.stat().st_mtime_ns == written, "nothing more was counted"
    after = made(clock, refusals=3)
    Memory(after, path, clock).recall()
    assert after.tallies == guard.tallies
    after.refused("pi-1", "update", "NaN")
    assert len(after.due({"pi-1"})) == 1, "the window goes on"
    path.write_bytes(b"rubbish")
    Memory(made(clock), path, clock).recall()
    assert "begins anew" in caplog.text
    nowhere = Memory(guard, tmp_path / "no" / "folder", clock)
    guard.told("pi-2", "more")
    nowhere.keep(0.0)
    assert "could not be kept" in caplog.text


def test_the_fleet_s_record_names_everybody_known_or_heard_of(clock: Time) -> None:
    guard = made(clock)
    guard.refused("pi-2", "update", "NaN")
    guard.told("pi-1", "replayed order: 7")
    guard.admission = lambda agent: "revoked" if agent == "pi-3" else ""
    guard.admits("pi-3")
    agents = {name: Agent(name, "b", True, CAPABILITIES) for name in ("pi-1", "pi-2")}
    state = State(agents=agents, quarantine={"pi-2": Kept(900.0, 2000.0, "too much")})
    found = fleet_status(state, guard, "lab", {"topic": 3}, 1001.0)
    assert (found.fleet, found.at, found.dropped) == ("lab", 1001.0, {"topic": 3})
    assert found.devices == (
        DeviceStatus("pi-1", True, told={"replayed order": 1}),
        DeviceStatus(
            "pi-2", True, "", {"update": 1}, {}, "NaN", 1000.0,
            quarantined_since=900.0, quarantined_until=2000.0, quarantine_reason="too much",
        ),
        DeviceStatus("pi-3", None, "revoked", {"revoked": 1}, {}, "pi-3 is revoked", 1000.0),
    )  # fmt: skip

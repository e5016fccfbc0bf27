"""Updates on their way here: a few at a time, whoever is silent goes last, and what is scarce costs no agent."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from aggregator import intake as intake_module
from aggregator.config import AggregatorConfig, GuardConfig
from aggregator.coordinator.events import (
    AnyEvent,
    EffectFailed,
    OrderFailed,
    ReportHere,
    SenderSilent,
    TrainReported,
)
from aggregator.effects import Checked, EffectError
from aggregator.intake import Intake
from aggregator.keeper import Keeper
from aggregator.room import NoRoom, Room
from models.link.base import Drops
from models.link.transfer import BlobStalled, BlobUnavailable, Route
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import BlobError
from models.wire.messages import (
    AffinitySums,
    BlobRef,
    BoardInfo,
    OrderKey,
    PhaseEnergy,
    Refused,
    TaskLoss,
    TrainReport,
)
from models.wire.topics import Topics

TOPICS = Topics("lab")
BASE = BlobRef("ba" * 32, 0, 1024, ())


def report(number: int, size_bytes: int = 100) -> TrainReport:
    key = OrderKey("job", "merged", 0, f"pi-{number}", 0, "train")
    return TrainReport(key, BlobRef(f"{number:064x}", size_bytes, 1024, ()), 10, (), None, (), 0, (), 0, 0, 1.0)


@dataclass
class Hall:
    """Floor, exchange, effects and helpers in one, as a test makes them."""

    folder: Path
    at_once: int = 3
    unwanted: set[str] = field(default_factory=set)
    events: list[AnyEvent] = field(default_factory=list)
    holds: list[AnyEvent] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    most: int = 0
    now: int = 0
    outcomes: dict[str, list[Exception]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)
    held: list[tuple[str, str]] = field(default_factory=list)
    max_norm_ratio: float = 0.0
    helped: list[str] | None = None
    helpers: int = 0

    def __post_init__(self) -> None:
        self.drops = Drops(logging.getLogger("test"))
        self.tasks: set[asyncio.Task[None]] = set()
        self.put_away = asyncio.Event()
        self.put_away.set()
        self.store = BlobStore(self.folder)
        self.room = Room(self.store, 0, 1, look_s=0.0)
        live: list[str] = []
        exchange = SimpleNamespace(forget=lambda sha256: None, fetch=self.fetch, caught_up=self.caught_up)
        split = SimpleNamespace(model=BASE)
        job = SimpleNamespace(splits={"merged": split}, spec=SimpleNamespace(deadline_s=600.0))
        self.state = cast(Any, SimpleNamespace(jobs={"job": job}, agents={}))
        config = AggregatorConfig(broker="x", state_dir="y", fetches_at_once=self.at_once, max_update_bytes=2**20)
        config = msgspec.structs.replace(config, guard=GuardConfig(max_norm_ratio=self.max_norm_ratio))
        keeper = Keeper(self.store, cast(Any, exchange), TOPICS, lambda: live)
        self.intake = Intake(
            cast(Any, self), config, TOPICS, cast(Any, exchange), keeper, cast(Any, self), self.room, self.drops, self
        )
        self.intake.on_refused = lambda agent, kind, why: self.held.append((agent, kind))

    def apply(self, event: AnyEvent) -> None:
        if isinstance(event, EffectFailed):  # its job has ended
            self.unwanted.add("pi-0")
        (self.holds if isinstance(event, ReportHere | SenderSilent) else self.events).append(event)

    def send(self, agent: str, message: Refused) -> None:
        self.refused.append(message)

    def hands(self) -> int:
        return self.helpers

    async def check(self, report: TrainReport, base_sha256: str, deadline_s: float) -> Checked | None:
        assert base_sha256 == BASE.sha256
        return None if self.helped is None else Checked(self.helped)

    async def fetch(
        self, ref: BlobRef, route: Route, deadline_s: float, patience_s: float, wanted: Callable[[], bool]
    ) -> Path:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0)
            self.fetched.append(ref.sha256)
            if self.outcomes.get(ref.sha256):
                raise self.outcomes[ref.sha256].pop(0)
            return self.store.path(ref.sha256)
        finally:
            self.now -= 1

    async def caught_up(self) -> None:
        await self.put_away.wait()

    async def check_update(self, base_sha256: str, update: Path, masked: bool = False) -> Checked:
        return Checked(self.faults, self.norms.get(update.name, 1.0))

    def errand(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.create_task(work))

    async def done(self) -> None:
        """Until nothing waits; raises what an errand raised."""
        while self.tasks:
            done, self.tasks = self.tasks, set()
            await asyncio.gather(*done)

    async def bring(self, *reports: TrainReport) -> None:
        assert all(self.intake.take(each) for each in reports)
        await self.done()
        assert not len(self.intake)


@pytest.fixture
def hall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hall:
    made = Hall(tmp_path)
    monkeypatch.setattr(intake_module, "why_unwanted", lambda state, key: key.agent in made.unwanted and "late: it is")
    return made


def run(test: Awaitable[None]) -> None:
    async def within() -> None:
        await asyncio.wait_for(test, 20)

    asyncio.run(within())


def test_no_more_than_so_many_come_at_a_time_and_all_of_them_come(hall: Hall) -> None:
    reports = [report(number) for number in range(200)]
    run(hall.bring(*reports))
    assert hall.most == hall.at_once
    assert [event.report for event in hall.events if isinstance(event, TrainReported)] == reports, (
        "first come, first served"
    )
    assert not any(each.key in hall.intake for each in reports)


def test_nothing_is_asked_for_before_what_came_with_it_is_put_away(hall: Hall) -> None:
    async def test() -> None:
        hall.put_away.clear()
        for number in range(9):
            hall.intake.take(report(number))
        await asyncio.sleep(0.01)
        assert not hall.fetched
        hall.unwanted.add(report(0).key.agent)
        hall.put_away.set()
        await hall.done()
        assert report(0).update.sha256 not in hall.fetched, "it was late by then"
        assert len(hall.fetched) == 8

    run(test())


def test_a_report_that_comes_again_meanwhile_is_not_taken_twice(hall: Hall) -> None:
    async def test() -> None:
        for number in range(hall.at_once + 1):
            assert hall.intake.take(report(number))
        in_hand, waits = report(0), report(hall.at_once)
        for each in (in_hand, waits):
            assert each.key in hall.intake
            assert not hall.intake.take(each)
        await hall.done()
        assert len(hall.events) == hall.at_once + 1
        assert hall.intake.take(in_hand), "it is the coordinator's to say that it is not wanted"
        await hall.done()

    run(test())
    assert not hall.drops.counts


def test_beyond_a_bound_reports_are_dropped_and_counted(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "MOST_WAITING", 5)

    async def test() -> None:
        assert [hall.intake.take(report(number)) for number in range(7)] == [True] * 5 + [False] * 2
        await hall.done()

    run(test())
    assert hall.drops.counts == {"too many updates wait": 2}
    assert len(hall.events) == 5


def test_only_those_whose_turn_it_is_have_a_task(hall: Hall) -> None:
    async def test() -> None:
        for number in range(200):
            hall.intake.take(report(number))
        assert len(hall.tasks) == hall.at_once
        await hall.done()

    run(test())
    assert len(hall.events) == 200


def test_what_waits_is_as_it_came(hall: Hall) -> None:
    board = BoardInfo("15W", 41.5, ("hot",), events=("undervoltage",))
    energy = PhaseEnergy("train", 2.0, 1.5, None, "missing", "none", "board", flags=("suspended",))
    probed = AffinitySums(3, ((1.0, -0.5), (0.25, 1.0)))
    chunks = (b"\x00" * 32, b"\xff" * 32)
    sent = msgspec.structs.replace(
        report(0),
        update=BlobRef("ab" * 32, 2000, 1024, chunks),
        losses=(TaskLoss("normal", 1.25, 8),),
        affinity=probed,
        skipped=("a/b.png",),
        energy=(energy,),
        loss_weights=(0.5, 2.0),
        boards=(board, board),
    )
    run(hall.bring(*(report(number) for number in range(1, 5)), sent))
    assert hall.events[-1] == TrainReported(sent)


def test_a_thousand_that_wait_take_little(hall: Hall) -> None:
    """They are on disk; a report of an update of 1 MB, eight chunks of which each has its hash, is some 600 bytes."""

    async def test() -> None:
        tracemalloc.start()
        try:
            for number in range(1000):
                update = BlobRef(f"{number:064x}", 2**20, 2**17, (bytes(32),) * 8)
                hall.intake.take(msgspec.structs.replace(report(number), update=update))
            assert tracemalloc.get_traced_memory()[0] < 1000 * 700
        finally:
            tracemalloc.stop()
            await hall.done()

    run(test())
    assert len(hall.events) == 1000


def test_more_hands_are_used_as_soon_as_they_are_there(hall: Hall) -> None:
    async def test() -> None:
        for number in range(20):
            hall.intake.take(report(number))
        hall.helpers, hall.helped = 8, []
        hall.intake.look_again()
        assert len(hall.tasks) == 8
        await hall.done()

    run(test())
    assert len(hall.events) == 20


def test_what_came_of_an_update_is_kept_while_its_agent_is_silent(hall: Hall) -> None:
    first = report(0)
    partial = hall.store.root / "partial" / first.update.sha256
    partial.write_bytes(b"half of it")
    seen: list[bool] = []

    async def fetch(ref: BlobRef, *rest: Any) -> Path:
        seen.append(partial.exists())
        if len(seen) < 3:
            raise BlobStalled(ref.sha256, "nothing came")
        return hall.store.path(ref.sha256)

    hall.intake._exchange = cast(Any, SimpleNamespace(fetch=fetch, caught_up=hall.caught_up))
    run(hall.bring(first))
    assert seen == [True] * 3
    assert not partial.exists(), "nothing needs it any more"


def test_whoever_falls_silent_goes_to_the_end(hall: Hall) -> None:
    first = report(0)
    hall.outcomes[first.update.sha256] = [BlobStalled(first.update.sha256, "nothing came")] * 2
    run(hall.bring(*(report(number) for number in range(9))))
    assert len(hall.events) == 9
    assert cast(TrainReported, hall.events[-1]).report == first
    assert hall.fetched.count(first.update.sha256) == 3
    assert [event for event in hall.holds if isinstance(event, SenderSilent)] == [SenderSilent(first.key)] * 2


def test_whose_report_waits_is_told_at_once_and_who_had_no_turn_is_not_called_silent(hall: Hall) -> None:
    async def test() -> None:
        reports = [report(number) for number in range(9)]
        for each in (*reports, *reports):
            hall.intake.take(each)
        assert hall.holds == [ReportHere(each.key) for each in reports], "before any has its turn, and once"
        await hall.done()
        assert len(hall.holds) == 9

    run(test())


@pytest.mark.parametrize("lack", ["promise", "write"])
def test_what_has_no_room_waits_and_costs_the_agent_nothing(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, lack: str
) -> None:
    one = report(0)
    if lack == "write":
        full = BlobUnavailable(one.update.sha256, "cannot write")
        full.__cause__ = BlobStoreError("cannot write")
        full.__cause__.__cause__ = OSError(28, "No space left on device")
        hall.outcomes[one.update.sha256] = [full] * 4
    else:
        check, lacks = hall.room._check, [4]

        def short(size_bytes: int) -> None:
            if lacks[0]:
                lacks[0] -= 1
                raise NoRoom("7 bytes are free")
            check(size_bytes)

        monkeypatch.setattr(hall.room, "_check", short)
    run(hall.bring(one))
    assert hall.events == [TrainReported(one)]
    assert hall.holds == [ReportHere(one.key)], "it is not the agent that is silent"
    assert not hall.refused


def test_waiting_ends_when_nobody_waits_for_the_update_any_more(hall: Hall, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def never(size_bytes: int) -> None:
        asked.append(size_bytes)
        if len(asked) == 5:
            hall.unwanted.add("pi-0")
        raise NoRoom("7 bytes are free")

    monkeypatch.setattr(hall.room, "_check", never)
    run(hall.bring(report(0)))
    assert hall.events == [TrainReported(report(0))], "which the coordinator drops, with the reason"
    assert len(asked) == 5


@pytest.mark.parametrize("how", ["unavailable", "faults", "too large"])
def test_an_update_that_cannot_be_used_is_refused(hall: Hall, how: str) -> None:
    one = report(0, 2**30 if how == "too large" else 100)
    if how == "unavailable":
        hall.outcomes[one.update.sha256] = [BlobUnavailable(one.update.sha256, "its reference is wrong")]
    hall.faults = ["encoder.w is missing"]
    run(hall.bring(one))
    (failed,) = hall.events
    assert isinstance(failed, OrderFailed)
    words = {"unavailable": "reference is wrong", "faults": "encoder.w is missing", "too large": "at most 1048576"}
    assert words[how] in failed.reason
    assert [each.key for each in hall.refused] == [one.key]
    assert len(hall.fetched) == (how != "too large")


def test_helpers_have_more_hands_and_what_they_do_not_do_is_done_here(hall: Hall) -> None:
    hall.helpers, hall.helped = 8, []
    run(hall.bring(*(report(number) for number in range(20))))
    assert not hall.fetched
    hall.helped = ["it has NaN"]
    run(hall.bring(report(20)))
    assert isinstance(hall.events[-1], OrderFailed)
    hall.helped = None
    run(hall.bring(*(report(number) for number in range(30, 60))))
    assert len(hall.fetched) == 30
    assert hall.most == 8


def own(number: int, sha256: str) -> Exception:
    """What this machine's disk says, as it comes out of the exchange."""
    fault = BlobUnavailable(sha256, "cannot write")
    fault.__cause__ = BlobStoreError("cannot write")
    fault.__cause__.__cause__ = OSError(number, os.strerror(number))
    return fault


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO])
def test_a_fault_of_this_machine_costs_the_agent_nothing(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(intake_module, "LOOK_S", 0.0)
    one = report(0)
    faults = [own(number, one.update.sha256), OSError(number, os.strerror(number)), BlobStoreError("it is gone")]
    hall.outcomes[one.update.sha256] = faults
    run(hall.bring(one))
    assert hall.events == [TrainReported(one)]
    assert not hall.refused
    assert caplog.text.count("for a fault of this machine") == 1


def test_a_fault_of_this_machine_that_stays_ends_the_service(
    hall: Hall, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(intake_module, "LOOK_S", 0.0)
    clock = iter(range(0, 10_000, 7))
    hall.intake._clock = lambda: float(next(clock))
    one = report(0)
    hall.outcomes[one.update.sha256] = [BlobStoreError("read-only file system") for _ in range(100)]
    with pytest.raises(BlobStoreError, match="read-only"):
        run(hall.bring(one))
    assert not hall.events
    assert not hall.refused
    assert "no update could be kept for 60 s" in caplog.text


def test_what_an_update_says_of_itself_is_its_own_fault(hall: Hall) -> None:
    one = report(0)
    wrong = BlobUnavailable(one.update.sha256, "hashes to another")
    wrong.__cause__ = BlobError(["hashes to another"])
    hall.outcomes[one.update.sha256] = [wrong]
    run(hall.bring(one))
    assert [type(event) for event in hall.events] == [OrderFailed]
    assert hall.refused


def test_a_model_that_is_damaged_here_ends_its_job_and_strikes_nobody(hall: Hall) -> None:
    one = report(0)
    hall.outcomes[one.update.sha256] = [EffectError("the model is damaged on this disk")]
    run(hall.bring(one))
    assert hall.events[0] == EffectFailed("job", "merged", "average", "the model is damaged on this disk")
    assert not hall.refused
    assert not any(isinstance(event, OrderFailed) for event in hall.events)


def test_the_standing_subscription_is_free_once_nothing_comes_by_it(hall: Hall) -> None:
    free: list[int] = []
    hall.intake.on_standing_free = lambda: free.append(len(hall.events))

    async def test() -> None:
        for number in range(2):
            hall.intake.take(report(number))
        await asyncio.sleep(0)
        assert hall.intake.by_standing == 2
        hall.helpers = 4  # the first worker comes
        hall.intake.take(report(2))
        await hall.done()

    run(test())
    assert len(hall.events) == 3
    assert hall.intake.by_standing == 0
    assert free, "or nobody would end it"


def test_what_is_wrong_with_an_update_is_held_against_its_agent_and_what_did_not_come_is_not(hall: Hall) -> None:
    hall.outcomes = {
        report(1).update.sha256: [BlobUnavailable("ab", "not whole after 600 s")],
        report(2).update.sha256: [BlobError("its hash is another one")],
    }
    run(hall.bring(report(0), report(1), report(2), report(3, size_bytes=2**21)))
    assert len(hall.refused) == 3
    assert hall.held == [("pi-3", "update"), ("pi-2", "update")] or hall.held == [
        ("pi-2", "update"),
        ("pi-3", "update"),
    ]
    hall.faults = ["encoder.w is missing"]
    run(hall.bring(report(4)))
    assert hall.held[2:] == [("pi-4", "update")]


@pytest.mark.parametrize("helpers", [0, 4])
def test_an_update_far_larger_than_the_others_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helpers: int
) -> None:
    monkeypatch.setattr(intake_module, "why_unwanted", lambda state, key: "")
    hall = Hall(tmp_path, max_norm_ratio=4.0, helpers=helpers)
    if helpers:
        monkeypatch.setattr(hall, "helped", [])
        checked = lambda report, base_sha256, deadline_s: _told(hall, report)  # noqa: E731
        monkeypatch.setattr(hall, "check", checked)
    hall.norms = {hall.store.path(report(number).update.sha256).name: 2.0 for number in range(5)}
    hall.norms[hall.store.path(report(5).update.sha256).name] = 8.5
    hall.norms[hall.store.path(report(6).update.sha256).name] = 7.5
    run(hall.bring(*[report(number) for number in range(5)]))
    run(hall.bring(report(5), report(6)))
    (refusal,) = hall.refused
    assert refusal.reason == "the update cannot be used: its norm is 8.5, at most 4 times the usual 2 is taken"
    assert hall.held == [("pi-5", "norm")]
    assert [type(event) for event in hall.events].count(TrainReported) == 6


async def _told(hall: Hall, report: TrainReport) -> Checked:
    return Checked([], hall.norms[hall.store.path(report.update.sha256).name])

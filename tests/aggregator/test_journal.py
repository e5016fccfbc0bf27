"""The journal: in order, safe before it returns, and clear about what it cannot read."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import msgspec
import pytest
from lab import CAPABILITIES, SPEC, Lab

import aggregator.database as database_module
import aggregator.journal as journal_module
from aggregator.config import AggregatorConfig
from aggregator.coordinator import Coordinator
from aggregator.coordinator import actions as act
from aggregator.coordinator import events as ev
from aggregator.coordinator.fleet import open_order
from aggregator.coordinator.state import Agent, State
from aggregator.journal import MOST_UNHURRIED, SCHEMA_VERSION, Journal, JournalError
from aggregator.service import Service
from models.wire.messages import BudgetInfo, OrderKey


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'journal.db'}"


def database(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"))


def change(url: str, statement: str, *values: object) -> None:
    connection = database(url)
    with connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize("count", [0, 9, 10, 25])
def test_events_come_back_in_order_with_their_times(url: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_PAGE", 10)
    events = [ev.AgentSeen(f"a{index}", "b", CAPABILITIES) for index in range(count)]
    with Journal(url) as journal:
        for index, event in enumerate(events):
            journal.append(event, 1e9 + index / 3)
    with Journal(url) as journal:
        assert len(journal) == count
        assert list(journal.replay()) == [(event, 1e9 + index / 3) for index, event in enumerate(events)]


def test_a_whole_job_is_rebuilt_from_it(url: str) -> None:
    lab = Lab().fleet(4).submit().run()
    with Journal(url) as journal:
        for event, at_s in lab.log.entries:
            journal.append(event, at_s)
    with Journal(url) as journal:
        assert Coordinator(journal).state == lab.core.state


def test_an_event_is_safe_before_anything_is_done_about_it(url: str) -> None:
    with Journal(url) as journal:
        core = Coordinator(journal)
        core.handle(ev.JobSubmitted("job", SPEC), 5.0)
        connection = database(url)
        assert connection.execute("select count(*) from journal_events").fetchone() == (1,)
        connection.close()


def test_sqlite_syncs_every_commit(url: str) -> None:
    with Journal(url) as journal, journal._database.engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"


def test_what_cannot_be_written_does_not_happen(url: str) -> None:
    with Journal(url) as journal:
        core = Coordinator(journal)
        core.handle(ev.AgentSeen("a0", "b", CAPABILITIES), 1.0)
        # As if another had written in spite of the lock.
        change(url, "insert into journal_events values (2, 2.0, ?)", b"of somebody else")
        before = core.state
        with pytest.raises(JournalError, match="no other aggregator uses it"):
            core.handle(ev.JobSubmitted("job", SPEC), 3.0)
        assert core.state is before


def test_events_without_effect_are_not_kept(url: str) -> None:
    with Journal(url) as journal:
        core = Coordinator(journal)
        core.handle(ev.AgentSeen("a0", "b", CAPABILITIES), 1.0)
        core.handle(ev.Tick(), 2.0)
        core.handle(ev.AgentSeen("a0", "b", CAPABILITIES), 3.0)
        core.handle(ev.AgentLost("a7", "never met"), 4.0)
        assert len(journal) == 1


def test_a_second_writer_is_refused_while_the_first_one_lives(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "_LOCK_WAIT_S", 0.0)
    with Journal(url), pytest.raises(JournalError, match="another aggregator writes its journal to the file"):
        Journal(url)
    with Journal(url) as journal:
        journal.append(ev.AgentLost("a0", "?"), 2.0)


def test_a_journal_of_an_older_version_is_read_and_is_this_version_s_from_then_on(url: str) -> None:
    with Journal(url) as journal:
        journal.append(ev.JobCancelled("x"), 1.0)
    change(url, "update journal_about set value = 1")
    change(url, "drop table journal_states")
    for _ in range(2):
        with Journal(url) as journal:
            assert list(journal.replay()) == [(ev.JobCancelled("x"), 1.0)]
    assert database(url).execute("select value from journal_about").fetchall() == [(SCHEMA_VERSION,)]


def here(number: int) -> ev.ReportHere:
    return ev.ReportHere(OrderKey("job", "merged", 0, f"a{number}", 0, "train"))


def on_disk(url: str) -> list[int]:
    return [seq for (seq,) in database(url).execute("select seq from journal_events order by seq")]


def test_what_loses_nothing_goes_to_disk_with_the_next_event(url: str) -> None:
    with Journal(url) as journal:
        journal.append(ev.JobCancelled("x"), 1.0)
        journal.append(here(1), 2.0)
        journal.append(here(2), 3.0)
        assert on_disk(url) == [1]
        assert (len(journal), journal.since_state) == (3, 3)
        journal.append(ev.JobCancelled("y"), 4.0)
        assert on_disk(url) == [1, 2, 3, 4]
        journal.append(here(3), 5.0)
        journal.flush()
        assert on_disk(url) == [1, 2, 3, 4, 5]
        for number in range(MOST_UNHURRIED + 1):
            journal.append(here(number), 6.0)
        assert len(on_disk(url)) == 5 + MOST_UNHURRIED + 1, "as many as this do not wait"
        journal.append(here(4), 7.0)
    with Journal(url) as journal:
        found = [event for event, _ in journal.replay()]
    assert found[:5] == [ev.JobCancelled("x"), here(1), here(2), ev.JobCancelled("y"), here(3)]
    assert found[5:] == [here(number) for number in (*range(MOST_UNHURRIED + 1), 4)]


def test_what_an_event_asks_for_is_begun_after_it_is_safe(url: str, tmp_path: Path) -> None:
    """Also where the event is one that may wait: a report can be the first to come after a round's deadline."""
    answered: list[OrderKey] = []

    def first_alone(lab: Lab, action: act.SendOrder) -> ev.AnyEvent | None:
        if answered:
            return None
        answered.append(action.message.key)
        return Lab.answer(lab, action)

    lab = Lab().fleet(2)
    lab.answers = {"a0": first_alone, "a1": first_alone}
    lab.submit(quorum=0.5).run()
    (order,) = (each for each in lab.sent if each.key not in answered)
    assert lab.happen(ev.ReportHere(order.key), after_s=SPEC.deadline_s + 1.0), "else this shows nothing"
    config = AggregatorConfig(broker="mqtt://127.0.0.1:9", state_dir=str(tmp_path / "state"))
    entries = lab.log.entries

    async def test() -> None:
        with Journal(url) as journal:
            for event, at_s in entries[:-1]:
                journal.append(event, at_s)
        with Journal(url) as journal:
            service = Service(config, journal, clock=lambda: entries[-1][1])
            begun: list[int] = []
            service.act = lambda action: begun.append(len(on_disk(url)))  # type: ignore[method-assign]
            service.apply(entries[-1][0])
            assert begun
            assert set(begun) == {len(entries)}

    asyncio.run(test())


def test_a_state_takes_the_place_of_what_was_not_written_as_well(url: str) -> None:
    with Journal(url) as journal:
        journal.append(here(1), 1.0)
        assert journal.keep(State(), 1.0)
        journal.append(here(2), 2.0)
    with Journal(url) as journal:
        assert [event for event, _ in journal.replay()] == [here(2)]
        assert len(journal) == 2


def test_a_crash_that_loses_them_loses_no_work(url: str) -> None:
    """Wherever it comes: the job that goes on from what is on disk, with the reports said again, is the same."""
    whole = Lab().fleet(3).submit().run()
    entries: list[tuple[ev.AnyEvent, float]] = []
    for event, at_s in whole.log.entries:
        if isinstance(event, ev.TrainReported):
            entries.append((ev.ReportHere(event.report.key), at_s))
        entries.append((event, at_s))
    lost = 0
    for cut, (event, _) in enumerate(entries):
        if isinstance(event, ev.ReportHere):
            lost += 1
            Path(url.removeprefix("sqlite:///")).unlink(missing_ok=True)
            journal = Journal(url)
            core = Coordinator(journal)
            for before, then_s in entries[: cut + 1]:
                core.handle(before, then_s)
            order = open_order(core.state, event.key)
            assert order is not None
            assert order.report_here
            journal.flush = lambda: None  # type: ignore[method-assign]
            journal.close()  # as a killed process does
            with Journal(url) as again:
                resumed = Coordinator(again)
                order = open_order(resumed.state, event.key)
                assert order is not None
                assert not order.report_here
                for after, then_s in entries[cut + 1 :]:
                    resumed.handle(after, then_s)
                assert resumed.state == whole.core.state
    assert lost > 10


def test_a_state_takes_the_place_of_all_events_before_it(url: str) -> None:
    lab = Lab().fleet(4).submit().run()
    half = len(lab.log.entries) // 2
    with Journal(url) as journal:
        first = Coordinator(journal, journal.state())
        for event, at_s in lab.log.entries[:half]:
            first.handle(event, at_s)
        assert journal.since_state == half
        assert journal.keep(first.state, first.last_s)
        assert (journal.since_state, len(journal)) == (0, half)
    with Journal(url) as journal:
        second = Coordinator(journal, journal.state())
        assert (second.state, second.last_s) == (first.state, first.last_s)
        for event, at_s in lab.log.entries[half:]:
            second.handle(event, at_s)
    with Journal(url) as journal:
        third = Coordinator(journal, journal.state())
        assert third.state == second.state == lab.core.state
        assert journal.keep(third.state, third.last_s)
    connection = database(url)
    assert connection.execute("select count(*) from journal_events").fetchone() == (0,)
    assert connection.execute("select seq from journal_states").fetchall() == [(len(lab.log.entries),)]


def test_a_state_that_would_not_come_back_the_same_is_not_kept(url: str) -> None:
    broken = State(serial="seven")  # type: ignore[arg-type]
    with Journal(url) as journal:
        journal.append(ev.JobCancelled("x"), 1.0)
        assert not journal.keep(broken, 1.0)
        assert list(journal.replay()) == [(ev.JobCancelled("x"), 1.0)]


def test_a_state_with_nan_is_told_and_not_tried_with_every_event(url: str, caplog: pytest.LogCaptureFixture) -> None:
    spent = BudgetInfo(spent_j=float("nan"))
    agent = Agent("pi-1", "b", True, msgspec.structs.replace(CAPABILITIES, budget=spent))
    with Journal(url) as journal:
        for number in range(3):
            journal.append(ev.JobCancelled(f"x{number}"), 1.0)
        assert journal.since_state == 3
        assert not journal.keep(State(agents={"pi-1": agent}), 1.0)
        assert journal.since_state == 0, "or each event after it would cost as much as the fleet is large"
        journal.append(ev.JobCancelled("x3"), 1.0)
        assert journal.since_state == 1
        assert len(list(journal.replay())) == 4
        assert journal.keep(State(), 1.0)
    assert "agents.pi-1.capabilities.budget.spent_j is nan" in caplog.text


def test_a_damaged_state_is_named(url: str) -> None:
    with Journal(url) as journal:
        journal.append(ev.JobCancelled("x"), 1.0)
        assert journal.keep(State(), 1.0)
    change(url, "update journal_states set body = ?", b"\xc1")
    with Journal(url) as journal, pytest.raises(JournalError, match="state after event 1 is damaged"):
        journal.state()


def test_a_journal_of_a_newer_version_is_left_alone(url: str) -> None:
    with Journal(url):
        pass
    change(url, "update journal_about set value = ?", SCHEMA_VERSION + 1)
    change(url, "drop table journal_states")
    said = f"schema version {SCHEMA_VERSION + 1}, this program knows {SCHEMA_VERSION}"
    with pytest.raises(JournalError, match=said):
        Journal(url)
    tables = {name for (name,) in database(url).execute("select name from sqlite_master where type = 'table'")}
    assert tables == {"journal_about", "journal_events"}, "nothing is added to what a newer program has made"


@pytest.mark.parametrize("damage", [b"\xc1", b"", b"\x81\xa5event\xa4Nope"])
def test_a_damaged_event_is_named(url: str, damage: bytes) -> None:
    with Journal(url) as journal:
        journal.append(ev.JobCancelled("x"), 1.0)
        journal.append(ev.JobCancelled("y"), 2.0)
    change(url, "update journal_events set body = ? where seq = 2", damage)
    with Journal(url) as journal, pytest.raises(JournalError, match="event 2 of the journal is damaged"):
        list(journal.replay())


def test_a_gap_is_named(url: str) -> None:
    with Journal(url) as journal:
        for index in range(4):
            journal.append(ev.JobCancelled(f"j{index}"), 1.0)
    change(url, "delete from journal_events where seq in (2, 3)")
    with Journal(url) as journal, pytest.raises(JournalError, match="events 2 to 3 are missing"):
        list(journal.replay())


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all/journal.db", "nonsense", "mysql+nodriver://user:secret@host/db"]
)
def test_a_store_that_cannot_be_opened_says_what_to_do(url: str) -> None:
    with pytest.raises(JournalError, match="check the URL, the folder and its permissions") as caught:
        Journal(url)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database(url: str) -> None:
    Path(url.removeprefix("sqlite:///")).write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalError):
        Journal(url)

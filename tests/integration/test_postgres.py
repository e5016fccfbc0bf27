"""The journal on a real PostgreSQL: what it keeps, whom it refuses, and what it outlives."""

from __future__ import annotations

import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fleet import Fleet, Watch, write_building
from servers import Postgres, lacking_postgres

import aggregator.database as database_module
import aggregator.journal as journal_module
from aggregator.coordinator import Coordinator
from aggregator.coordinator import events as ev
from aggregator.database import Database, InUse, Row
from aggregator.journal import SCHEMA_VERSION, Journal, JournalError
from models.wire.job import JobSpec, TrainSettings
from models.wire.messages import Capabilities
from tools.broker import EmbeddedBroker

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lacking_postgres()), reason=lacking_postgres() or "it is here")]
CAPABILITIES = Capabilities(("depth_zbuffer",), 10, 0, "none", "missing", 1, 2**30)
#: One agent, so that nothing but the seed decides about the bits.
SPEC = JobSpec(
    name="stored",
    tasks=("depth_zbuffer",),
    scheme="all-in-one",
    size=32,
    seed=3,
    rounds=2,
    merge_rounds=1,
    clients_per_round=1,
    eval_every=10,
    deadline_s=60.0,
    train=TrainSettings(epochs=5, batch_size=4, lr=0.02),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture
def url(server: Postgres, request: pytest.FixtureRequest) -> str:
    """A journal of its own for each test: a schema of the one database."""
    schema = f"s{zlib.crc32(request.node.name.encode())}"
    engine = sa.create_engine(server.url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    engine.dispose()
    return f"{server.url}&options=-csearch_path%3D{schema}"


def events(count: int) -> list[tuple[ev.AnyEvent, float]]:
    return [(ev.AgentSeen(f"a{index}", "b", CAPABILITIES), 1e9 + index / 3) for index in range(count)]


def test_events_and_states_come_back_as_they_were(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_PAGE", 10)
    given = events(25)
    with Journal(url) as journal:
        for event, at_s in given:
            journal.append(event, at_s)
    with Journal(url) as journal:
        assert len(journal) == 25
        assert list(journal.replay()) == given
        first = Coordinator(journal, journal.state())
        assert journal.keep(first.state, first.last_s)
        journal.append(ev.AgentLost("a3", "gone"), 2e9)
    with Journal(url) as journal:
        assert (len(journal), journal.since_state) == (26, 1)
        assert journal.state() == (first.state, first.last_s)
        assert list(journal.replay()) == [(ev.AgentLost("a3", "gone"), 2e9)]


def test_a_second_writer_is_refused_until_the_first_one_is_killed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"from aggregator.journal import Journal; j = Journal({url!r}); print('here', flush=True); input()"
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == b"here\n"
        with monkeypatch.context() as patch:
            patch.setattr(database_module, "_LOCK_WAIT_S", 0.0)
            with pytest.raises(InUse, match="another aggregator writes its journal to the database: stop that one"):
                Journal(url)
        first.send_signal(signal.SIGKILL)
        with Journal(url) as journal:
            journal.append(ev.JobCancelled("x"), 1.0)
    finally:
        first.kill()
        first.communicate()


def test_two_schemas_of_one_database_are_two_journals(server: Postgres, url: str) -> None:
    with Journal(url) as one, Journal(server.url) as two:
        one.append(ev.JobCancelled("x"), 1.0)
        assert (len(one), len(two)) == (1, 0)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_a_database_that_is_restarted_is_waited_for_and_nothing_is_lost_or_doubled(
    server: Postgres, url: str, mode: str
) -> None:
    given = events(40)
    with Journal(url) as journal:
        for event, at_s in given[:20]:
            journal.append(event, at_s)
        server.stop(mode)
        with ThreadPoolExecutor(1) as one:
            writing = one.submit(lambda: [journal.append(event, at_s) for event, at_s in given[20:]])
            server.start()
            writing.result()
    with Journal(url) as journal:
        assert list(journal.replay()) == given


def test_a_restart_at_a_snapshot_or_while_it_is_read_is_waited_for(server: Postgres, url: str) -> None:
    given = events(20)
    with Journal(url) as journal, ThreadPoolExecutor(1) as one:
        core = Coordinator(journal)
        for event, at_s in given:
            core.handle(event, at_s)
        for call in (lambda: journal.keep(core.state, core.last_s), journal.state, lambda: list(journal.replay())):
            server.stop("fast")
            answer = one.submit(call)
            server.start()
            assert answer.result() in (True, (core.state, core.last_s), [])
        assert journal.since_state == 0


def test_a_database_that_stays_away_ends_in_a_fault_that_names_it(server: Postgres, url: str) -> None:
    database = Database(url, SCHEMA_VERSION, retry_s=0.0)
    server.stop()
    try:
        with pytest.raises(JournalError, match=r"cannot write to the journal.*nothing was done about the event"):
            database.add([Row(1, 1.0, b"x")])
        with pytest.raises(JournalError, match="cannot open the journal at postgresql"):
            Journal(url)
    finally:
        server.start()
        database.close()
    with Journal(url) as journal:
        assert len(journal) == 0


@pytest.mark.long
def test_an_aggregator_killed_and_a_database_restarted_in_the_middle_of_a_round_change_no_bit(
    url: str, server: Postgres, tmp_path: Path
) -> None:
    rooms = tmp_path / "rooms"
    for seed, building in enumerate(("first", "held-out")):
        write_building(rooms, building, points=12, seed=seed)

    async def undisturbed(watch: Watch) -> dict[str, Any]:
        await watch.online("aggregator", "agent-1")
        return await watch.ended(await watch.client.submit(SPEC))

    async def disturbed(watch: Watch) -> dict[str, Any]:
        await watch.online("aggregator", "agent-1")
        job = await watch.client.submit(SPEC)
        await watch.training(job, 0)
        server.stop()
        server.start()
        await watch.training(job, 1)
        then = watch.now()
        fleet.kill("aggregator")
        await watch.offline("aggregator", then)
        fleet.restart("aggregator")
        await watch.online("aggregator", since=then)
        return await watch.ended(job)

    with EmbeddedBroker(directory=tmp_path / "broker") as broker, Fleet(tmp_path, broker) as fleet:
        fleet.start_aggregator(store=url)
        fleet.start_agent("agent-1", rooms, ("first",), ("held-out",))
        records = [fleet.run(undisturbed), fleet.run(disturbed)]
        log = fleet.log("aggregator")
    assert [record["state"] for record in records] == ["deployed", "deployed"]
    assert not (fleet.state("aggregator") / "journal.sqlite").exists()
    assert f"resuming {records[1]['job']}" in log
    assert "Traceback" not in log
    models = [split["model_sha256"] for record in records for split in record["splits"]]
    assert models[0] == models[1]
    assert not any(done["dropped"] for record in records for done in record["splits"][0]["rounds"])

"""The aggregator over a real broker, with a stand-in for its torch child, and the test as agents and clients."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from lab import CAPABILITIES, SPEC

from aggregator import effects, service
from aggregator.config import AggregatorConfig
from aggregator.coordinator import events
from aggregator.journal import Journal, JournalError
from aggregator.service import Service
from models.config import ConfigError, load_toml
from models.link.address import Backoff
from models.link.mqtt import MqttLink
from models.link.transfer import BlobExchange
from models.wire.blobstore import BlobStore
from models.wire.chunks import make_ref
from models.wire.codec import SIZE_LIMITS, decode, encode
from models.wire.messages import (
    BlobRef,
    CancelOrder,
    JobAccepted,
    JobStatus,
    Message,
    OrderFailed,
    Presence,
    Refused,
    SubmitJob,
    TaskLoss,
    TrainOrder,
    TrainReport,
)
from models.wire.tensors import encode_tensors
from models.wire.topics import Topics
from tools.broker import EmbeddedBroker

pytestmark = pytest.mark.slow
M = TypeVar("M", bound=Message)
_FLEETS = itertools.count()
MODEL = {"encoder.w": np.ones(4, np.float32)}
ONE = msgspec.structs.replace(SPEC, scheme="all-in-one", clients_per_round=1, rounds=2, merge_rounds=1)


async def fake_child(what: str, request: Mapping[str, object], folder: Path) -> None:
    """New weights without torch."""
    assert what == "init"
    (folder / "state.blob").write_bytes(encode_tensors(MODEL))
    (folder / "parts.json").write_text("{}")


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effects, "_child", fake_child)


class Field:
    """The other side of the wire: agent `pi`, a client, and whoever watches."""

    def __init__(self, url: str, fleet: str, folder: Path, name: str = "field") -> None:
        self.topics, self.folder = Topics(fleet), folder
        self.link = MqttLink(url, f"{name}-{fleet}", session_expiry_s=0, backoff=Backoff(0.02, 0.1))
        self.store = BlobStore(folder / name)
        self.exchange = BlobExchange(self.link, self.store)
        self.heard: list[Message] = []
        self._arrived = asyncio.Event()
        self._taken = 0

    async def __aenter__(self) -> Field:
        topics = self.topics
        await self.link.subscribe(topics.orders("pi"), topics.replies("me"), topics.job_status_filter())
        await self.link.__aenter__()
        await self.link.wait_connected(30)
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self.exchange.close()
        await self.link.close()

    async def _read(self) -> None:
        async for received in self.link.messages():
            address = self.topics.parse(received.topic)
            message = decode(received.payload, address.kind)
            if not self.exchange.handle(address, message):
                self.heard.append(message)
                self._arrived.set()

    async def next(self, kind: type[M]) -> M:
        """The next message of this kind that was not taken yet; others before it are passed over."""
        while True:
            while self._taken < len(self.heard):
                self._taken += 1
                message = self.heard[self._taken - 1]
                if isinstance(message, kind):
                    return message
            self._arrived.clear()
            await asyncio.wait_for(self._arrived.wait(), 30)

    async def present(self, boot: str = "first", online: bool = True, bare: bool = False) -> None:
        presence = Presence("pi", online, boot, "0", CAPABILITIES if online and not bare else None)
        await self.link.publish(self.topics.presence("pi"), encode(presence))

    async def submit(self, **changes: Any) -> str:
        await self.link.publish(
            self.topics.requests("me"),
            encode(SubmitJob(f"r{len(self.heard)}", msgspec.structs.replace(ONE, **changes))),
        )
        return (await self.next(JobAccepted)).job

    async def report(self, order: TrainOrder, update: bytes, loss: float = 1.0) -> TrainReport:
        ref = make_ref(update)
        self.store.put_bytes(update)
        self.exchange.offer(ref, self.topics.upload("pi", ref.sha256))
        losses = tuple(TaskLoss(task, loss, 10) for task in order.tasks)
        report = TrainReport(order.key, ref, 10, losses, None, (), 0, (), 0, 0, 1.0)
        await self.link.publish(self.topics.reports("pi"), encode(report))
        return report


def settings(url: str, folder: Path, **changes: Any) -> AggregatorConfig:
    config = AggregatorConfig(
        broker=url, state_dir=str(folder / "state"), fleet=f"service-{next(_FLEETS)}", tick_s=0.05
    )
    return msgspec.structs.replace(config, **changes)


def service_test(url: str, folder: Path, test: Callable[[Service, Field], Awaitable[None]]) -> None:
    """`test` beside a running service, which must neither fail nor leave tasks that did."""

    async def all_of_it() -> None:
        config = settings(url, folder)
        stop = asyncio.Event()
        with Journal(f"sqlite:///{folder / 'journal.sqlite'}") as journal:
            running = Service(config, journal)
            serving = asyncio.create_task(running.run(stop))
            async with Field(url, config.fleet, folder) as field:
                try:
                    await running._link.wait_connected(30)  # what is said before goes to nobody
                    await test(running, field)
                    assert not stop.is_set(), "a loop of the service failed"
                finally:
                    stop.set()
                    await asyncio.wait_for(serving, 40)

    asyncio.run(asyncio.wait_for(all_of_it(), 90))


async def eventually(condition: Callable[[], bool]) -> None:
    """Lets the loop work until `condition` holds; the test's own time limit ends it otherwise."""
    loop = asyncio.get_running_loop()
    while not condition():
        tick = loop.create_future()
        loop.call_later(0.01, tick.set_result, None)
        await tick


ZEROS = encode_tensors({"encoder.w": np.zeros(4, np.float32)})


def test_an_agent_that_is_back_at_its_order_gets_it_again(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present()
        await field.submit()
        order = await field.next(TrainOrder)
        await field.present()  # as after a broker's restart, with the same boot
        assert await field.next(TrainOrder) == order
        await field.report(order, ZEROS)
        second = await field.next(TrainOrder)
        assert second.key.round == 1
        await field.present()
        assert (await field.next(TrainOrder)).key == second.key, "an order that was answered does not come again"

    service_test(broker_url, tmp_path, test)


def test_an_agent_whose_update_is_being_looked_at_is_not_asked_for_it_again(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        checking, go_on = asyncio.Event(), asyncio.Event()
        check = running._effects.check_update

        async def slow_check(base: BlobRef, update: Path, masked: bool = False) -> effects.Checked:
            checking.set()
            await go_on.wait()
            return await check(base, update, masked)

        running._effects.check_update = slow_check  # type: ignore[method-assign]
        await field.present()
        await field.submit()
        first = await field.next(TrainOrder)
        await field.report(first, ZEROS)
        await checking.wait()
        await field.present()
        await field.link.publish(field.topics.reports("other"), encode(OrderFailed(first.key, "made up")))
        await eventually(lambda: running.drops.counts == {"foreign sender": 1})  # so the presence before it was heard
        go_on.set()
        assert (await field.next(TrainOrder)).key.round == 1

    service_test(broker_url, tmp_path, test)


def test_an_agent_that_was_started_again_lost_its_order(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present()
        await field.submit()
        first = await field.next(TrainOrder)
        await field.present("second")
        again = await field.next(TrainOrder)
        assert (again.key.round, again.key.attempt) == (first.key.round, first.key.attempt + 1)
        assert again.seed == first.seed, "the same agent trains the same batches in a further attempt"

    service_test(broker_url, tmp_path, test)


def test_a_last_will_of_an_earlier_life_says_nothing_about_this_one(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present("second")
        await eventually(lambda: "pi" in running.state.agents)
        await field.present("first", online=False)
        await field.submit()
        await field.next(TrainOrder)
        assert running.state.agents["pi"].online
        await field.present("second", online=False)
        await eventually(lambda: not running.state.agents["pi"].online)
        assert (await field.next(CancelOrder)).key.agent == "pi"

    service_test(broker_url, tmp_path, test)


def test_a_presence_that_says_nothing_of_the_device_is_dropped(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present(bare=True)
        await eventually(lambda: running.drops.counts == {"presence without capabilities": 1})
        assert not running.state.agents

    service_test(broker_url, tmp_path, test)


def test_a_deadline_without_end_is_no_expiry_without_end(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present()
        await field.submit(deadline_s=float("inf"))
        assert (await field.next(TrainOrder)).ttl_s == float("inf")

    service_test(broker_url, tmp_path, test)


def test_a_status_too_large_for_the_wire_does_not_end_the_aggregator(
    broker_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(running: Service, field: Field) -> None:
        # The longest request there is; the status says all of it and more.
        bare = len(encode(SubmitJob("r0", msgspec.structs.replace(ONE, network=""))))
        await field.submit(network="n" * (SIZE_LIMITS["requests"] - bare - 2))
        await eventually(lambda: any("was not published: " in message for message in caplog.messages))
        job = await field.submit()
        while (await field.next(JobStatus)).job != job:
            pass

    service_test(broker_url, tmp_path, test)


def test_a_job_waits_until_somebody_can_do_it_and_says_so(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.submit()
        while not (status := await field.next(JobStatus)).reason:
            pass
        assert "1 agents with training data for it are needed, 0 online" in status.reason
        await field.present()
        await field.next(TrainOrder)

    service_test(broker_url, tmp_path, test)


def test_an_update_that_cannot_be_used_is_refused_and_thrown_away(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present()
        job = await field.submit()
        order = await field.next(TrainOrder)
        bad = encode_tensors({"encoder.w": np.full(4, np.nan, np.float32)})
        report = await field.report(order, bad)
        refused = await field.next(Refused)
        assert refused.key == order.key
        assert "encoder.w has 4 of 4 values that are NaN or infinite" in refused.reason
        again = await field.next(TrainOrder)
        assert again.key.attempt == 1
        await eventually(lambda: not running._store.has(report.update.sha256))
        # Weights are right this time, and what is said of them cannot be.
        report = await field.report(again, ZEROS, loss=float("nan"))
        refused = await field.next(Refused)
        assert "is not finite" in refused.reason
        assert (await field.next(TrainOrder)).key.attempt == 2
        assert running.state.jobs[job].splits["merged"].history == ()

    service_test(broker_url, tmp_path, test)


def test_an_update_too_large_is_refused_before_it_is_fetched(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present()
        await field.submit()
        order = await field.next(TrainOrder)
        ref = msgspec.structs.replace(make_ref(ZEROS), size_bytes=2**40)
        losses = tuple(TaskLoss(task, 1.0, 10) for task in order.tasks)
        report = TrainReport(order.key, ref, 10, losses, None, (), 0, (), 0, 0, 1.0)
        await field.link.publish(field.topics.reports("pi"), encode(report))
        refused = await field.next(Refused)
        assert "1099511627776 bytes, at most 268435456 are taken" in refused.reason

    service_test(broker_url, tmp_path, test)


def test_a_report_that_comes_twice_counts_once(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present()
        job = await field.submit()
        order = await field.next(TrainOrder)
        report = await field.report(order, ZEROS)
        for _ in range(3):
            await field.link.publish(field.topics.reports("pi"), encode(report))
        assert (await field.next(TrainOrder)).key.round == 1
        await field.link.publish(field.topics.reports("pi"), encode(report))
        await eventually(lambda: running.drops.counts == {"duplicate": 1})
        (done,) = running.state.jobs[job].splits["merged"].history
        assert done.samples == 10

    service_test(broker_url, tmp_path, test)


def test_a_report_in_anothers_name_is_dropped(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        await field.present()
        await field.submit()
        order = await field.next(TrainOrder)
        await field.link.publish(field.topics.reports("other"), encode(OrderFailed(order.key, "made up")))
        await eventually(lambda: running.drops.counts == {"foreign sender": 1})
        assert running.state.agents["pi"].busy == order.key

    service_test(broker_url, tmp_path, test)


async def failed_run(url: str, folder: Path, breaks: Callable[[Service, Journal], None]) -> tuple[bool, str]:
    """A job's first round on a service that `breaks` spoils; whether it said that it failed, and the job's identifier.

    Its journal is left as a killed process would leave it.
    """
    config = settings(url, folder, fleet=f"broken-{breaks.__name__}")
    stop = asyncio.Event()
    with Journal(f"sqlite:///{folder / 'journal.sqlite'}") as journal:
        running = Service(config, journal)
        serving = asyncio.create_task(running.run(stop))
        async with Field(url, config.fleet, folder) as field:
            await running._link.wait_connected(30)
            await field.present()
            job = await field.submit()
            order = await field.next(TrainOrder)
            breaks(running, journal)
            await field.report(order, ZEROS)
            await asyncio.wait_for(stop.wait(), 30)
            await asyncio.wait_for(serving, 40)
        return running.failed, job


def _no_more_room(running: Service, journal: Journal) -> None:
    append = journal.append

    def full(event: events.AnyEvent, at_s: float) -> None:
        if isinstance(event, events.ModelReady):
            raise JournalError("cannot write to the journal: database or disk is full")
        append(event, at_s)

    journal.append = full  # type: ignore[method-assign]


def _no_more_updates(running: Service, journal: Journal) -> None:
    append = journal.append

    def locked(event: events.AnyEvent, at_s: float) -> None:
        if isinstance(event, events.TrainReported):
            raise JournalError("cannot write to the journal: database is locked")
        append(event, at_s)

    journal.append = locked  # type: ignore[method-assign]


def _no_more_memory(running: Service, journal: Journal) -> None:
    async def average(action: object) -> None:
        raise MemoryError("Unable to allocate 200 MiB")

    running._effects.average = average  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize("breaks", [_no_more_room, _no_more_updates, _no_more_memory])
def test_work_that_fails_unexpectedly_ends_the_service_and_the_next_one_goes_on(
    broker_url: str, tmp_path: Path, breaks: Callable[[Service, Journal], None]
) -> None:
    async def test() -> None:
        failed, job = await failed_run(broker_url, tmp_path, breaks)
        assert failed
        stop = asyncio.Event()
        with Journal(f"sqlite:///{tmp_path / 'journal.sqlite'}") as journal:
            again = Service(settings(broker_url, tmp_path, fleet=f"broken-{breaks.__name__}"), journal)
            async with Field(broker_url, again._config.fleet, tmp_path) as field:
                serving = asyncio.create_task(again.run(stop))
                try:
                    order = await field.next(TrainOrder)
                    if order.key.round == 0:  # the update was lost with the process: the agent is asked for it again
                        await field.report(order, ZEROS)
                        order = await field.next(TrainOrder)
                    assert (order.key.job, order.key.round) == (job, 1)
                finally:
                    stop.set()
                    await asyncio.wait_for(serving, 40)
        assert not again.failed

    asyncio.run(asyncio.wait_for(test(), 90))


def test_orders_wait_for_a_broker_that_is_away_and_it_is_told_everything_again(tmp_path: Path) -> None:
    with EmbeddedBroker(directory=tmp_path / "broker") as broker:

        async def test(running: Service, field: Field) -> None:
            await field.present()
            over = await field.submit()
            running.apply(events.JobCancelled(over))
            while (await field.next(JobStatus)).state != "cancelled":
                pass
            await field.submit()
            order = await field.next(TrainOrder)
            while order.key.job == over:
                order = await field.next(TrainOrder)
            await asyncio.to_thread(broker.stop)
            await eventually(lambda: not running._link.connected)
            running.apply(events.OrderFailed(order.key, "as if it had been lost"))  # so that the next order is due now
            await asyncio.to_thread(broker.start)
            # As an agent does on every connection: this broker has forgotten what it listened to, and whoever is back
            # later than the order was sent gets it again.
            await field.present()
            assert (await field.next(TrainOrder)).key == msgspec.structs.replace(order.key, attempt=1)
            async with Field(broker.url, running._config.fleet, tmp_path, name="late") as late:
                while (status := await late.next(JobStatus)).job != over:
                    pass
                assert status.state == "cancelled", "of an ended job nothing changes any more, and yet it is said again"

        service_test(broker.url, tmp_path, test)


# --- what keeps an aggregator from running --------------------------------------------------------------------------


def test_the_shipped_example_is_valid() -> None:
    example = load_toml(Path(__file__).parents[2] / "systemd" / "aggregator.toml", AggregatorConfig)
    assert example.store == ""
    assert example == AggregatorConfig(broker=example.broker, state_dir=example.state_dir)


@pytest.mark.parametrize("name, most", [("max_update_bytes", 268435456), ("max_state_bytes", 536870912)])
def test_limits_beyond_what_the_wire_and_the_agents_take_are_refused(tmp_path: Path, name: str, most: int) -> None:
    file = tmp_path / "aggregator.toml"
    file.write_text(f'broker = "mqtt://x"\nstate_dir = "y"\n{name} = {most}\n')
    assert getattr(load_toml(file, AggregatorConfig), name) == most
    file.write_text(f'broker = "mqtt://x"\nstate_dir = "y"\n{name} = {most + 1}\n')
    with pytest.raises(ConfigError, match=f"<= {most}"):
        load_toml(file, AggregatorConfig)


@pytest.mark.parametrize(
    "changes, said, code",
    [
        ({"broker": "http://broker"}, "is no broker address", 1),
        ({"store": "sqlite:////nowhere/at/all/journal.sqlite"}, "cannot open the journal", 1),
        ({"store": "no-such-database://x"}, "cannot open the journal", 1),
        ({"state_dir": "/proc/nowhere"}, "No such file or directory", 1),
    ],
)
def test_what_cannot_be_used_is_said_and_ends_the_aggregator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, str], said: str, code: int
) -> None:
    assert service.main(settings("mqtt://127.0.0.1:9", tmp_path, **changes)) == code
    assert caplog.messages[-1].startswith("cannot run: ")
    assert said in caplog.messages[-1]


def test_a_second_aggregator_on_one_state_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings("mqtt://127.0.0.1:9", tmp_path)
    inner: list[int] = []

    async def run(self: Service, stop: asyncio.Event) -> None:
        inner.append(await asyncio.to_thread(service.main, config))
        signal.raise_signal(signal.SIGTERM)
        await asyncio.wait_for(stop.wait(), 10)

    monkeypatch.setattr(Service, "run", run)
    with caplog.at_level(logging.ERROR):
        assert service.main(config) == 0, "and SIGTERM is a good end"
    assert inner == [1]
    assert caplog.messages[-1] == f"cannot run: another aggregator uses {config.state_dir}"

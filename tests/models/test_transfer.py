"""Blobs between holders and receivers over the fake broker, with everything that may go wrong on the way."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.link.arriving import Arriving
from models.link.base import Drops, LinkError
from models.link.incoming import incoming
from models.link.memory import MemoryBroker, MemoryLink
from models.link.transfer import BlobExchange, BlobStalled, BlobUnavailable, Route, Traffic, TransferSettings
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import chunk_span, from_ranges, make_ref
from models.wire.codec import decode, encode
from models.wire.messages import BlobAck, BlobRef, BlobWant, CancelOrder, Chunk, OrderKey
from models.wire.topics import Topics, parse

TOPICS = Topics("lab")
DATA = random.Random(7).randbytes(20_500)
REF = make_ref(DATA, 1024)
#: For tests in which nothing is lost: on a busy machine, too, nobody asks twice.
PATIENT = TransferSettings(gather_s=0.01, quiet_s=30, max_quiet_s=30, window=4)
#: For tests in which something must be asked again.
QUICK = TransferSettings(gather_s=0.01, quiet_s=0.02, max_quiet_s=0.04, window=4)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def piece(index: int) -> bytes:
    offset, length = chunk_span(REF, index)
    return DATA[offset : offset + length]


class Wire(MemoryBroker):
    """A fake broker that keeps what was published."""

    def __init__(self, tamper: Callable[[str, bytes], bytes | None] | None = None) -> None:
        super().__init__(tamper)
        self.published: list[BlobWant | BlobAck | Chunk] = []
        self.chunk_published = asyncio.Event()
        self.want_published = asyncio.Event()

    def route(self, topic: str, payload: bytes, retain: bool, expiry_s: float | None) -> None:
        message = decode(payload, parse(topic).kind)
        assert isinstance(message, BlobWant | BlobAck | Chunk)
        assert expiry_s is not None
        self.published.append(message)
        super().route(topic, payload, retain, expiry_s)
        if isinstance(message, Chunk):
            self.chunk_published.set()
        elif isinstance(message, BlobWant):
            self.want_published.set()

    def chunks(self) -> Counter[int]:
        return Counter(message.index for message in self.published if isinstance(message, Chunk))

    def wants(self) -> list[BlobWant]:
        return [message for message in self.published if isinstance(message, BlobWant)]


class Peer:
    """One side of an exchange, with the loop that a daemon would have."""

    def __init__(self, broker: MemoryBroker, root: Path, config: TransferSettings) -> None:
        self.link = MemoryLink(broker)
        self.store = BlobStore(root)
        self.exchange = BlobExchange(self.link, self.store, config)
        self.drops = Drops(logging.getLogger("test"))
        self.free = asyncio.Event()
        self.free.set()
        self.pump = asyncio.create_task(self._pump())

    async def _pump(self) -> None:
        async for each in incoming(self.link, TOPICS, self.drops):
            await self.free.wait()
            assert self.exchange.handle(each.address, each.message)

    async def close(self) -> None:
        await self.exchange.close()
        self.link.close()
        await self.pump


@asynccontextmanager
async def peers(
    broker: MemoryBroker, root: Path, agents: int = 1, config: TransferSettings = PATIENT
) -> AsyncIterator[tuple[Peer, list[Peer]]]:
    """The aggregator, and agents pi-0, pi-1, ..."""
    aggregator = Peer(broker, root / "aggregator", config)
    await aggregator.link.subscribe(*TOPICS.aggregator_filters())
    fleet = [Peer(broker, root / f"pi-{number}", config) for number in range(agents)]
    for number, agent in enumerate(fleet):
        await agent.link.subscribe(*TOPICS.agent_filters(f"pi-{number}"))
    yield aggregator, fleet
    for peer in (aggregator, *fleet):
        await peer.close()


def down(number: int, ref: BlobRef = REF) -> Route:
    return Route.agent_from_aggregator(TOPICS, f"pi-{number}", ref.sha256)


def offer(aggregator: Peer, on_ack: Callable[[str], None] | None = None) -> None:
    aggregator.store.put_bytes(DATA)
    aggregator.exchange.offer(REF, TOPICS.download(REF.sha256), on_ack)


def test_one_publication_serves_everyone_who_asks(tmp_path: Path) -> None:
    async def test() -> None:
        broker, acks = Wire(), []
        # All five ask within half a second, however slow their disks are.
        gather = replace(PATIENT, gather_s=0.5)
        async with peers(broker, tmp_path, agents=5, config=gather) as (aggregator, agents):
            offer(aggregator, acks.append)
            paths = await asyncio.gather(
                *(agent.exchange.fetch(REF, down(number), 30) for number, agent in enumerate(agents))
            )
            assert [path.read_bytes() for path in paths] == [DATA] * 5
            assert broker.chunks() == dict.fromkeys(range(21), 1)
            assert len(broker.wants()) == 5
            assert aggregator.exchange.traffic(REF.sha256) == Traffic(bytes_up=20_500)
            assert {agent.exchange.traffic(REF.sha256) for agent in agents} == {Traffic(bytes_down=20_500)}
            assert all(
                agent.link.filters.keys() == set(TOPICS.agent_filters(f"pi-{n}")) for n, agent in enumerate(agents)
            )
        assert sorted(acks) == [f"pi-{number}" for number in range(5)]

    run(test())


def test_a_receiver_that_has_not_looked_yet_at_what_came_does_not_ask_for_it_again(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        # Its silence is over long before it looks; nothing but what lies there keeps it from asking again.
        busy = replace(QUICK, max_quiet_s=30)
        async with peers(broker, tmp_path, config=busy) as (aggregator, (agent,)):
            offer(aggregator)
            agent.free.clear()
            fetching = asyncio.create_task(agent.exchange.fetch(REF, down(0), 30))
            await broker.chunk_published.wait()
            await asyncio.sleep(20 * QUICK.quiet_s)
            assert not fetching.done()
            agent.free.set()
            assert (await fetching).read_bytes() == DATA
            assert broker.chunks() == dict.fromkeys(range(21), 1)

    run(test())


def test_an_upload_goes_the_other_way(tmp_path: Path) -> None:
    async def test() -> None:
        acks: list[str] = []
        async with peers(MemoryBroker(), tmp_path, agents=2) as (aggregator, agents):
            agents[1].store.put_bytes(DATA)
            agents[1].exchange.offer(REF, TOPICS.upload("pi-1", REF.sha256), acks.append)
            route = Route.aggregator_from_agent(TOPICS, "pi-1", REF.sha256)
            path = await aggregator.exchange.fetch(REF, route, 30)
            assert path.read_bytes() == DATA
            assert not agents[0].store.has(REF.sha256)
            assert agents[1].exchange.traffic(REF.sha256) == Traffic(bytes_up=20_500)
        assert acks == ["pi-1"]

    run(test())


def test_of_an_upload_only_a_few_chunks_are_asked_for_at_a_time(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path) as (aggregator, agents):
            agents[0].store.put_bytes(DATA)
            agents[0].exchange.offer(REF, TOPICS.upload("pi-0", REF.sha256))
            route = replace(Route.aggregator_from_agent(TOPICS, "pi-0", REF.sha256), ahead=4)
            path = await aggregator.exchange.fetch(REF, route, 30)
            assert path.read_bytes() == DATA
            assert broker.chunks() == dict.fromkeys(range(21), 1), "and nothing is asked for, or sent, twice"
            outstanding: set[int] = set()
            for message in broker.published:
                if isinstance(message, BlobWant):
                    outstanding |= from_ranges(message.missing, 21)
                elif isinstance(message, Chunk):
                    outstanding.discard(message.index)
                assert len(outstanding) <= 4

    run(test())


@pytest.mark.parametrize(("sharing", "each"), [(1, 8), (2, 4), (3, 2), (100, 2)])
def test_blobs_that_arrive_together_share_what_is_on_its_way(tmp_path: Path, sharing: int, each: int) -> None:
    partial = BlobStore(tmp_path).open_partial(REF)
    arriving = Arriving(partial, asyncio.Event(), ahead=8)
    try:
        assert arriving.next_ranges(sharing) == ((0, each),)
        arriving.asked = set(range(each // 2 + 1))
        assert arriving.next_ranges(sharing) == (), "more than half of it is on its way"
        arriving.asked.clear()
        assert arriving.next_ranges(sharing) == ((0, each),)
    finally:
        partial.close()


def test_blobs_that_begin_together_ask_for_no_more_than_they_may_share(tmp_path: Path) -> None:
    """Nobody answers: what is asked for first is all that is asked for."""

    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path) as (aggregator, _):
            refs = [make_ref(bytes([number]) * 20_500, 1000) for number in range(4)]
            route = Route.aggregator_from_agent(TOPICS, "pi-0", "0" * 64)
            fetching = [
                asyncio.create_task(aggregator.exchange.fetch(ref, replace(route, ahead=16), 30)) for ref in refs
            ]
            await asyncio.sleep(0.5)
            wanted = [each for each in broker.published if isinstance(each, BlobWant)][:4]
            assert [len(from_ranges(each.missing, 21)) for each in wanted] == [4] * 4
            for task in fetching:
                task.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)
            assert aggregator.exchange._sharing == 0

    run(test())


def test_a_few_at_a_time_come_through_a_link_that_loses_and_garbles(tmp_path: Path) -> None:
    seen: Counter[bytes] = Counter()

    def tamper(topic: str, payload: bytes) -> bytes | None:
        seen[payload] += 1
        if "/upload/" not in topic or seen[payload] > 1:
            return payload
        return None if payload[-1] % 3 == 0 else payload[:-1] + b"!" if payload[-1] % 3 == 1 else payload

    async def test() -> None:
        async with peers(Wire(tamper), tmp_path, config=QUICK) as (aggregator, agents):
            agents[0].store.put_bytes(DATA)
            agents[0].exchange.offer(REF, TOPICS.upload("pi-0", REF.sha256))
            route = replace(Route.aggregator_from_agent(TOPICS, "pi-0", REF.sha256), ahead=4)
            assert (await aggregator.exchange.fetch(REF, route, 30)).read_bytes() == DATA

    run(test())


def test_a_holder_that_falls_silent_stalls_the_fetch_and_the_next_one_goes_on(tmp_path: Path) -> None:
    async def test() -> None:
        silent = False

        def tamper(topic: str, payload: bytes) -> bytes | None:
            return None if silent and "/upload/" in topic else payload

        broker = Wire(tamper)
        async with peers(broker, tmp_path, config=QUICK) as (aggregator, agents):
            agents[0].store.put_bytes(DATA)
            agents[0].exchange.offer(REF, TOPICS.upload("pi-0", REF.sha256))
            route = Route.aggregator_from_agent(TOPICS, "pi-0", REF.sha256)
            silent = True
            with pytest.raises(BlobStalled, match=r"nothing of it came for 0\.05 s"):
                await aggregator.exchange.fetch(REF, route, 30, patience_s=0.05)
            silent = False
            assert (await aggregator.exchange.fetch(REF, route, 30, patience_s=10.0)).read_bytes() == DATA

    run(test())


def test_a_nudge_asks_again_without_waiting_for_the_silence_to_end(tmp_path: Path) -> None:
    async def test() -> None:
        away = True

        def tamper(topic: str, payload: bytes) -> bytes | None:
            return None if away and topic.endswith("/orders") else payload

        broker = Wire(tamper)
        # The silence lasts half a minute; the test does not.
        async with peers(broker, tmp_path, config=PATIENT) as (aggregator, agents):
            agents[0].store.put_bytes(DATA)
            agents[0].exchange.offer(REF, TOPICS.upload("pi-0", REF.sha256))
            route = Route.aggregator_from_agent(TOPICS, "pi-0", REF.sha256)
            fetching = asyncio.create_task(aggregator.exchange.fetch(REF, route, 60))
            await broker.want_published.wait()
            away = False
            began = asyncio.get_running_loop().time()
            aggregator.exchange.nudge()
            assert (await fetching).read_bytes() == DATA
            assert asyncio.get_running_loop().time() - began < PATIENT.quiet_s

    run(test())


def test_a_client_fetches_a_record(tmp_path: Path) -> None:
    async def test() -> None:
        broker = MemoryBroker()
        async with peers(broker, tmp_path) as (aggregator, _):
            offer(aggregator)
            client = Peer(broker, tmp_path / "client", PATIENT)
            path = await client.exchange.fetch(REF, Route.client_from_aggregator(TOPICS, "cli-1", REF.sha256), 30)
            assert path.read_bytes() == DATA
            await client.close()

    run(test())


def test_what_the_store_has_costs_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path) as (_, (agent,)):
            agent.store.put_bytes(DATA)
            assert (await agent.exchange.fetch(REF, down(0), 30)).read_bytes() == DATA
        assert broker.published == []

    run(test())


def test_an_empty_blob_needs_no_chunk(tmp_path: Path) -> None:
    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path) as (_, (agent,)):
            empty = make_ref(b"")
            assert (await agent.exchange.fetch(empty, down(0, empty), 30)).read_bytes() == b""

    run(test())


def test_calls_for_one_blob_share_one_transfer(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path) as (aggregator, (agent,)):
            offer(aggregator)
            paths = await asyncio.gather(*(agent.exchange.fetch(REF, down(0), 30) for _ in range(4)))
            assert len(set(paths)) == 1
            assert len(broker.wants()) == 1

    run(test())


def test_bad_chunks_are_counted_and_asked_again(tmp_path: Path) -> None:
    """Damaged once each: the first publication of chunks 3 and 9 arrives with a flipped byte, and 5 not at all."""

    async def test() -> None:
        hurt = {3, 5, 9}

        def tamper(topic: str, payload: bytes) -> bytes | None:
            message = decode(payload, parse(topic).kind)
            if not isinstance(message, Chunk) or message.index not in hurt:
                return payload
            hurt.remove(message.index)
            return None if message.index == 5 else encode(Chunk(REF.sha256, message.index, b"x" + message.data[1:]))

        broker = Wire(tamper)
        async with peers(broker, tmp_path, config=replace(QUICK, quiet_s=0.5)) as (aggregator, (agent,)):
            offer(aggregator)
            path = await agent.exchange.fetch(REF, down(0), 30)
            assert path.read_bytes() == DATA
            assert agent.exchange.dropped == {"chunk: wrong hash": 2}
            assert [want.missing for want in broker.wants()] == [((0, 21),), ((3, 4), (5, 6), (9, 10))]
            assert {index for index, times in broker.chunks().items() if times > 1} == {3, 5, 9}

    run(test())


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), loss=st.floats(0, 0.6))
def test_any_loss_damage_and_repetition_ends_in_the_blob(seed: int, loss: float) -> None:
    async def test(root: Path) -> None:
        rng = random.Random(seed)

        def tamper(topic: str, payload: bytes) -> bytes | None:
            fate = rng.random()
            return None if fate < loss / 2 else payload[:-1] + b"?" if fate < loss else payload

        async with peers(MemoryBroker(tamper), root, agents=2, config=QUICK) as (aggregator, agents):
            offer(aggregator)
            aggregator.store.put_bytes(DATA)
            paths = await asyncio.gather(*(each.exchange.fetch(REF, down(n), 50) for n, each in enumerate(agents)))
            assert [path.read_bytes() for path in paths] == [DATA, DATA]

    with tempfile.TemporaryDirectory() as folder:
        run(test(Path(folder)))


def test_chunks_that_nobody_asked_for_are_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path) as (aggregator, (agent,)):
            agent.exchange.handle(parse(TOPICS.download(REF.sha256)), Chunk(REF.sha256, 0, piece(0)))
            aggregator.exchange.handle(parse(TOPICS.upload("pi-0", REF.sha256)), Chunk(REF.sha256, 0, piece(0)))
            for peer in (aggregator, agent):
                assert peer.exchange.dropped == {"chunk of a blob that was not asked for": 1}
                assert not list(peer.store.root.rglob(REF.sha256))

    run(test())


def test_chunks_on_the_topic_of_another_blob_are_dropped(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path) as (_, (agent,)):
            fetching = asyncio.create_task(agent.exchange.fetch(REF, down(0), 30))
            await broker.want_published.wait()
            agent.exchange.handle(parse(TOPICS.download("ab" * 32)), Chunk(REF.sha256, 0, piece(0)))
            agent.exchange.handle(parse(TOPICS.download(REF.sha256)), Chunk(REF.sha256, 99, piece(0)))
            for index in (0, 0, *range(1, 21)):
                agent.exchange.handle(parse(TOPICS.download(REF.sha256)), Chunk(REF.sha256, index, piece(index)))
            assert (await fetching).read_bytes() == DATA
            assert agent.exchange.dropped == {
                "chunk of a blob that was not asked for": 1,
                "chunk: out of range": 1,
                "chunk: duplicate": 1,
            }

    run(test())


def test_one_who_asks_late_joins_in(tmp_path: Path) -> None:
    """Whoever asks while chunks are being published gets the rest of them with the others."""

    async def test() -> None:
        broker = Wire()
        one_by_one = replace(PATIENT, window=1)
        async with peers(broker, tmp_path, agents=2, config=one_by_one) as (aggregator, agents):
            offer(aggregator)
            publish, second_asked = aggregator.link.publish, asyncio.Event()

            async def waiting(*args: Any, **kwargs: Any) -> None:
                """After five chunks, holds until the second agent has asked."""
                if sum(broker.chunks().values()) == 5:
                    await second_asked.wait()
                await publish(*args, **kwargs)

            aggregator.link.publish = waiting  # type: ignore[method-assign]
            first = asyncio.create_task(agents[0].exchange.fetch(REF, down(0), 30))
            await broker.chunk_published.wait()
            broker.want_published.clear()
            second = asyncio.create_task(agents[1].exchange.fetch(REF, down(1), 30))
            await broker.want_published.wait()
            second_asked.set()
            assert (await first).read_bytes() == (await second).read_bytes() == DATA
            assert len(broker.wants()) == 2
            # The first five, and what was on its way at that moment, twice; the others once, for both.
            assert 21 + 5 <= sum(broker.chunks().values()) <= 21 + 8

    run(test())


def test_a_holder_that_knows_nothing_ends_at_the_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path, config=QUICK) as (aggregator, (agent,)):
            with pytest.raises(BlobUnavailable, match=r"not whole after 0\.2 s") as caught:
                await agent.exchange.fetch(REF, down(0), 0.2)
            assert caught.value.sha256 == REF.sha256
            assert len(broker.wants()) >= 2
            assert set(aggregator.exchange.dropped) == {"want of a blob that is not offered"}
            assert agent.link.filters.keys() == set(TOPICS.agent_filters("pi-0"))

    run(test())


def test_an_interrupted_transfer_asks_only_for_the_rest(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path) as (aggregator, (agent,)):
            fetching = asyncio.create_task(agent.exchange.fetch(REF, down(0), 30))
            await broker.want_published.wait()
            for index in (0, 1, 2, 20):
                agent.exchange.handle(parse(TOPICS.download(REF.sha256)), Chunk(REF.sha256, index, piece(index)))
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            assert not agent.store.has(REF.sha256)
            broker.published.clear()
            offer(aggregator)
            rebooted = Peer(broker, agent.store.root, PATIENT)
            path = await rebooted.exchange.fetch(REF, down(0), 30)
            assert path.read_bytes() == DATA
            assert broker.wants()[0].missing == ((3, 20),)
            assert broker.chunks() == dict.fromkeys(range(3, 20), 1)
            assert rebooted.exchange.traffic(REF.sha256) == Traffic(bytes_down=17 * 1024)
            await rebooted.close()

    run(test())


def test_a_holder_whose_disk_fails_for_a_moment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path, config=QUICK) as (aggregator, (agent,)):
            offer(aggregator)
            read, failures = aggregator.store.read_chunk, [BlobStoreError("input/output error")]

            def flaky(ref: BlobRef, index: int) -> bytes:
                if index == 7 and failures:
                    raise failures.pop()
                return read(ref, index)

            aggregator.store.read_chunk = flaky  # type: ignore[method-assign]
            assert (await agent.exchange.fetch(REF, down(0), 30)).read_bytes() == DATA
            assert failures == []
            assert "stopped publishing" in caplog.text

    run(test())


def test_a_blob_that_is_forgotten_is_not_offered_any_more(tmp_path: Path) -> None:
    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path) as (aggregator, (agent,)):
            offer(aggregator)
            await agent.exchange.fetch(REF, down(0), 30)
            for peer in (aggregator, agent):
                peer.exchange.forget(REF.sha256)
                assert peer.exchange.traffic(REF.sha256) == Traffic()
            agent.store.discard(REF.sha256)
            with pytest.raises(BlobUnavailable):
                await agent.exchange.fetch(REF, down(0), 0.1)

    run(test())


def test_a_full_disk_ends_the_transfer_and_not_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path) as (aggregator, (agent,)):
            offer(aggregator)
            with monkeypatch.context() as patch:
                patch.setattr(os, "pwrite", full)
                with pytest.raises(BlobUnavailable, match="No space left"):
                    await agent.exchange.fetch(REF, down(0), 30)
            assert (await agent.exchange.fetch(REF, down(0), 30)).read_bytes() == DATA

    run(test())


def test_a_reference_that_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        broker = Wire()
        async with peers(broker, tmp_path) as (_, (agent,)):
            with pytest.raises(BlobUnavailable, match="1000000000000 bytes"):
                await agent.exchange.fetch(BlobRef("ab" * 32, 10**12, 1024, ()), down(0), 30)
        assert broker.published == []

    run(test())


def test_wants_that_do_not_get_through_are_asked_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path, config=QUICK) as (aggregator, (agent,)):
            offer(aggregator)
            publish, failures = agent.link.publish, [LinkError("no connection"), LinkError("no connection")]

            async def flaky(*args: Any, **kwargs: Any) -> None:
                if failures:
                    raise failures.pop()
                await publish(*args, **kwargs)

            agent.link.publish = flaky  # type: ignore[method-assign]
            assert (await agent.exchange.fetch(REF, down(0), 30)).read_bytes() == DATA
            assert failures == []

    run(test())


def test_other_messages_are_left_to_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path) as (_, (agent,)):
            cancel = CancelOrder(OrderKey("j", "merged", 1, "pi-0", 0, "train"))
            assert not agent.exchange.handle(parse(TOPICS.orders("pi-0")), cancel)
            assert agent.exchange.handle(parse(TOPICS.orders("pi-0")), BlobAck(REF.sha256))

    run(test())


def test_no_more_than_the_window_is_under_way(tmp_path: Path) -> None:
    async def test() -> None:
        async with peers(MemoryBroker(), tmp_path) as (aggregator, (agent,)):
            offer(aggregator)
            publish, under_way, most = aggregator.link.publish, [0], [0]

            async def slow(*args: Any, **kwargs: Any) -> None:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
                await asyncio.sleep(0)
                await publish(*args, **kwargs)
                under_way[0] -= 1

            aggregator.link.publish = slow  # type: ignore[method-assign]
            await agent.exchange.fetch(REF, down(0), 30)
            assert most == [PATIENT.window]

    run(test())

"""Blobs stay while something needs them or somebody works on them, and go afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aggregator.keeper import RECORDS_KEPT, Keeper
from models.link.memory import MemoryBroker, MemoryLink
from models.link.transfer import BlobExchange, Route, TransferSettings
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import make_ref
from models.wire.codec import decode
from models.wire.messages import BundleFile, DeployOrder, OrderKey
from models.wire.topics import Topics

KEY = OrderKey("job", "merged", 1, "pi", 0, "deploy")
TOPICS = Topics("lab")


class Bench:
    """A keeper on a broker in this process, and an agent that can fetch from it."""

    def __init__(self, folder: Path) -> None:
        broker = MemoryBroker()
        self.store = BlobStore(folder / "here")
        self.link = MemoryLink(broker)
        self.exchange = BlobExchange(self.link, self.store, TransferSettings(gather_s=0.0, quiet_s=0.05))
        self.live: set[str] = set()
        self.keeper = Keeper(self.store, self.exchange, TOPICS, lambda: self.live)
        self.far_link = MemoryLink(broker)
        self.far = BlobExchange(self.far_link, BlobStore(folder / "there"), TransferSettings(quiet_s=0.05))

    def put(self, data: bytes, live: bool = False) -> str:
        sha256 = self.store.put_bytes(data)
        if live:
            self.live.add(sha256)
        return sha256

    async def pump(self, link: MemoryLink, exchange: BlobExchange) -> None:
        async for received in link.messages():
            address = TOPICS.parse(received.topic)
            exchange.handle(address, decode(received.payload, address.kind))


def bench_test(tmp_path: Path, test: Callable[[Bench], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        bench = Bench(tmp_path)
        await bench.link.subscribe(TOPICS.reports("pi"))
        pumps = [
            asyncio.create_task(bench.pump(bench.link, bench.exchange)),
            asyncio.create_task(bench.pump(bench.far_link, bench.far)),
        ]
        await test(bench)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        await bench.exchange.close()

    asyncio.run(asyncio.wait_for(all_of_it(), 30))


def test_every_blob_of_an_order_is_on_offer(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        blobs = {name: f"contents of {name}".encode() for name in ("manifest", "a.onnx", "b.onnx")}
        for data in blobs.values():
            bench.put(data, live=True)
        files = tuple(BundleFile(name, make_ref(blobs[name])) for name in ("a.onnx", "b.onnx"))
        bench.keeper.offer_for(DeployOrder(KEY, make_ref(blobs["manifest"]), files, 60.0))
        for data in blobs.values():
            ref = make_ref(data)
            path = await bench.far.fetch(ref, Route.agent_from_aggregator(TOPICS, "pi", ref.sha256), 10)
            assert path.read_bytes() == data

    bench_test(tmp_path, test)


def test_what_nothing_needs_goes_and_what_something_needs_stays(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    needed, spare = bench.put(b"needed", live=True), bench.put(b"spare")
    bench.keeper.forget((needed, spare))
    assert bench.store.has(needed)
    assert not bench.store.has(spare)
    bench.live.clear()
    bench.keeper.forget(())
    assert bench.store.has(needed), "it goes when it is let go, not whenever somebody looks"
    bench.keeper.forget((needed,))
    assert not bench.store.has(needed)


def test_a_blob_that_is_worked_on_goes_only_afterwards(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    update = bench.put(b"update")
    with bench.keeper.at_work(update), bench.keeper.at_work(update):
        bench.keeper.forget((update,))
        assert bench.store.has(update)
    assert not bench.store.has(update)


def test_a_refused_update_that_is_a_blob_in_use_takes_nothing_away(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    model = bench.put(b"the model of another job", live=True)
    with bench.keeper.at_work(model):
        pass  # an agent claimed that this is its update, and it was refused
    assert bench.store.has(model)


def test_an_update_that_counts_is_needed_when_the_work_on_it_ends(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    update = bench.put(b"update")
    with bench.keeper.at_work(update):
        bench.live.add(update)
    assert bench.store.has(update)


def test_nothing_goes_while_the_outcome_of_work_is_not_known(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    made = bench.put(b"a model two jobs make alike")
    with bench.keeper.at_work():
        bench.keeper.forget((made,))
        assert bench.store.has(made)
        bench.live.add(made)  # the second job's event names it now
    assert bench.store.has(made)
    bench.live.clear()
    with bench.keeper.at_work():
        bench.keeper.forget((made,))
    assert not bench.store.has(made)


def test_what_arrived_only_in_part_goes_too(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    ref = make_ref(b"x" * 5000, chunk_bytes=1024)
    partial = bench.store.open_partial(ref)
    partial.accept(0, b"x" * 1024)
    partial.close()
    with bench.keeper.at_work(ref.sha256):
        assert partial.path.exists()
    assert not partial.path.exists()


def test_records_of_many_requests_stay_for_those_who_still_fetch_them(tmp_path: Path) -> None:
    async def test(bench: Bench) -> None:
        refs = [bench.keeper.keep_record(f"record {number}".encode()) for number in range(RECORDS_KEPT + 1)]
        assert bench.keeper.keep_record(b"record 5") == refs[5]
        assert [bench.store.has(ref.sha256) for ref in refs] == [False] + [True] * RECORDS_KEPT
        route = Route.agent_from_aggregator(TOPICS, "pi", refs[1].sha256)
        assert (await bench.far.fetch(refs[1], route, 10)).read_bytes() == b"record 1"

    bench_test(tmp_path, test)


def test_what_an_earlier_process_left_is_removed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    needed, spare = bench.put(b"needed", live=True), bench.put(b"spare")
    written = bench.store.root / "incoming" / "tmp-of-a-killed-process"
    written.write_bytes(b"half a blob")
    bench.keeper.clean()
    assert not written.exists()
    assert bench.store.has(needed)
    assert not bench.store.has(spare)


def test_a_disk_that_does_not_let_go_is_no_reason_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(tmp_path)
    first, second = bench.put(b"first"), bench.put(b"second")
    discard = bench.store.discard

    def broken(sha256: str) -> None:
        if sha256 == first:
            raise BlobStoreError("cannot discard blob: Read-only file system")
        discard(sha256)

    monkeypatch.setattr(bench.store, "discard", broken)
    bench.keeper.forget((first, second))
    assert not bench.store.has(second)
    assert caplog.messages == ["a blob stays here: cannot discard blob: Read-only file system"]

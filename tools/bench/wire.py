"""Messages per second through the codec, and a blob through a real broker to one and to many receivers.

Holder and receivers share this process and its one core, the broker has its own; in a fleet each device does its own
hashing and writing, so these are the least that can be expected. What the broker's fan-out is worth shows in the ratio.
"""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from models.link.base import Drops, LinkError
from models.link.incoming import incoming
from models.link.mqtt import MqttLink
from models.link.transfer import BlobExchange, BlobUnavailable, Route
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import CHUNK_BYTES, make_ref
from models.wire.codec import decode, encode
from models.wire.messages import Chunk, Message
from models.wire.topics import Kind, Topics
from tools.bench.base import Benchmark, Row, rate_per_s, row
from tools.bench.journal import example_report
from tools.broker import BrokerError, EmbeddedBroker

_BLOB_BYTES = 20_000_000
_RECEIVERS = 8
_TOPICS = Topics("bench")
_CONNECT_S = 20.0
_DEADLINE_S = 120.0


def run(quick: bool) -> list[Row]:
    """Codec first, then the broker; one and many receivers take turns."""
    rows = _codec(2, 0.005) if quick else _codec(5, 0.3)
    return rows + (_transfers(1, 300_000, 2) if quick else _transfers(5, _BLOB_BYTES, _RECEIVERS))


def _codec(runs: int, least_s: float) -> list[Row]:
    chunk = Chunk("ab" * 32, 0, os.urandom(CHUNK_BYTES))
    messages: list[tuple[str, Message, Kind]] = [
        ("train report", example_report(), "reports"),
        ("chunk of 128 KiB", chunk, "download"),
    ]
    rows = []
    for name, message, kind in messages:
        payload = encode(message)
        encoded = [rate_per_s(partial(encode, message), least_s) for _ in range(runs)]
        decoded = [rate_per_s(partial(decode, payload, kind), least_s) for _ in range(runs)]
        rows += [row(f"encode a {name}", encoded, "1/s"), row(f"decode a {name}", decoded, "1/s")]
    return rows


def _transfers(runs: int, blob_bytes: int, receivers: int) -> list[Row]:
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="mas-bench-") as folder:
        times = asyncio.run(_times_s(broker.url, Path(folder), runs, blob_bytes, receivers))
    size = f"{blob_bytes / 1e6:g} MB"
    one, many = zip(*times, strict=True)
    return [
        row(f"{size} to 1 receiver", [blob_bytes / time_s for time_s in one], "B/s"),
        row(f"{size} to {receivers} receivers, each", [blob_bytes / time_s for time_s in many], "B/s"),
        row(f"{size} to {receivers} receivers, together", [receivers * blob_bytes / time_s for time_s in many], "B/s"),
        row(f"time of {receivers} to time of 1", [b / a for a, b in times], "ratio"),
    ]


async def _times_s(url: str, folder: Path, runs: int, blob_bytes: int, receivers: int) -> list[tuple[float, float]]:
    """Seconds to one receiver and to all, by run."""
    async with AsyncExitStack() as stack:
        holder = await stack.enter_async_context(_peer(url, folder, "holder", _TOPICS.aggregator_filters()))
        names = [f"receiver-{number}" for number in range(receivers)]
        peers = [
            await stack.enter_async_context(_peer(url, folder, name, _TOPICS.agent_filters(name))) for name in names
        ]
        times = []
        for _ in range(runs):
            one_s = await _transfer_s(holder, peers[:1], blob_bytes)
            times.append((one_s, await _transfer_s(holder, peers, blob_bytes)))
        return times


@dataclass(frozen=True, slots=True)
class _Peer:
    """One end of the exchange."""

    name: str
    store: BlobStore
    exchange: BlobExchange


@asynccontextmanager
async def _peer(url: str, folder: Path, name: str, filters: tuple[str, ...]) -> AsyncIterator[_Peer]:
    store = BlobStore(folder / name)
    async with MqttLink(url, f"bench-{name}", session_expiry_s=0) as link:
        await link.subscribe(*filters)
        await link.wait_connected(_CONNECT_S)
        peer = _Peer(name, store, BlobExchange(link, store))
        reader = asyncio.create_task(_read(link, peer.exchange))
        try:
            yield peer
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await peer.exchange.close()


async def _read(link: MqttLink, exchange: BlobExchange) -> None:
    async for said in incoming(link, _TOPICS, Drops(logging.getLogger(__name__))):
        exchange.handle(said.address, said.message)


async def _transfer_s(holder: _Peer, receivers: Sequence[_Peer], blob_bytes: int) -> float:
    """Seconds until every receiver has a new blob, whole and hashed."""
    data = os.urandom(blob_bytes)
    ref = make_ref(data)
    holder.store.put_bytes(data)
    holder.exchange.offer(ref, _TOPICS.download(ref.sha256))
    routes = [Route.agent_from_aggregator(_TOPICS, peer.name, ref.sha256) for peer in receivers]
    began_s = time.perf_counter()
    await asyncio.gather(
        *(peer.exchange.fetch(ref, route, _DEADLINE_S) for peer, route in zip(receivers, routes, strict=True))
    )
    took_s = time.perf_counter() - began_s
    for peer in (holder, *receivers):
        peer.exchange.forget(ref.sha256)
        peer.store.discard(ref.sha256)
    return took_s


BENCHMARK = Benchmark(
    "wire",
    "messages through the codec, blobs through a broker",
    run,
    (BrokerError, LinkError, BlobUnavailable, BlobStoreError),
)

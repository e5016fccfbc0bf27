"""Blobs over a link: whoever needs one asks its holder, and the holder publishes chunks until it is whole.

    receiver                                    holder
    BlobWant(sha, all ranges)        ->         waits `gather_s` for others who want the same blob
                                     <-         Chunk, Chunk, ... of the union of what was asked, published once
    (quiet: some were lost or bad)
    BlobWant(sha, what is missing)   ->
                                     <-         Chunk, ...
    (updates, that only one receives: asked for `Route.ahead` chunks at a time, so that what is on its way is bounded)
    the whole is hashed and kept
    BlobAck(sha)                     ->         may forget the blob

The broker fans one publication out to everyone who asked. A receiver that gives up, or reboots, keeps its chunks on
disk and asks only for the others the next time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

from models.link.arriving import Arriving, Route
from models.link.base import Drops, Link, LinkError
from models.link.offers import Offers, OnAck
from models.link.outgoing import Wrap, plain
from models.wire.blobstore import BlobStore, BlobStoreError, PartialBlob
from models.wire.chunks import BlobError
from models.wire.messages import BlobAck, BlobRef, BlobWant, Chunk, Message
from models.wire.topics import Address

__all__ = ["BlobExchange", "BlobStalled", "BlobUnavailable", "Route", "Traffic", "TransferSettings"]

_LOGGER = logging.getLogger(__name__)
_MAX_REMEMBERED = 4096
_PATIENT = 3.0
_MOST_TIMES = 4
_MOST_PATIENT_S = 30.0


class BlobUnavailable(Exception):
    """A blob did not arrive; `reason` says why. What did arrive stays on disk for the next attempt."""

    def __init__(self, sha256: str, reason: str) -> None:
        super().__init__(f"blob {sha256[:12]}: {reason}")
        self.sha256 = sha256
        self.reason = reason


class BlobStalled(BlobUnavailable):
    """Nothing of the blob came for as long as the caller had patience; its holder may be away."""


@dataclass(frozen=True, slots=True)
class TransferSettings:
    """`quiet_s`: silence after which a receiver asks again, doubled up to `max_quiet_s` while nothing comes; on a link
    on which chunks have come further apart than that, `_PATIENT` times as long as they were apart, and half a minute
    at most. `window`: chunks published and not yet acknowledged by the broker, over all blobs. `chunk_expiry_s`:
    chunks are not kept for a receiver that is away longer; it asks again."""

    gather_s: float = 0.05
    quiet_s: float = 2.0
    max_quiet_s: float = 8.0
    window: int = 8
    chunk_expiry_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of a blob's chunks as they crossed this link, repetitions included; a publication counts once."""

    bytes_up: int = 0
    bytes_down: int = 0


class BlobExchange:
    """Both sides of the exchange over one link. Feed it every message with `handle`; that never waits."""

    def __init__(
        self,
        link: Link,
        store: BlobStore,
        settings: TransferSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_bad_chunk: Callable[[str, str], None] = lambda sender, why: None,
        wrap: Wrap = plain,
    ) -> None:
        """`on_bad_chunk` hears whose chunk (an agent's name, "" for the aggregator's) is not what was announced.

        `wrap` makes wants and acknowledgements what they have to be where they go; chunks go as they are.
        """
        self._wrap = wrap
        self._on_bad_chunk = on_bad_chunk
        self._link = link
        self._store = store
        self._settings = settings or TransferSettings()
        self._clock = clock
        self._drops = Drops(_LOGGER)
        self._offers = Offers(
            link, store, self._drops, self._settings.gather_s, self._settings.window, self._settings.chunk_expiry_s
        )
        self._arriving: dict[str, Arriving] = {}
        self._bytes_down: dict[str, int] = {}
        #: How many fetch piece by piece, those who have not asked yet among them: they are about to.
        self._sharing = 0
        #: How long good chunks were apart of late: long at once, short again by and by.
        self._gap_s = 0.0
        # A lock lives as long as somebody fetches that blob.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def dropped(self) -> Mapping[str, int]:
        """Chunks and wants that were dropped, by reason."""
        return self._drops.counts

    def traffic(self, sha256: str) -> Traffic:
        """What this blob has cost so far, until it is forgotten."""
        return Traffic(self._offers.bytes_up(sha256), self._bytes_down.get(sha256, 0))

    def expects(self, sha256: str) -> bool:
        """Whether chunks of this blob were asked for and are still to come."""
        return sha256 in self._arriving

    def overdone(self, sha256: str) -> bool:
        """Whether so much of an expected blob has come, and it is still not whole, that no bad link explains it."""
        arriving = self._arriving.get(sha256)
        return arriving is not None and arriving.bytes_down > _MOST_TIMES * arriving.partial.reception.ref.size_bytes

    def forget(self, sha256: str) -> None:
        """Stops offering a blob and forgets its traffic. The store keeps it."""
        self._offers.withdraw(sha256)
        self._bytes_down.pop(sha256, None)

    def offer(self, ref: BlobRef, chunks_topic: str, on_ack: OnAck | None = None) -> None:
        """Serves a blob of the store, on `chunks_topic`, to everyone who asks. `on_ack(name)` is called with the
        agent or client of each BlobAck. Offering again replaces topic and callback."""
        self._offers.offer(ref, chunks_topic, on_ack)

    def handle(self, address: Address, message: Message) -> bool:
        """True when the message was one of ours: BlobWant, BlobAck or Chunk. Never waits, and never raises."""
        if isinstance(message, Chunk):
            self._take(address, message)
        elif isinstance(message, BlobWant):
            self._offers.want(address, message)
        elif isinstance(message, BlobAck):
            self._offers.acknowledge(address, message)
        else:
            return False
        return True

    async def close(self) -> None:
        """Ends all publications."""
        await self._offers.close()

    def _take(self, address: Address, chunk: Chunk) -> None:
        arriving = self._arriving.get(chunk.sha256)
        where = f"chunk {chunk.index} of {chunk.sha256[:12]} from {address.name or 'the aggregator'}"
        if arriving is None or address.sha256 != chunk.sha256:
            self._drops.count("chunk of a blob that was not asked for", where)
            return
        arriving.bytes_down += len(chunk.data)
        try:
            verdict = arriving.partial.accept(chunk.index, chunk.data)
        except BlobStoreError as error:
            arriving.fault = error
        else:
            if verdict != "accepted":
                self._drops.count(f"chunk: {verdict}", where)
                if verdict != "duplicate":
                    self._on_bad_chunk(address.name, f"{where}: {verdict}")
                return
            arriving.asked.discard(chunk.index)
            if arriving.paced:
                self._gap_s = max(self._clock() - arriving.heard_s, 0.9 * self._gap_s)
            arriving.heard_s, arriving.paced = self._clock(), True
        arriving.event.set()

    def nudge(self) -> None:
        """Asks again for everything that is arriving, now: for use after a lost connection, when it was for nothing
        that the silence grew long."""
        self._gap_s = 0.0
        for arriving in self._arriving.values():
            arriving.nudged, arriving.paced = True, False
            arriving.event.set()

    async def caught_up(self) -> None:
        """Returns when all that has arrived by now was handled, or that takes too long."""
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._link.caught_up(), self._settings.max_quiet_s)

    async def fetch(
        self,
        ref: BlobRef,
        route: Route,
        deadline_s: float,
        patience_s: float = math.inf,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Path:
        """The path of the whole blob, at once if the store has it. Calls for one blob share one transfer.

        Raises BlobUnavailable after `deadline_s`, or earlier when its reference or this disk make it impossible, and
        BlobStalled when nothing came for `patience_s`, or in a silence in which it is not `wanted` any more; the next
        call goes on from there.
        """
        if self._store.has(ref.sha256):
            return self._store.path(ref.sha256)
        turn = self._turns.get(ref.sha256) or self._turns.setdefault(ref.sha256, asyncio.Lock())
        try:
            return await asyncio.wait_for(self._fetch_in_turn(turn, ref, route, patience_s, wanted), deadline_s)
        except asyncio.TimeoutError:
            raise BlobUnavailable(ref.sha256, f"not whole after {deadline_s:g} s; is its holder connected?") from None
        except (BlobError, BlobStoreError) as error:
            raise BlobUnavailable(ref.sha256, str(error)) from error

    async def _fetch_in_turn(
        self, turn: asyncio.Lock, ref: BlobRef, route: Route, patience_s: float, wanted: Callable[[], bool]
    ) -> Path:
        async with turn:
            if self._store.has(ref.sha256):
                return self._store.path(ref.sha256)
            self._sharing += route.ahead > 0
            try:
                arriving = Arriving(await self._open(ref), asyncio.Event(), route.ahead)
            except BaseException:
                self._sharing -= route.ahead > 0
                raise
            self._arriving[ref.sha256] = arriving
            try:
                if route.subscribe:
                    await self._link.subscribe(route.chunks)
                await self._receive(arriving, route, patience_s, wanted)
            finally:
                del self._arriving[ref.sha256]
                self._sharing -= route.ahead > 0
                self._note_traffic(ref.sha256, arriving.bytes_down)
                arriving.partial.close()
                if route.subscribe:
                    await self._link.unsubscribe(route.chunks)
            path = await asyncio.to_thread(self._store.finish, ref)
            await self._say(route, BlobAck(ref.sha256))
            return path

    async def _open(self, ref: BlobRef) -> PartialBlob:
        """Opens off the loop, for what an earlier attempt left must be hashed. Nothing stays open when cancelled."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._store.open_partial, ref))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    def _note_traffic(self, sha256: str, bytes_down: int) -> None:
        self._bytes_down[sha256] = self._bytes_down.get(sha256, 0) + bytes_down
        if len(self._bytes_down) > _MAX_REMEMBERED:  # nobody forgets them; the oldest go
            del self._bytes_down[next(iter(self._bytes_down))]

    async def _receive(self, arriving: Arriving, route: Route, patience_s: float, wanted: Callable[[], bool]) -> None:
        """Asks until every chunk is here."""
        ref, quiet_s = arriving.partial.reception.ref, self._settings.quiet_s
        arriving.heard_s = self._clock()
        while not arriving.partial.complete:
            before = arriving.partial.reception.have
            arriving.asked.clear()  # whatever was asked for before this silence is lost
            await self._say(route, BlobWant(ref.sha256, arriving.next_ranges(self._sharing)))
            await self._until_quiet(arriving, route, max(quiet_s, min(_PATIENT * self._gap_s, _MOST_PATIENT_S)))
            if arriving.fault:
                raise BlobUnavailable(ref.sha256, str(arriving.fault)) from arriving.fault
            progress = arriving.partial.reception.have != before
            if progress or arriving.nudged:
                quiet_s, arriving.nudged = self._settings.quiet_s, False
            else:
                quiet_s = min(2 * quiet_s, self._settings.max_quiet_s)
            if not progress and not wanted():
                raise BlobStalled(ref.sha256, "nobody waits for it any more")
            if not progress and self._clock() - arriving.heard_s >= patience_s:
                raise BlobStalled(ref.sha256, f"nothing of it came for {patience_s:g} s; is its holder connected?")

    async def _until_quiet(self, arriving: Arriving, route: Route, quiet_s: float) -> None:
        """Returns when the blob is complete or at fault, or when no good chunk came for `quiet_s`, or on a nudge.

        What is here and was not looked at yet is no silence: a busy receiver would ask for it twice, and be busier.
        """
        while not arriving.partial.complete and not arriving.fault and not arriving.nudged:
            if more := arriving.next_ranges(self._sharing):
                await self._say(route, BlobWant(arriving.partial.reception.ref.sha256, more))
                continue
            arriving.event.clear()
            try:
                await asyncio.wait_for(arriving.event.wait(), quiet_s)
            except asyncio.TimeoutError:
                await self.caught_up()
                if not arriving.event.is_set():
                    return

    async def _say(self, route: Route, message: BlobWant | BlobAck) -> None:
        """A want that does not get through is asked again, and a lost ack only keeps a blob longer at its holder."""
        try:
            expiry_s = self._settings.chunk_expiry_s
            await self._link.publish(route.wants, self._wrap(route.wants, message, expiry_s), expiry_s=expiry_s)
        except LinkError as error:
            _LOGGER.warning("%s for blob %s: %s", type(message).__name__, message.sha256[:12], error)


def _close_opened(opening: asyncio.Future[PartialBlob]) -> None:
    if opening.exception() is None:
        opening.result().close()

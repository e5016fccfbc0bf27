"""`mas aggregator worker`: takes updates of a job off the aggregator's hands. Any number of them run beside it.

A worker shares the aggregator's store, as a directory of the same file system or one that is mounted on its machine,
and hears items of work on a shared subscription: fetch an update from its agent, hash it, decode it, compare it with
its base, answer. It keeps nothing of its own, so that one that is killed is replaced by any other: what it had begun is
given out again, and chunks that it has written are found in the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from aggregator.config import AggregatorConfig
from aggregator.crew import BEAT_S, ITEMS_PER_WORKER
from aggregator.effects import Checked, EffectError, Effects
from aggregator.room import NoRoom, Room
from aggregator.sealing import ERRORS as SEALING_ERRORS
from aggregator.sealing import WORKERS, open_sealer
from models import sdnotify
from models.heap import tidy_heap
from models.link.base import GOODBYE_S, BadBrokerUrl, Drops, LinkError
from models.link.incoming import incoming
from models.link.mqtt import MqttLink
from models.link.transfer import BlobExchange, BlobUnavailable, Route
from models.service import Tasks, run_service
from models.trust.access import access
from models.trust.identity import Identity
from models.trust.renewal import keep_renewed
from models.wire import messages
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import BlobError, BlobLimits
from models.wire.codec import WireError, encode
from models.wire.tensors import TensorsError
from models.wire.topics import TopicError, Topics, check_identifier

log = logging.getLogger(__name__)
#: Items that wait here; more are declined, and the aggregator gives them to another.
MOST_ITEMS = 4 * ITEMS_PER_WORKER
PATIENCE_S = 45.0
_REASONS = 16
State = Literal["taken", "done", "declined"]


class Worker:
    """One worker of one fleet."""

    def __init__(self, config: AggregatorConfig, name: str) -> None:
        self._name = check_identifier("a worker", name)
        # It signs what it says to agents, so it works with the aggregator's own identity.
        reach = access(config.broker, config.fleet, config.identity, "aggregator")
        self._identity = reach.identity
        self._topics = Topics(config.fleet)
        self._boot = uuid.uuid4().hex
        self._store = BlobStore(Path(config.state_dir) / "blobs", BlobLimits(max_blob_bytes=config.max_update_bytes))
        self._effects = Effects(self._store, config.max_state_bytes)
        self._room = Room(self._store, 0, config.min_free_bytes)
        self._link = MqttLink(
            reach.url,
            f"mas-worker-{config.fleet}-{name}",
            will=(self._topics.worker_presence(name), encode(self._presence(online=False))),
            session_expiry_s=0,  # what waits for a worker that is away is better given to another
            on_connected=self._greet,
            tls=reach.tls,
        )
        self._sealer = open_sealer(config, WORKERS)
        self._exchange = BlobExchange(self._link, self._store, wrap=self._sealer.wrap)
        self._drops = Drops(log)
        self._hands = asyncio.Semaphore(ITEMS_PER_WORKER)
        self._items = 0
        self._tasks = Tasks()
        self._stop = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> bool:
        """Serve until `stop` is set; whether all went well."""
        self._stop = stop
        await self._link.subscribe(*self._topics.worker_filters(group_of(self._identity)))
        async with self._link:
            self._tasks.loop(self._receive(), stop)
            self._tasks.loop(self._beat(), stop)
            self._tasks.loop(keep_renewed(self._identity, self._link), stop)
            self._tasks.loop(sdnotify.keep_watchdog_fed(), stop)
            sdnotify.notify("READY=1")
            await stop.wait()
            sdnotify.notify("STOPPING=1")
            await self._tasks.end()
            if self._link.connected:
                with contextlib.suppress(LinkError, asyncio.TimeoutError):  # the last will says the same
                    await asyncio.wait_for(self._say_presence(online=False), GOODBYE_S)
        await self._exchange.close()
        self._effects.close()
        self._sealer.close()
        return not self._tasks.failed

    def _presence(self, online: bool) -> messages.Presence:
        return messages.Presence(self._name, online, self._boot, version("mas-edge"))

    async def _say_presence(self, online: bool) -> None:
        await self._link.publish(self._topics.worker_presence(self._name), encode(self._presence(online)), retain=True)

    async def _greet(self) -> None:
        self._exchange.nudge()
        await self._say_presence(online=True)

    async def _beat(self) -> None:
        """Say now and then that this worker is there; see `aggregator.crew`."""
        while True:
            await asyncio.sleep(BEAT_S)
            if self._link.connected:
                with contextlib.suppress(LinkError):  # the next one says the same
                    await self._say_presence(online=True)

    async def _receive(self) -> None:
        async for each in incoming(self._link, self._topics, self._drops):
            if self._exchange.handle(each.address, each.message):
                continue
            if isinstance(each.message, messages.WorkItem):
                self._items += 1
                self._tasks.errand(self._work(each.message), self._stop)

    async def _work(self, item: messages.WorkItem) -> None:
        try:
            if self._items > MOST_ITEMS:
                await self._answer(item, "declined", [f"{self._name} has {MOST_ITEMS} items already"])
                return
            await self._answer(item, "taken")
            async with self._hands:
                await self._do(item)
        finally:
            self._items -= 1

    async def _do(self, item: messages.WorkItem) -> None:
        route = Route.worker_from_agent(self._topics, item.key.agent, item.update.sha256)
        try:
            if not self._store.has(item.base_sha256):
                raise BlobStoreError(f"{self._name} does not share the aggregator's store: the base is not here")
            with self._room.reserved(item.update):
                update = await self._exchange.fetch(item.update, route, item.deadline_s, PATIENCE_S)
            checked = await self._effects.check_update(item.base_sha256, update, item.masked)
        except (BlobError, TensorsError) as error:
            checked = Checked([str(error)])
        except (NoRoom, BlobUnavailable, BlobStoreError, EffectError, LinkError, OSError) as error:
            await self._answer(item, "declined", [f"{self._name}: {error}"])
            return
        await self._answer(item, "done", *checked)

    async def _answer(
        self, item: messages.WorkItem, state: State, faults: list[str] | None = None, norm: float = 0.0
    ) -> None:
        """Say how it stands; an answer that is lost costs the item's time limit."""
        reasons = tuple(fault[:1000] for fault in (faults or [])[:_REASONS])
        try:
            answer = messages.WorkAnswer(item.item, state, reasons, norm)
            await self._link.publish(self._topics.answers(self._name), encode(answer), expiry_s=item.deadline_s)
        except (LinkError, WireError) as error:
            log.warning("an answer was not sent: %s", error)


def group_of(identity: Identity | None) -> str:
    """The name of the workers' group, which nobody can guess who has not the aggregator's identity."""
    if identity is None:
        return "workers"
    return hmac.new(identity.signing_key(), b"the group of workers", hashlib.sha256).hexdigest()


def main(config: AggregatorConfig, name: str, verbose: bool = False) -> int:
    """Run until SIGTERM or SIGINT; the exit code of the process."""
    tidy_heap()
    lock_dir = Path(config.state_dir) / "workers" / name

    async def serve(stop: asyncio.Event) -> bool:
        return await Worker(config, name).run(stop)

    expected = (BadBrokerUrl, BlobStoreError, *SEALING_ERRORS)
    return run_service("worker of that name", lock_dir, verbose, serve, expected, (TopicError,))

"""The aggregator: one asyncio process that turns messages into the coordinator's events and its actions into work.

Every event that asks for something is in the journal before that is begun, so a killed aggregator replays the journal
and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aggregator.admission import admission
from aggregator.config import AggregatorConfig
from aggregator.coordinator import Coordinator, State, live_blobs, why_unwanted
from aggregator.coordinator.actions import Action, PublishStatus
from aggregator.coordinator.events import AnyEvent, OrderFailed, Tick
from aggregator.crew import Crew
from aggregator.dispatch import Dispatch
from aggregator.effects import Effects
from aggregator.guard import Guard
from aggregator.guard_memory import FILE, Memory
from aggregator.intake import Intake
from aggregator.journal import EVENTS_KEPT, Journal, JournalError, NewerJournal
from aggregator.keeper import Keeper
from aggregator.outbox import WINDOW, Letter, Outbox, Postman
from aggregator.reception import Reception, Tools
from aggregator.record import job_status
from aggregator.registry import RegistryError
from aggregator.room import Room
from aggregator.sealing import ERRORS as SEALING_ERRORS
from aggregator.sealing import open_sealer
from aggregator.statuses import Statuses
from aggregator.steady import SteadyClock
from models import sdnotify
from models.heap import give_back, leave_alone, tidy_heap
from models.link.base import GOODBYE_S, BadBrokerUrl, Drops, LinkError
from models.link.mqtt import MqttLink
from models.link.transfer import BlobExchange
from models.service import Tasks, run_service
from models.trust.access import access
from models.trust.identity import IdentityError
from models.trust.renewal import keep_renewed
from models.wire import messages
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import BlobLimits
from models.wire.codec import encode
from models.wire.topics import TopicError, Topics

log = logging.getLogger(__name__)
#: After a lost connection the agents come back one by one; their answers are heard before deadlines are looked at.
_SETTLE_S = 15.0


class Service:
    """Joins link, journal, coordinator and heavy work. One instance a process."""

    def __init__(self, config: AggregatorConfig, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        reach = access(config.broker, config.fleet, config.identity, "aggregator")
        self._identity = reach.identity
        self._config, self._journal = config, journal
        self._coordinator = Coordinator(journal, journal.state())
        self._clock = SteadyClock(clock, self._coordinator.last_s)
        self._topics = Topics(config.fleet)
        self._boot = uuid.uuid4().hex
        state_dir = Path(config.state_dir)
        self._store = BlobStore(state_dir / "blobs", BlobLimits(max_blob_bytes=config.max_update_bytes))
        self._effects = Effects(self._store, config.max_state_bytes)
        self._link = MqttLink(
            reach.url,
            f"mas-aggregator-{config.fleet}",
            will=(self._topics.aggregator_presence(), encode(self._presence(online=False))),
            on_connected=self._greet,
            on_state=lambda connected, reason: None if connected else self._reception.lost_connection(),
            tls=reach.tls,
        )
        self.guard = Guard(config.guard, self._clock, proven=bool(config.identity))
        if config.fleet_dir:
            self.guard.admission = admission(Path(config.fleet_dir))
        self._memory = Memory(self.guard, state_dir / FILE)
        self._sealer = open_sealer(config)
        self._exchange = BlobExchange(
            self._link,
            self._store,
            on_bad_chunk=lambda agent, why: self.guard.refused(agent, "chunk", why),
            wrap=self._sealer.wrap,
        )
        self._keeper = Keeper(self._store, self._exchange, self._topics, lambda: live_blobs(self.state))
        self.drops = Drops(log)
        self._room = Room(self._store, config.max_store_bytes, config.min_free_bytes)
        self._outbox = Outbox(self.drops)
        self._postman = Postman(
            self._link, self._outbox, lambda key: why_unwanted(self.state, key), self._not_sent, self._sealer.wrap
        )
        self._connections = 0
        self._settled_at_s = 0.0
        self._look_round_at_s = math.inf
        self._statuses = Statuses(self._link, self._topics, lambda job: job_status(self.state, job, self._clock()))
        self._dispatch = Dispatch(
            self, self._topics, self._keeper, self._effects, self._room, self._statuses, self.drops, self.guard
        )
        self._tasks = Tasks()
        self._stop = asyncio.Event()
        crew = Crew(self._link, self._topics, self.drops)
        intake = Intake(
            self, config, self._topics, self._exchange, self._keeper, self._effects, self._room, self.drops, crew
        )
        tools = Tools(self._link, self._topics, self._exchange, intake, crew, self.drops, self._clock, self.guard)
        authority = b"" if self._identity is None else (self._identity.folder / "ca.pem").read_bytes()
        self._reception = Reception(self, tools, authority=authority)

    # --- life --------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Replay, connect, serve until `stop` is set."""
        self._stop = stop
        await self._link.subscribe(*self._topics.aggregator_filters())
        async with self._link:
            carriers = [self._postman.carry() for _ in range(WINDOW)]
            for loop in (self._reception.receive(), *carriers, self._statuses.publish(), self._tick()):
                self._tasks.loop(loop, stop)
            self._tasks.loop(keep_renewed(self._identity, self._link), stop)
            self._tasks.loop(sdnotify.keep_watchdog_fed(), stop)
            self._resume()
            sdnotify.notify("READY=1")
            await stop.wait()
            sdnotify.notify("STOPPING=1")
            await self._tasks.end()
            self._memory.keep(at_least_s=0.0)
            if self._link.connected:
                with contextlib.suppress(LinkError, asyncio.TimeoutError):  # the last will says the same
                    await asyncio.wait_for(self._say_presence(online=False), GOODBYE_S)
        await self._exchange.close()
        self._effects.close()
        self._sealer.close()

    def _resume(self) -> None:
        """Go on where the journal ends; blobs that nothing needs any more are left-overs of the last process."""
        self._memory.recall()
        self._keeper.clean()
        running = [job for job, known in self.state.jobs.items() if not known.ended]
        if running:
            log.info("resuming %s", ", ".join(running))
        for action in self._coordinator.restart(self._clock()):
            self.act(action)

    @property
    def state(self) -> State:
        """What the coordinator knows."""
        return self._coordinator.state

    @property
    def failed(self) -> bool:
        """Whether a part of it could not go on."""
        return self._tasks.failed

    def _presence(self, online: bool) -> messages.Presence:
        return messages.Presence("aggregator", online, self._boot, version("mas-edge"))

    async def _say_presence(self, online: bool) -> None:
        await self._link.publish(self._topics.aggregator_presence(), encode(self._presence(online)), retain=True)

    async def _greet(self) -> None:
        """On every connection. A broker that was restarted may have forgotten what it was told to retain."""
        self._exchange.nudge()
        await self._say_presence(online=True)
        self._look_round_at_s = time.monotonic() + _SETTLE_S
        self._connections += 1
        if self._connections > 1:
            self._settled_at_s = time.monotonic() + _SETTLE_S
            for job in self.state.jobs:
                self.act(PublishStatus(job))

    # --- the coordinator ---------------------------------------------------------------------------------------

    def apply(self, event: AnyEvent) -> None:
        """Let an event happen and begin what it asks for."""
        actions = self._coordinator.handle(event, self._clock())
        if actions:
            self._journal.flush()  # whatever the event is: what it asks for is begun after it is safe
        for action in actions:
            self.act(action)
        if self._journal.since_state >= EVENTS_KEPT:
            self._keep_state()
        self._reception.gate.keep_out()

    def _keep_state(self) -> None:
        """Actions are asked for again from the state after a restart, so that those of the last event are in it."""
        self._journal.keep(self.state, self._coordinator.last_s)

    def act(self, action: Action) -> None:
        """Begin what an action asks for."""
        self._dispatch.begin(action)

    def send(self, agent: str, message: messages.CancelOrder | messages.Refused) -> None:
        """Publish something to an agent, after what waits already."""
        self.post(self._topics.orders(agent), message)

    def post(self, topic: str, message: messages.Message, expiry_s: float | None = None) -> None:
        """Publish something, after what waits for the same topic already."""
        self._outbox.put(Letter(topic, message, expiry_s))

    def _not_sent(self, key: messages.OrderKey, reason: str) -> None:
        self.apply(OrderFailed(key, f"the order could not be sent: {reason}"[:1000]))

    def errand(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the loops. Its unexpected error ends the service: a job waits for what it was to do,
        and only a restart, which goes on from the journal, asks for it again.
        """
        self._tasks.errand(work, self._stop)

    def keep_record(self, record: bytes) -> messages.BlobRef:
        """Keep a job's record as a blob on offer. Raises BlobStoreError, BlobError."""
        return self._keeper.keep_record(record)

    # --- loops -------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._config.tick_s)
            give_back()  # a thousand reports that came at once leave holes that nothing else fits into
            self._journal.flush()
            self._reception.gate.look_round()
            self._memory.keep()
            if self._link.connected and time.monotonic() >= self._look_round_at_s:
                self._look_round_at_s = math.inf
                self._reception.attendance.miss_the_absent()
            if self._link.connected and time.monotonic() >= self._settled_at_s:
                self.apply(Tick())


def main(config: AggregatorConfig, verbose: bool = False) -> int:
    """Run until SIGTERM or SIGINT; the exit code of the process."""
    tidy_heap()
    state_dir = Path(config.state_dir)

    async def serve(stop: asyncio.Event) -> bool:
        url = config.store or f"sqlite:///{state_dir.resolve() / 'journal.sqlite'}"
        with contextlib.closing(Journal(url)) as journal:
            service = Service(config, journal)
            leave_alone()
            await service.run(stop)
            return not service.failed

    expected = (JournalError, BadBrokerUrl, BlobStoreError, IdentityError, RegistryError, *SEALING_ERRORS)
    return run_service("aggregator", state_dir, verbose, serve, expected, (NewerJournal, TopicError))

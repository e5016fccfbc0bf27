"""The aggregator: one asyncio process that turns messages into the coordinator's events and its actions into work.

Every event is in the journal before its actions are taken, so a killed aggregator replays the journal and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import signal
import time
import uuid
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aggregator.config import AggregatorConfig
from aggregator.coordinator import Coordinator, State, live_blobs, resume, why_unwanted
from aggregator.coordinator.actions import (
    Accumulate,
    Action,
    Average,
    CancelOrder,
    Dropped,
    Export,
    Forget,
    JobEnded,
    PrepareModel,
    PublishStatus,
    SendOrder,
)
from aggregator.coordinator.events import (
    AgentLost,
    AgentSeen,
    AnyEvent,
    BundlesReady,
    Deployed,
    EffectFailed,
    EvaluateReported,
    ModelReady,
    OrderFailed,
    Tick,
    TrainReported,
)
from aggregator.effects import EffectError, Effects
from aggregator.journal import Journal, JournalError
from aggregator.keeper import Keeper
from aggregator.record import job_status
from aggregator.requests import Requests
from models import sdnotify
from models.link.base import BadBrokerUrl, BrokerUnreachable, Drops, LinkError, Received
from models.link.mqtt import MqttLink
from models.link.transfer import BlobExchange, BlobUnavailable, Route
from models.wire import messages
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import BlobError, BlobLimits
from models.wire.codec import WireError, WrongVersion, decode, encode
from models.wire.tensors import TensorsError
from models.wire.topics import PROTOCOL, Address, TopicError, Topics

log = logging.getLogger(__name__)
#: A broker keeps an order no longer than this, however long its job would wait for the answer.
_MAX_EXPIRY_S = 30 * 86400.0
#: After a lost connection the agents come back one by one; their answers are heard before deadlines are looked at.
_SETTLE_S = 30.0
_RECONNECT_S = 60.0
Outgoing = messages.TrainOrder | messages.EvaluateOrder | messages.DeployOrder | messages.CancelOrder | messages.Refused


class Service:
    """Joins link, journal, coordinator and heavy work. One instance a process."""

    def __init__(self, config: AggregatorConfig, journal: Journal, clock: Callable[[], float] = time.time) -> None:
        self._config, self._clock = config, clock
        self._coordinator = Coordinator(journal)
        self._topics = Topics(config.fleet)
        self._boot = uuid.uuid4().hex
        state_dir = Path(config.state_dir)
        self._store = BlobStore(state_dir / "blobs", BlobLimits(max_blob_bytes=config.max_update_bytes))
        self._effects = Effects(self._store, config.max_state_bytes)
        self._link = MqttLink(
            config.broker,
            f"mas-aggregator-{config.fleet}",
            will=(self._topics.aggregator_presence(), encode(self._presence(online=False))),
            on_connected=self._greet,
        )
        self._exchange = BlobExchange(self._link, self._store)
        self._keeper = Keeper(self._store, self._exchange, self._topics, lambda: live_blobs(self.state))
        self._requests = Requests(self, clock)
        self.drops = Drops(log)
        self._outbox: asyncio.Queue[tuple[str, Outgoing]] = asyncio.Queue()
        self._connections = 0
        self._settled_at_s = 0.0
        self.failed = False
        self._changed: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._fetching: set[messages.OrderKey] = set()

    # --- life --------------------------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Replay, connect, serve until `stop` is set."""
        await self._link.subscribe(*self._topics.aggregator_filters())
        async with self._link:
            loops = [self._receive(), self._publish_orders(), self._publish_statuses(), self._tick()]
            self._tasks |= {asyncio.create_task(self._guard(loop, stop)) for loop in loops}
            self._resume()
            sdnotify.notify("READY=1")
            watchdog = asyncio.create_task(sdnotify.keep_watchdog_fed())
            await stop.wait()
            sdnotify.notify("STOPPING=1")
            for task in (watchdog, *self._tasks):
                task.cancel()
            await asyncio.gather(watchdog, *self._tasks, return_exceptions=True)
            if self._link.connected:
                with contextlib.suppress(LinkError):  # the last will says the same
                    await self._say_presence(online=False)
        await self._exchange.close()
        self._effects.close()

    def _resume(self) -> None:
        """Go on where the journal ends; blobs that nothing needs any more are left-overs of the last process."""
        self._keeper.clean()
        running = [job for job, known in self.state.jobs.items() if not known.ended]
        if running:
            log.info("resuming %s", ", ".join(running))
        for action in self._coordinator.restart(self._clock()):
            self._act(action)

    @property
    def state(self) -> State:
        """What the coordinator knows."""
        return self._coordinator.state

    async def _guard(self, work: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
        """A loop that fails is a fault of this program: say it and end; systemd starts afresh from the journal."""
        try:
            await work
        except Exception:
            log.exception("the aggregator cannot go on")
            self.failed = True
            stop.set()

    def _presence(self, online: bool) -> messages.Presence:
        return messages.Presence("aggregator", online, self._boot, version("mas-edge"))

    async def _say_presence(self, online: bool) -> None:
        await self._link.publish(self._topics.aggregator_presence(), encode(self._presence(online)), retain=True)

    async def _greet(self) -> None:
        """On every connection. A broker that was restarted may have forgotten what it was told to retain."""
        await self._say_presence(online=True)
        self._connections += 1
        if self._connections > 1:
            self._settled_at_s = time.monotonic() + _SETTLE_S
            for job in self.state.jobs:
                self._act(PublishStatus(job))

    async def _reply(self, client: str, answer: messages.Message) -> None:
        try:
            await self._link.publish(self._topics.replies(client), encode(answer), expiry_s=60.0)
        except (LinkError, WireError) as error:
            log.warning("the answer to client %s was not sent: %s", client, error)

    def keep_record(self, record: bytes) -> messages.BlobRef:
        """Keep a job's record as a blob on offer. Raises BlobStoreError, BlobError."""
        return self._keeper.keep_record(record)

    # --- the coordinator ---------------------------------------------------------------------------------------

    def apply(self, event: AnyEvent) -> None:
        """Let an event happen and begin what it asks for."""
        for action in self._coordinator.handle(event, self._clock()):
            self._act(action)

    def _act(self, action: Action) -> None:
        if isinstance(action, SendOrder):
            self._keeper.offer_for(action.message)
            self._outbox.put_nowait((action.message.key.agent, action.message))
        elif isinstance(action, CancelOrder):
            self._outbox.put_nowait((action.key.agent, messages.CancelOrder(action.key)))
        elif isinstance(action, PublishStatus):
            self._changed[action.job] = None
            self._wake.set()
        elif isinstance(action, Forget):
            self._keeper.forget(action.sha256s)
        elif isinstance(action, Dropped):
            self.drops.count(action.reason, f"{action.agent}: {action.reason}")
            if action.refused and action.key is not None:
                self._outbox.put_nowait((action.agent, messages.Refused(action.reason[:1000], action.key)))
        elif isinstance(action, JobEnded):
            log.info("job %s is %s %s", action.job, action.state, self.state.jobs[action.job].reason)
        else:
            self.spawn(self._do(action))

    async def _do(self, action: Action) -> None:
        """Heavy actions; their outcome comes back as an event."""
        with self._keeper.at_work():
            await self._do_heavy(action)

    async def _do_heavy(self, action: Action) -> None:
        if isinstance(action, Accumulate):
            await self._effects.accumulate(action)
        elif isinstance(action, PrepareModel):
            await self._effect(
                action, "prepare", self._model_ready(action, action.round, self._effects.prepare(action))
            )
        elif isinstance(action, Average):
            await self._effect(
                action, "average", self._model_ready(action, action.round + 1, self._effects.average(action))
            )
        elif isinstance(action, Export):
            await self._effect(action, "export", self._export(action))

    async def _effect(self, action: Any, what: Any, work: Coroutine[Any, Any, AnyEvent]) -> None:
        try:
            event = await work
        except (EffectError, BlobStoreError, BlobError, TensorsError, OSError, ValueError) as error:
            log.exception("%s of job %s failed", what, action.job)
            event = EffectFailed(action.job, getattr(action, "split", ""), what, str(error)[:1000])
        self.apply(event)

    async def _model_ready(
        self, action: PrepareModel | Average, round_: int, work: Coroutine[Any, Any, messages.BlobRef]
    ) -> AnyEvent:
        return ModelReady(action.job, action.split, round_, await work)

    async def _export(self, action: Export) -> AnyEvent:
        return BundlesReady(action.job, await self._effects.export(action, version("mas-edge")))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` beside the loops; its unexpected errors are logged."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed", exc_info=task.exception())

    # --- loops -------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._config.tick_s)
            if self._link.connected and time.monotonic() >= self._settled_at_s:
                self.apply(Tick())

    async def _publish_orders(self) -> None:
        while True:
            agent, message = await self._outbox.get()
            # A broker that is away is no fault of the agents: their orders wait here.
            while not self._link.connected:
                with contextlib.suppress(BrokerUnreachable):
                    await self._link.wait_connected(_RECONNECT_S)
            if isinstance(message, messages.CancelOrder | messages.Refused):
                await self._publish_order(agent, message, None)
            elif not why_unwanted(self.state, message.key):
                await self._publish_order(agent, message, min(message.ttl_s, _MAX_EXPIRY_S))

    async def _publish_order(self, agent: str, message: Outgoing, expiry_s: float | None) -> None:
        try:
            await self._link.publish(self._topics.orders(agent), encode(message), expiry_s=expiry_s)
        except (LinkError, WireError) as error:
            log.warning("%s for %s was not sent: %s", type(message).__name__, agent, error)
            if not isinstance(message, messages.CancelOrder | messages.Refused):
                self.apply(OrderFailed(message.key, f"the order could not be sent: {error}"[:1000]))

    async def _publish_statuses(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = list(self._changed), {}
            for job in changed:
                try:
                    status = encode(job_status(self.state, job, self._clock()))
                    await self._link.publish(self._topics.job_status(job), status, retain=True)
                except (LinkError, WireError) as error:
                    log.warning("status of job %s was not published: %s", job, error)
            await asyncio.sleep(0.2)  # several changes within a moment are one message

    async def _receive(self) -> None:
        async for received in self._link.messages():
            try:
                self._handle(received)
            except TopicError as error:
                self.drops.count("topic", str(error))
            except WrongVersion as error:
                self.drops.count("protocol version", f"{received.topic}: {error}")
            except WireError as error:
                self.drops.count(type(error).__name__.lower(), f"{received.topic}: {error}")

    # --- messages ----------------------------------------------------------------------------------------------

    def _handle(self, received: Received) -> None:
        address = self._topics.parse(received.topic)
        if address.kind == "presence" and not received.payload:
            return  # a retained presence that somebody cleared
        if address.kind == "presence" and address.protocol != PROTOCOL:
            self._refuse_version(address)
            return
        message = decode(received.payload, address.kind)
        if self._exchange.handle(address, message):
            return
        if address.kind == "requests":
            self.spawn(self._reply(address.name, self._requests.answer(message)))
        elif isinstance(message, messages.Presence):
            self._present(address.name, message)
        else:
            self._report(address.name, message)

    def _refuse_version(self, address: Address) -> None:
        reason = f"agent {address.name} speaks protocol {address.protocol}, this aggregator speaks {PROTOCOL}"
        self.drops.count("protocol version", reason)
        refusal = messages.Refused(f"{reason}; install the same release on both")
        topic = self._topics.orders(address.name, address.protocol)
        self.spawn(self._link.publish(topic, encode(refusal)))

    def _present(self, agent: str, message: messages.Presence) -> None:
        if message.sender != agent:
            self.drops.count("foreign sender", f"{agent} sent the presence of {message.sender}")
        elif message.online and message.capabilities is None:
            self.drops.count("presence without capabilities", f"{agent} does not say what it has")
        elif message.online and message.capabilities is not None:
            self._seen(agent, message.boot, message.capabilities)
        elif agent in self.state.agents and self.state.agents[agent].boot == message.boot:
            self.apply(AgentLost(agent, "it went offline"))

    def _seen(self, agent: str, boot: str, capabilities: messages.Capabilities) -> None:
        """An agent is here. One that is here again, still at its order, may have lost it, or we its answer, with a
        broker that was restarted: it gets the order again, and answers or ignores it.
        """
        before = self.state.agents.get(agent)
        self.apply(AgentSeen(agent, boot, capabilities))
        busy = self.state.agents[agent].busy
        if before is None or before.boot != boot or busy is None or busy != before.busy:
            return
        for action in resume(self.state, self._clock()):
            if isinstance(action, SendOrder) and action.message.key == busy:
                self._act(action)

    def _report(self, agent: str, message: Any) -> None:
        key = getattr(message, "key", None)
        if key is not None and key.agent != agent:
            self.drops.count("foreign sender", f"{agent} reported for {key.agent}")
        elif isinstance(message, messages.TrainReport):
            self._train_reported(message)
        elif isinstance(message, messages.EvaluateReport):
            self.apply(EvaluateReported(message))
        elif isinstance(message, messages.DeployReport):
            self.apply(Deployed(message))
        elif isinstance(message, messages.OrderFailed):
            self.apply(OrderFailed(message.key, message.reason, message.final, message.energy))
        elif isinstance(message, messages.Refused):
            log.warning("agent %s refuses: %s", agent, message.reason)

    def _train_reported(self, report: messages.TrainReport) -> None:
        if why_unwanted(self.state, report.key):
            self.apply(TrainReported(report))  # the coordinator drops it, with the reason
        elif report.key not in self._fetching:
            self._fetching.add(report.key)
            self.spawn(self._fetch_update(report))

    async def _fetch_update(self, report: messages.TrainReport) -> None:
        """Bring the update here and look at it before the coordinator hears of it."""
        key = report.key
        with self._keeper.at_work(report.update.sha256):
            try:
                faults = await self._check(report)
            except (BlobUnavailable, BlobError, BlobStoreError, TensorsError, LinkError, OSError) as error:
                faults = [str(error)]
            finally:
                self._fetching.discard(key)
            if faults and not why_unwanted(self.state, key):
                reason = f"the update cannot be used: {'; '.join(faults)}"[:1000]
                self._outbox.put_nowait((key.agent, messages.Refused(reason, key)))
                self.apply(OrderFailed(key, reason, energy=report.energy))
            else:
                self.apply(TrainReported(report))  # one that nobody waits for any more is dropped, with the reason

    async def _check(self, report: messages.TrainReport) -> list[str]:
        if report.update.size_bytes > self._config.max_update_bytes:
            return [f"{report.update.size_bytes} bytes, at most {self._config.max_update_bytes} are taken"]
        job = self.state.jobs[report.key.job]
        base = job.splits[report.key.split].model
        route = Route.aggregator_from_agent(self._topics, report.key.agent, report.update.sha256)
        update = await self._exchange.fetch(report.update, route, job.spec.deadline_s)
        if base is None or why_unwanted(self.state, report.key):
            return ["its round is over"]
        return await self._effects.check_update(base, update)


def main(config: AggregatorConfig, verbose: bool = False) -> int:
    """Run until SIGTERM or SIGINT; the exit code of the process."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    try:
        state_dir = Path(config.state_dir)
        state_dir.mkdir(parents=True, exist_ok=True)
        url = config.store or f"sqlite:///{state_dir.resolve() / 'journal.sqlite'}"
        with (state_dir / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.closing(Journal(url)) as journal:
                return asyncio.run(_serve(config, journal))
    except BlockingIOError:
        log.error("cannot run: another aggregator uses %s", config.state_dir)
        return 1
    except (JournalError, BadBrokerUrl, BlobStoreError, TopicError, OSError) as error:
        log.error("cannot run: %s", error)
        return 1


async def _serve(config: AggregatorConfig, journal: Journal) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    service = Service(config, journal)
    await service.run(stop)
    return 1 if service.failed else 0

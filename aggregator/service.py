"""The aggregator: one asyncio process that turns messages into the coordinator's events and its actions into work.

Every event is in the journal before its actions are taken, so a killed aggregator replays the journal and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec

from aggregator.config import AggregatorConfig
from aggregator.coordinator import Coordinator, State, live_blobs, why_unwanted
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
from aggregator.record import job_status
from aggregator.requests import Requests
from models import sdnotify
from models.link.base import BadBrokerUrl, Drops, LinkError, Received
from models.link.mqtt import MqttLink
from models.link.transfer import BlobExchange, BlobUnavailable, Route
from models.wire import messages
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import BlobError, BlobLimits, make_ref
from models.wire.codec import WireError, WrongVersion, decode, encode
from models.wire.tensors import TensorsError
from models.wire.topics import PROTOCOL, Address, TopicError, Topics

log = logging.getLogger(__name__)


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
        self._requests = Requests(self, clock)
        self._records: dict[str, str] = {}
        self.drops = Drops(log)
        self._outbox: asyncio.Queue[messages.Message] = asyncio.Queue()
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
                await self._say_presence(online=False)
        await self._exchange.close()
        self._effects.close()

    def _resume(self) -> None:
        """Go on where the journal ends; blobs that nothing needs any more are left-overs of the last process."""
        live = live_blobs(self.state)
        self._store.prune(live, 0)
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
        """A loop that fails is a fault of this program: say it and end, so that systemd starts afresh from the journal."""
        try:
            await work
        except Exception:
            log.exception("the aggregator cannot go on")
            self.failed = True
            stop.set()

    failed = False

    def _presence(self, online: bool) -> messages.Presence:
        return messages.Presence("aggregator", online, self._boot, version("mas-edge"))

    async def _say_presence(self, online: bool) -> None:
        await self._link.publish(self._topics.aggregator_presence(), encode(self._presence(online)), retain=True)

    async def _greet(self) -> None:
        await self._say_presence(online=True)

    async def _reply(self, client: str, answer: messages.Message) -> None:
        try:
            await self._link.publish(self._topics.replies(client), encode(answer), expiry_s=60.0)
        except (LinkError, WireError) as error:
            log.warning("the answer to client %s was not sent: %s", client, error)

    def keep_record(self, job: str, record: bytes) -> messages.BlobRef:
        """Keep a job's record as a blob on offer, in place of the job's last one."""
        ref = make_ref(record)
        self._store.put_bytes(record)
        self._exchange.offer(ref, self._topics.download(ref.sha256))
        last = self._records.get(job, ref.sha256)
        if last != ref.sha256:
            self._exchange.forget(last)
            self._store.discard(last)
        self._records[job] = ref.sha256
        return ref

    # --- the coordinator ---------------------------------------------------------------------------------------

    def apply(self, event: AnyEvent) -> None:
        """Let an event happen and begin what it asks for."""
        for action in self._coordinator.handle(event, self._clock()):
            self._act(action)

    def _act(self, action: Action) -> None:
        if isinstance(action, SendOrder):
            self._offer(action.message)
            self._outbox.put_nowait(action.message)
        elif isinstance(action, CancelOrder):
            self._outbox.put_nowait(messages.CancelOrder(action.key))
        elif isinstance(action, PublishStatus):
            self._changed[action.job] = None
            self._wake.set()
        elif isinstance(action, Forget):
            for sha256 in action.sha256s:
                self._exchange.forget(sha256)
                self._store.discard(sha256)
        elif isinstance(action, Dropped):
            self.drops.count(action.reason, f"{action.agent}: {action.reason}")
            if action.refused and action.key is not None:
                self._outbox.put_nowait(messages.Refused(action.reason, action.key))
        elif isinstance(action, JobEnded):
            log.info("job %s is %s %s", action.job, action.state, self.state.jobs[action.job].reason)
        else:
            self.spawn(self._do(action))

    def _offer(self, order: messages.TrainOrder | messages.EvaluateOrder | messages.DeployOrder) -> None:
        """Serve every blob that an order names; many orders share one blob, which is published once for all."""
        blobs = (order.manifest, *(f.blob for f in order.files)) if isinstance(order, messages.DeployOrder) else (order.base,)
        for blob in blobs:
            self._exchange.offer(blob, self._topics.download(blob.sha256))

    async def _do(self, action: Action) -> None:
        """Heavy actions; their outcome comes back as an event."""
        if isinstance(action, Accumulate):
            await self._effects.accumulate(action)
        elif isinstance(action, PrepareModel):
            await self._effect(action, "prepare", self._model_ready(action, action.round, self._effects.prepare(action)))
        elif isinstance(action, Average):
            await self._effect(action, "average", self._model_ready(action, action.round + 1, self._effects.average(action)))
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
            self.apply(Tick())

    async def _publish_orders(self) -> None:
        while True:
            message = await self._outbox.get()
            key = getattr(message, "key")
            expiry_s = getattr(message, "ttl_s", None)
            try:
                await self._link.publish(self._topics.orders(key.agent), encode(message), expiry_s=expiry_s)
            except (LinkError, WireError) as error:
                log.warning("%s for %s was not sent: %s", type(message).__name__, key.agent, error)
                if not isinstance(message, messages.CancelOrder | messages.Refused):
                    self.apply(OrderFailed(key, f"the order could not be sent: {error}"))

    async def _publish_statuses(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            changed, self._changed = list(self._changed), {}
            for job in changed:
                status = encode(job_status(self.state, job, self._clock()))
                try:
                    await self._link.publish(self._topics.job_status(job), status, retain=True)
                except LinkError as error:
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
        if address.kind == "presence" and address.protocol != PROTOCOL:
            self._refuse_version(address)
            return
        if address.kind == "presence" and not received.payload:
            return  # a retained presence that somebody cleared
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
        elif message.online and message.capabilities is not None:
            self.apply(AgentSeen(agent, message.boot, message.capabilities))
        elif agent in self.state.agents and self.state.agents[agent].online:
            self.apply(AgentLost(agent, "it went offline"))

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
        try:
            faults = await self._check(report)
        except (BlobUnavailable, BlobError, BlobStoreError, TensorsError, LinkError) as error:
            faults = [str(error)]
        finally:
            self._fetching.discard(key)
        if faults:
            reason = f"the update cannot be used: {'; '.join(faults)}"[:1000]
            self._outbox.put_nowait(messages.Refused(reason, key))
            self._store.discard(report.update.sha256)
            self.apply(OrderFailed(key, reason, energy=report.energy))
        else:
            self.apply(TrainReported(report))

    async def _check(self, report: messages.TrainReport) -> list[str]:
        if report.update.size_bytes > self._config.max_update_bytes:
            return [f"{report.update.size_bytes} bytes, at most {self._config.max_update_bytes} are taken"]
        job = self.state.jobs[report.key.job]
        base = job.splits[report.key.split].model
        route = Route.aggregator_from_agent(self._topics, report.key.agent, report.update.sha256)
        update = await self._exchange.fetch(report.update, route, job.spec.deadline_s)
        return await self._effects.check_update(base, update) if base is not None else ["its round is over"]


def main(config: AggregatorConfig, verbose: bool = False) -> int:
    """Run until SIGTERM or SIGINT; the exit code of the process."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )
    try:
        Path(config.state_dir).mkdir(parents=True, exist_ok=True)
        url = config.store or f"sqlite:///{Path(config.state_dir).resolve() / 'journal.sqlite'}"
        with contextlib.closing(Journal(url)) as journal:
            return asyncio.run(_serve(config, journal))
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

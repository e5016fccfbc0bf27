"""The agent's daemon: MQTT session, presence, order queue, blob store, bundles, meter. Imports no torch.

One order is worked on at a time; messages are handled meanwhile. Only the trainer child uses memory worth naming.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from pathlib import Path

import msgspec

from edge_agent import bundle, health
from edge_agent.allowance import Allowance
from edge_agent.announce import Announcer
from edge_agent.budget import BudgetError
from edge_agent.clerk import Clerk
from edge_agent.config import AgentConfig
from edge_agent.cpu import CpuClock
from edge_agent.disk import Disk, let_go
from edge_agent.duty import Duty
from edge_agent.inventory import Inventory, InventoryError, take_inventory
from edge_agent.kept import FinishedFiles
from edge_agent.ledger import Ledger
from edge_agent.masking import MaskedRounds
from edge_agent.newest import NewestOrders
from edge_agent.orders import OrderQueue
from edge_agent.power.base import Meter, PowerSourceError
from edge_agent.power.calibration import kept_in
from edge_agent.power.discover import open_meter
from edge_agent.snapshot import StatusBoard
from edge_agent.state_dir import NewerState, StateDirError, check_version, prepare
from edge_agent.telemetry import Teller
from edge_agent.trainer.protocol import Step
from edge_agent.trainer_process import TrainerProcess, trainer_setup
from edge_agent.uploads import Uploads
from edge_agent.verify import ERRORS as IDENTITY_ERRORS
from edge_agent.verify import opener
from edge_agent.work import Worker, progress
from models import sdnotify
from models.link.base import BadBrokerUrl, Drops, LinkError
from models.link.incoming import incoming
from models.link.mqtt import MqttLink
from models.link.transfer import BlobExchange, Route
from models.service import Tasks, run_service
from models.trust.access import access
from models.trust.identity import IdentityError
from models.trust.renewal import keep_renewed
from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import BlobLimits
from models.wire.codec import WireError, encode
from models.wire.messages import BlobRef, Message, OrderKey, TrainReport
from models.wire.topics import PROTOCOL, TopicError, Topics

log = logging.getLogger(__name__)


class Daemon:
    """One device. It says everything through `_say`; `_clerk` takes what it is told, every order into `_queue`."""

    def __init__(self, config: AgentConfig, inventory: Inventory, meter: Meter, why_meter: str, cpu: CpuClock) -> None:
        reach = access(config.broker, config.fleet, config.identity, "agent", config.id)
        self._identity = reach.identity
        config = msgspec.structs.replace(config, broker=reach.url)
        self._config, self._meter = config, meter
        self._topics = Topics(config.fleet)
        self._state_dir = Path(config.state_dir)
        boot = uuid.uuid4().hex
        self._allowance = Allowance(config, inventory, meter, why_meter, cpu)
        self._masked = MaskedRounds(self._state_dir, identity=self._identity, only_masked=config.only_masked)
        self._announcer = Announcer(config, inventory, meter, self._allowance, boot, self._masked)
        self._store = BlobStore(self._state_dir / "blobs", BlobLimits(max_blob_bytes=config.max_blob_bytes))
        self._link = MqttLink(
            config.broker,
            f"mas-agent-{config.fleet}-{config.id}",
            will=(self._topics.presence(config.id), encode(self._announcer.presence(online=False))),
            on_connected=self._greet,
            on_state=lambda connected, reason: self._status.write(),
            tls=reach.tls,
        )
        self._exchange = BlobExchange(self._link, self._store)
        self._ledger = Ledger(meter, cpu)
        self._teller = Teller(config.id, boot, meter, cpu)
        self._trainer = TrainerProcess(config.trainer, trainer_setup(config, inventory), cpu)
        picture = health.picture_of(config.data, inventory)
        self._worker = Worker(
            self._store, self._fetch, self._trainer, self._ledger, self._state_dir, self._tell, picture, self._masked
        )
        self._uploads = Uploads(
            self._exchange,
            self._store,
            FinishedFiles(self._state_dir),
            self._topics,
            on_arrived=self._update_arrived,
            uncounted=self._worker.uncounted,
            max_bytes=config.max_store_bytes,
        )
        self._queue = OrderQueue(config.max_queued_orders, time.monotonic)
        self._drops = Drops(log)
        self._open = opener(config, self._drops, lambda message: self._tasks.errand(self._say(message)))
        self._status = StatusBoard(
            config, meter, why_meter, self._link, self._exchange, self._queue, self._allowance, self._drops
        )
        self._duty = Duty(
            self._queue,
            self._worker,
            self._uploads,
            self._allowance,
            Disk(self._store, config.max_store_bytes, config.min_free_bytes),
            self._ledger,
            self._status,
            self._state_dir,
            picture,
            say=self._say,
            tell_refusal=lambda: self._announcer.tell_refusal(self._link),
        )
        self._tasks = Tasks()
        self._clerk = Clerk(
            config.id,
            self._queue,
            NewestOrders(self._state_dir),
            self._uploads,
            self._store,
            self._duty,
            self._masked,
            self._status,
            self._drops,
            self._tasks,
            self._say,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then say goodbye and end the trainer."""
        self._store.clean_incoming()
        bundle.clean_leftovers(self._state_dir)
        self._worker.clean_leftovers()
        self._uploads.resume(self._config.id)
        self._meter.start()
        await self._allowance.warn_of_blind_limits()
        if self._config.trainer.keep_warm:
            await self._trainer.start()
        await self._link.subscribe(*self._topics.agent_filters(self._config.id))
        async with self._link:
            for loop in (
                self._receive(),
                self._duty.work(),
                self._announcer.watch(self._link, self._status.write),
                self._announcer.tell_power(self._link, self._teller, self._status.working),
                keep_renewed(self._identity, self._link),
                sdnotify.keep_watchdog_fed(),
            ):
                self._tasks.loop(loop, stop)
            sdnotify.notify("READY=1")
            await stop.wait()
            sdnotify.notify("STOPPING=1")
            await self._tasks.end()
            await self._trainer.stop(kill=True)
            await self._exchange.close()
            if self._link.connected:
                with contextlib.suppress(LinkError):  # the last will says the same
                    await self._announcer.say_presence(self._link, online=False)
        self._meter.stop()
        self._status.write()

    @property
    def failed(self) -> bool:
        """Whether a part of it could not go on."""
        return self._tasks.failed

    async def _greet(self) -> None:
        self._exchange.nudge()
        await self._announcer.greet(self._link)

    async def _receive(self) -> None:
        async for each in incoming(self._link, self._topics, self._drops):
            if each.address.protocol != PROTOCOL:
                self._drops.count("protocol version", f"{each.received.topic}: this agent speaks {PROTOCOL}")
                continue
            message = self._open(each.address, each.message)
            if message is not None and not self._exchange.handle(each.address, message):
                self._clerk.handle(message, each.received.expiry_s)

    async def _say(self, message: Message) -> None:
        try:
            await self._link.publish(self._topics.reports(self._config.id), encode(message))
        except (LinkError, WireError) as error:
            # The aggregator asks again when it misses an answer; the answer is kept for that.
            log.warning("%s was not sent: %s", type(message).__name__, error)
            return
        if isinstance(message, TrainReport):
            self._uploads.told(message.key)

    def _update_arrived(self) -> None:
        if self._queue.current is None:
            self._ledger.switch("wait")

    async def _fetch(self, ref: BlobRef, timeout_s: float) -> tuple[Path, int]:
        route = Route.agent_from_aggregator(self._topics, self._config.id, ref.sha256)
        path = await self._exchange.fetch(ref, route, timeout_s)
        traffic = self._exchange.traffic(ref.sha256)
        self._exchange.forget(ref.sha256)
        return path, traffic.bytes_down

    def _tell(self, key: OrderKey, step: Step) -> None:
        if not self._link.connected:
            return  # nobody is helped by hearing of it later
        self._tasks.errand(self._say(progress(key, step, self._meter.power_w(), self._meter.state)))


def main(config: AgentConfig, verbose: bool = False) -> int:
    """Run until SIGTERM or SIGINT; the exit code of the process."""

    state_dir = Path(config.state_dir)

    async def serve(stop: asyncio.Event) -> bool:
        check_version(state_dir)
        prepare(state_dir, lambda: let_go(state_dir))
        cpu = CpuClock()
        inventory = take_inventory(config.data)
        meter, why = open_meter(kept_in(config.power, state_dir), cpu)
        log.info("meter: %s (%s)", meter.source, why)
        daemon = Daemon(config, inventory, meter, why, cpu)
        await daemon.run(stop)
        return not daemon.failed

    expected = (
        InventoryError,
        PowerSourceError,
        BadBrokerUrl,
        IdentityError,
        BlobStoreError,
        bundle.BundleError,
        BudgetError,
        StateDirError,
        *IDENTITY_ERRORS,
    )
    return run_service("agent", state_dir, verbose, serve, expected, (NewerState, TopicError))

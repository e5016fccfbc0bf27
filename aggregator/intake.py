"""Updates on their way here: fetched and looked at a few at a time, by this process or by its workers.

Back-pressure: an agent sends nothing before it is asked, and only `fetches_at_once` updates are asked for at a time,
each a few chunks ahead (`Route.ahead`). All others wait where they are, on the agents' disks. What waits here are
reports, one for each order at most, on disk (`Shelf`): a task is begun for those whose turn it is and for no other.
Beyond `MOST_WAITING` a report is dropped, and its order is sent again when it comes to its turn (the agent is heard of
again, or the deadline passes). An agent that falls silent for `PATIENCE_S` goes to the end of the queue, and so does an
update for which there is no room. No deadline passes for an order while its update waits for us; once its agent was
silent it has its full time once more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec

from aggregator.config import AggregatorConfig
from aggregator.coordinator import State, why_unwanted
from aggregator.coordinator.events import AnyEvent, EffectFailed, OrderFailed, ReportHere, SenderSilent, TrainReported
from aggregator.coordinator.fleet import open_order
from aggregator.effects import Checked, EffectError, Effects
from aggregator.guard import Kind
from aggregator.keeper import Keeper
from aggregator.norms import Norms
from aggregator.room import NoRoom, Room
from aggregator.shelf import Shelf
from models.link.base import Drops, LinkError
from models.link.transfer import BlobExchange, BlobStalled, BlobUnavailable, Route
from models.wire import messages
from models.wire.blobstore import BlobStoreError
from models.wire.chunks import BlobError
from models.wire.tensors import TensorsError
from models.wire.topics import Topics

log = logging.getLogger(__name__)
MOST_WAITING = 8192
PATIENCE_S = 45.0
#: For so long a fault of this machine's own disk or link is waited out, looked at again every `LOOK_S`.
ILL_S = 60.0
LOOK_S = 1.0


class Helpers(Protocol):
    """Who else may fetch and look at updates."""

    def hands(self) -> int:
        """How many updates they may have at a time; 0: there is nobody."""
        ...

    async def check(self, report: messages.TrainReport, base_sha256: str, deadline_s: float) -> Checked | None:
        """What was found of the update once it is in the store; None when they did not do it, for whatever reason."""
        ...


class IntakeFloor(Protocol):
    """What it needs of the service."""

    @property
    def state(self) -> State: ...

    def apply(self, event: AnyEvent) -> None: ...

    def send(self, agent: str, message: messages.Refused) -> None: ...

    def errand(self, work: Coroutine[Any, Any, None]) -> None: ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with an update, if anything. `kind`: how it is held against its agent; None: not at all, as where
    it did not come in time or its round is over.
    """

    faults: tuple[str, ...] = ()
    kind: Kind | None = None


_OVER = Verdict(("its round is over",))


class Intake:
    """Fetches and checks the updates of reports, and tells the coordinator what came of it."""

    def __init__(
        self,
        floor: IntakeFloor,
        config: AggregatorConfig,
        topics: Topics,
        exchange: BlobExchange,
        keeper: Keeper,
        effects: Effects,
        room: Room,
        drops: Drops,
        helpers: Helpers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._floor, self._config, self._topics, self._exchange = floor, config, topics, exchange
        self._keeper, self._effects, self._room, self._drops, self._helpers = keeper, effects, room, drops, helpers
        self._clock = clock
        self._norms = Norms(config.guard.max_norm_ratio)
        self._waiting: Shelf[messages.OrderKey] = Shelf(keeper.folder)
        self._in_hand: set[messages.OrderKey] = set()
        #: Those of whose update something may be here, although they wait again.
        self._begun: set[messages.OrderKey] = set()
        #: How many updates come by the standing subscription to all of them, and who is told when it is none.
        self.by_standing = 0
        self.on_standing_free: Callable[[], None] = lambda: None
        #: Who is told of each update that is no good: its agent, how that is held against it, and why.
        self.on_refused: Callable[[str, Kind, str], None] = lambda agent, kind, why: None
        #: When a fault of this machine was last seen, and since when without an update that could be kept.
        self._ill_s, self._ill_since_s = -math.inf, 0.0
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(messages.TrainReport)

    def __contains__(self, key: messages.OrderKey) -> bool:
        """Whether the update of this order waits, or is being brought here or looked at."""
        return key in self._waiting or key in self._in_hand

    def __len__(self) -> int:
        """How many wait or are in hand."""
        return len(self._waiting) + len(self._in_hand)

    def take(self, report: messages.TrainReport) -> bool:
        """Let a report wait for its turn: its update is brought here and looked at before the coordinator hears of it.

        False when it is here already, and when `MOST_WAITING` are: then it is dropped.
        """
        key = self._known(report.key)
        if key in self:
            return False
        if len(self) >= MOST_WAITING:
            self._drops.count("too many updates wait", f"{key.agent}, job {key.job}")
            return False
        self._waiting.put(key, self._encoder.encode(report))
        self._floor.apply(ReportHere(key))
        self.look_again()
        return True

    def _known(self, key: messages.OrderKey) -> messages.OrderKey:
        """The same key as the coordinator has it: its words are in memory once, however many messages bring them."""
        order = open_order(self._floor.state, key)
        return key if order is None else order.key

    def look_again(self) -> None:
        """Begin with those whose turn it is, as many as the hands that there are now allow."""
        limit = max(self._config.fetches_at_once, self._helpers.hands())
        while self._waiting and len(self._in_hand) < limit:
            key, report = self._waiting.pop()
            self._in_hand.add(key)
            self._floor.errand(self._bring(key, report))

    async def _bring(self, key: messages.OrderKey, waited: bytes) -> None:
        """One turn of a report. What has come of its update is kept until it is known what becomes of it."""
        report = msgspec.structs.replace(self._decoder.decode(waited), key=key)
        if key not in self._begun:
            self._begun.add(key)
            self._keeper.hold(report.update.sha256)
        verdict = await self._one_turn(report)
        self._in_hand.discard(key)
        if verdict is None:
            self._waiting.put(key, waited)  # behind all others
        else:
            self._begun.discard(key)
            self._judge(report, verdict)
            self._keeper.release(report.update.sha256)
        self.look_again()

    def _judge(self, report: messages.TrainReport, verdict: Verdict) -> None:
        """Tell the coordinator. An update that nobody waits for any more is dropped there, with the reason."""
        key = report.key
        if verdict.faults and not why_unwanted(self._floor.state, key):
            reason = f"the update cannot be used: {'; '.join(verdict.faults)}"[:1000]
            if verdict.kind is not None:
                self.on_refused(key.agent, verdict.kind, reason)
            self._floor.send(key.agent, messages.Refused(reason, key))
            self._floor.apply(OrderFailed(key, reason, energy=report.energy))
        else:
            self._floor.apply(TrainReported(report))

    async def _one_turn(self, report: messages.TrainReport) -> Verdict | None:
        """What came of it; None when it is to wait again: its agent has nothing to send for the moment, or this disk
        has no room.
        """
        if report.update.size_bytes > self._config.max_update_bytes:
            fault = f"{report.update.size_bytes} bytes, at most {self._config.max_update_bytes} are taken"
            return Verdict((fault,), "update")
        if why_unwanted(self._floor.state, report.key):
            return _OVER
        try:
            with self._room.reserved(report.update):
                return await self._look_at(report)
        except BlobStalled as error:
            log.info("%s: %s; others go first", report.key.agent, error)
            self._floor.apply(SenderSilent(report.key))
        except NoRoom as error:
            await self._room.more(error)
        except EffectError as error:  # this machine has spoilt the model itself, which no waiting mends
            self._floor.apply(EffectFailed(report.key.job, report.key.split, "average", str(error)[:1000]))
            return _OVER
        except (BlobUnavailable, BlobError, TensorsError, BlobStoreError, LinkError, OSError) as error:
            if _is_of_the_update(error):
                came = not isinstance(error, BlobUnavailable) or error.__cause__ is not None
                return Verdict((str(error),), "update" if came else None)
            if self._room.short_of_space(error):
                await self._room.more(error)
            else:
                await self._bear(error)
        return None

    async def _bear(self, error: Exception) -> None:
        """Wait a moment for this machine's own disk or link, which is no fault of any agent. Raises the error, which
        ends the service, when that has gone on for `ILL_S`: somebody must look, and a restart goes on from here.
        """
        now_s = self._clock()
        if now_s - self._ill_s >= ILL_S:  # the last one was another story
            self._ill_since_s = now_s
        self._ill_s = now_s
        if now_s - self._ill_since_s >= ILL_S:
            log.error("no update could be kept for %.0f s, for a fault of this machine: %s", ILL_S, error)
            raise error
        if now_s == self._ill_since_s:
            log.error("updates wait, for a fault of this machine: %s; check its disk", error)
        await asyncio.sleep(LOOK_S)

    async def _look_at(self, report: messages.TrainReport) -> Verdict:
        base, deadline_s = self._base_of(report.key)
        if base is None:
            return _OVER
        if self._helpers.hands():
            checked = await self._helpers.check(report, base.sha256, deadline_s)
            if checked is not None:
                return self._verdict(report, checked)
        # A thousand reports that came at once are put away before megabytes are asked for.
        await self._exchange.caught_up()
        if why_unwanted(self._floor.state, report.key):
            return _OVER
        update = await self._fetch(report, deadline_s)
        if why_unwanted(self._floor.state, report.key):
            return _OVER
        checked = await self._effects.check_update(base.sha256, update, report.masked is not None)
        self._ill_s = -math.inf
        return self._verdict(report, checked)

    def _base_of(self, key: messages.OrderKey) -> tuple[messages.BlobRef | None, float]:
        """The model that the update is to, and how long it may take. Nothing else of the state, which would stay in
        memory as it was while the update comes.
        """
        job = self._floor.state.jobs[key.job]
        return job.splits[key.split].model, job.spec.deadline_s

    def _verdict(self, report: messages.TrainReport, checked: Checked) -> Verdict:
        """What is found of an update; the norm of a masked one, which is that of its mask, says nothing."""
        if checked.faults:
            return Verdict(tuple(checked.faults), "update")
        if report.masked is not None:
            return Verdict()
        if why_unwanted(self._floor.state, report.key):
            return _OVER
        key = report.key
        if fault := self._norms.fault(key.job, key.split, key.agent, checked.norm):
            return Verdict((fault,), "norm")
        return Verdict()

    async def _fetch(self, report: messages.TrainReport, deadline_s: float) -> Path:
        """Bring an update here: by its own subscription where workers are, for then that to all updates is not there,
        or goes as soon as nothing needs it that was begun before they came.
        """
        here = not self._helpers.hands()
        make_route = Route.aggregator_from_agent if here else Route.worker_from_agent
        route = make_route(self._topics, report.key.agent, report.update.sha256)
        self.by_standing += here
        try:
            return await self._exchange.fetch(
                report.update,
                route,
                deadline_s,
                PATIENCE_S,
                lambda: not why_unwanted(self._floor.state, report.key),
            )
        finally:
            self.by_standing -= here
            if here and not self.by_standing:
                self.on_standing_free()


def _is_of_the_update(error: Exception) -> bool:
    """Whether an update, or its agent, is at fault: what it says of itself or holds is wrong, or it did not come. All
    else is a fault of this machine.
    """
    if isinstance(error, BlobUnavailable):
        return error.__cause__ is None or isinstance(error.__cause__, BlobError)
    return isinstance(error, BlobError | TensorsError)

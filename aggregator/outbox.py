"""What the aggregator has to say and the broker has not taken yet: in order for each topic, bounded, fair between them.

Bounds and what is dropped, each counted by reason:
- an order that waits already is not queued a second time, and one that is cancelled does not wait any longer;
- at most `PER_TOPIC` letters wait for one receiver: of more the oldest answer or refusal goes, else the oldest letter,
  which an order or a cancellation of a later attempt has overtaken;
- at most `IN_ALL` letters wait in all: of more an answer or a refusal is not taken. Orders and cancellations are, for
  there are no more of them than agents times `PER_TOPIC`.
A client whose answer was dropped asks again, and an agent whose refusal was dropped learns of it from its next order.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from models.link.base import BrokerUnreachable, Drops, LinkError
from models.link.outgoing import Wrap, plain
from models.wire import messages
from models.wire.codec import WireError

log = logging.getLogger(__name__)
Order = messages.TrainOrder | messages.EvaluateOrder | messages.DeployOrder | messages.UnmaskOrder
PER_TOPIC = 16
IN_ALL = 4096
#: Topics that are published on at the same time: a slow acknowledgement must not hold up a thousand orders.
WINDOW = 8
_RECONNECT_S = 60.0


@dataclass(frozen=True, slots=True)
class Letter:
    """One message and where it goes."""

    topic: str
    message: messages.Message
    expiry_s: float | None = None

    @property
    def steers(self) -> bool:
        """Whether it is an order or takes one back; all others are answers."""
        return isinstance(self.message, Order | messages.CancelOrder)


class Outbox:
    """Letters by topic; each topic's go out one after the other, the topics take turns."""

    def __init__(self, drops: Drops, per_topic: int = PER_TOPIC, in_all: int = IN_ALL) -> None:
        self._drops, self._per_topic, self._in_all = drops, per_topic, in_all
        # Tuples and a plain dict, for there are as many as agents: a thousand orders wait in half a megabyte.
        self._waiting: dict[str, tuple[Letter, ...]] = {}
        self._in_hand: set[str] = set()
        self._count = 0
        self._more = asyncio.Event()

    def __len__(self) -> int:
        """How many letters wait."""
        return self._count

    def put(self, letter: Letter) -> None:
        """Queue a letter; never waits."""
        if not letter.steers and self._count >= self._in_all:
            self._drops.count("outbox full", f"{type(letter.message).__name__} on {letter.topic}")
            return
        queue = self._waiting.get(letter.topic, ())
        if isinstance(letter.message, Order | messages.CancelOrder):
            queue = _without(queue, letter.message.key)
        queue = (*queue, letter)
        if len(queue) > self._per_topic:
            queue = self._shed(queue)
        self._count += len(queue) - len(self._waiting.get(letter.topic, ()))
        self._waiting[letter.topic] = queue
        self._more.set()

    def _shed(self, queue: tuple[Letter, ...]) -> tuple[Letter, ...]:
        gone = next((each for each in queue if not each.steers), queue[0])
        self._drops.count("outbox of one receiver full", f"{type(gone.message).__name__} on {gone.topic}")
        return tuple(each for each in queue if each is not gone)

    async def take(self) -> Letter:
        """The next letter of the topic whose turn it is; give the topic back with `done`."""
        while True:
            for topic, queue in self._waiting.items():
                if queue and topic not in self._in_hand:
                    self._in_hand.add(topic)
                    del self._waiting[topic]
                    self._waiting[topic] = queue[1:]  # behind all others
                    self._count -= 1
                    return queue[0]
            self._more.clear()
            await self._more.wait()

    def done(self, topic: str) -> None:
        """The letter taken from this topic is out, or given up: the next one may go."""
        self._in_hand.discard(topic)
        if not self._waiting.get(topic):
            self._waiting.pop(topic, None)
        if not self._waiting:
            self._waiting = {}  # an empty one keeps the room that it has needed
        self._more.set()


def _without(queue: tuple[Letter, ...], key: messages.OrderKey) -> tuple[Letter, ...]:
    """What waits but an order with this key, which is not needed any more: it comes anew, or was cancelled."""
    return tuple(each for each in queue if not (isinstance(each.message, Order) and each.message.key == key))


class Publisher(Protocol):
    """What the postman needs of the link."""

    @property
    def connected(self) -> bool: ...

    async def wait_connected(self, timeout_s: float) -> None: ...

    async def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, expiry_s: float | None = None
    ) -> None: ...


class Postman:
    """Carries letters to the broker. `unwanted` says why an order need not go any more; `failed` hears of one that
    could not be sent, and why. `wrap` makes each what it has to be where it goes.
    """

    def __init__(
        self,
        link: Publisher,
        outbox: Outbox,
        unwanted: Callable[[messages.OrderKey], str | None],
        failed: Callable[[messages.OrderKey, str], None],
        wrap: Wrap = plain,
    ) -> None:
        self._link, self._outbox, self._unwanted, self._failed = link, outbox, unwanted, failed
        self._wrap = wrap

    async def carry(self) -> None:
        """For ever; run `WINDOW` of these side by side."""
        while True:
            letter = await self._outbox.take()
            try:
                # A broker that is away is no fault of the agents: their orders wait here.
                while not self._link.connected:
                    with suppress(BrokerUnreachable):
                        await self._link.wait_connected(_RECONNECT_S)
                await self._deliver(letter)
            finally:
                self._outbox.done(letter.topic)

    async def _deliver(self, letter: Letter) -> None:
        order = letter.message if isinstance(letter.message, Order) else None
        if order is not None and self._unwanted(order.key):
            return
        try:
            # Only now, for what is wrapped may have a number in the order in which things leave.
            payload = self._wrap(letter.topic, letter.message, letter.expiry_s)
            await self._link.publish(letter.topic, payload, expiry_s=letter.expiry_s)
        except (LinkError, WireError) as error:
            log.warning("%s was not sent on %s: %s", type(letter.message).__name__, letter.topic, error)
            if order is not None:
                self._failed(order.key, str(error))

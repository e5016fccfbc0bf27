"""The orders of a device: each is done once, in order of arrival; one that comes again is answered, not done, again."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from edge_agent.work import Answer, Order
from models.wire.messages import OrderFailed, OrderKey

#: Answers kept for orders that come twice (an aggregator that was restarted asks again for what it has not got).
_ANSWERS_KEPT = 64


@dataclass(frozen=True, slots=True)
class Queued:
    """An order and the instant (monotonic) after which nobody wants its result."""

    order: Order
    expires_s: float


class OrderQueue:
    """A bounded queue with a memory. A full one refuses the newest order, since the aggregator can ask others."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._waiting: OrderedDict[OrderKey, Queued] = OrderedDict()
        self._answers: OrderedDict[OrderKey, Answer] = OrderedDict()
        self._arrived = asyncio.Event()
        self.current: OrderKey | None = None

    def offer(self, order: Order) -> Answer | None:
        """Take an order. Returns what to answer at once: an earlier answer, a refusal, or nothing."""
        key = order.key
        if key in self._answers:
            return self._answers[key]
        if key == self.current or key in self._waiting:
            return None
        if len(self._waiting) >= self._limit:
            return OrderFailed(key, f"{self._limit} orders are waiting here already; ask another agent")
        self._waiting[key] = Queued(order, self._clock() + order.ttl_s)
        self._arrived.set()
        return None

    async def take(self) -> Queued:
        """The next order; it is `current` until `done`."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        self.current, queued = self._waiting.popitem(last=False)
        return queued

    def done(self, answer: Answer | None) -> None:
        """The current order is over; `answer` is remembered (None: it was cancelled and nothing is to be said)."""
        if answer is not None and not isinstance(answer, OrderFailed):
            self._answers[answer.key] = answer
            while len(self._answers) > _ANSWERS_KEPT:
                self._answers.popitem(last=False)
        self.current = None

    def forget(self, key: OrderKey) -> None:
        """Let go of the answer to an order, so that it is done again when it comes again."""
        self._answers.pop(key, None)

    def cancel(self, key: OrderKey) -> bool:
        """Forget a waiting order; True when it is the current one, which the caller has to stop."""
        self._waiting.pop(key, None)
        return key == self.current

    def expired(self, queued: Queued) -> bool:
        """Whether nobody wants the result any more."""
        return self._clock() >= queued.expires_s

    def __len__(self) -> int:
        return len(self._waiting)

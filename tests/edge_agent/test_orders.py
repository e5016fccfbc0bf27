"""The queue of orders: done once, answered as often as asked, never more than it may hold."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from edge_agent.orders import OrderQueue
from models.wire.chunks import make_ref
from models.wire.messages import EvaluateOrder, EvaluateReport, OrderFailed, OrderKey

ORDER = EvaluateOrder(
    key=OrderKey("job", "merged", 0, "agent", 0, "evaluate"),
    tasks=("normal",),
    network="pi",
    size=32,
    base=make_ref(b"model"),
    batch_size=4,
    max_skipped_share=0.1,
    ttl_s=60.0,
)


def order(round_: int, ttl_s: float = 60.0) -> EvaluateOrder:
    return msgspec.structs.replace(ORDER, key=msgspec.structs.replace(ORDER.key, round=round_), ttl_s=ttl_s)


def report(of: EvaluateOrder) -> EvaluateReport:
    return EvaluateReport(of.key, 1, (), (), 0, (), 0, 0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 10.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def queue() -> OrderQueue:
    return OrderQueue(2, Clock())


def take(queue: OrderQueue) -> EvaluateOrder:
    """What is next; there must be something, or the wait would not end."""
    taken = asyncio.run(asyncio.wait_for(queue.take(), 5)).order
    assert isinstance(taken, EvaluateOrder)
    return taken


def test_orders_are_taken_in_the_order_they_came(queue: OrderQueue) -> None:
    assert [queue.offer(order(round_)) for round_ in (3, 1)] == [None, None]
    assert len(queue) == 2
    assert take(queue) == order(3)
    assert queue.current == order(3).key
    queue.done(None)
    assert queue.current is None
    assert take(queue) == order(1)


def test_an_order_that_waits_or_is_worked_on_is_not_taken_twice(queue: OrderQueue) -> None:
    queue.offer(order(0))
    assert queue.offer(order(0)) is None
    assert len(queue) == 1
    take(queue)
    assert queue.offer(order(0)) is None
    assert len(queue) == 0


def test_an_order_that_was_done_is_answered_again_and_not_done_again(queue: OrderQueue) -> None:
    queue.offer(order(0))
    take(queue)
    queue.done(report(order(0)))
    assert queue.offer(order(0)) == report(order(0))
    assert len(queue) == 0


def test_an_order_that_failed_is_tried_again(queue: OrderQueue) -> None:
    queue.offer(order(0))
    take(queue)
    queue.done(OrderFailed(order(0).key, "out of memory"))
    assert queue.offer(order(0)) is None
    assert take(queue) == order(0)


def test_an_order_whose_answer_was_forgotten_is_done_again(queue: OrderQueue) -> None:
    queue.offer(order(0))
    take(queue)
    queue.done(report(order(0)))
    queue.forget(order(0).key)
    queue.forget(order(5).key)
    assert queue.offer(order(0)) is None
    assert take(queue) == order(0)


def test_old_answers_are_let_go_so_that_memory_stays_bounded() -> None:
    queue = OrderQueue(1, Clock())
    for round_ in range(65):
        queue.offer(order(round_))
        take(queue)
        queue.done(report(order(round_)))
    assert queue.offer(order(64)) == report(order(64))
    assert queue.offer(order(1)) == report(order(1))
    assert queue.offer(order(0)) is None, "the oldest of 65 is done again"
    assert len(queue) == 1


def test_a_full_queue_refuses_the_newest_and_says_what_to_do(queue: OrderQueue) -> None:
    queue.offer(order(0))
    queue.offer(order(1))
    refusal = queue.offer(order(2))
    assert isinstance(refusal, OrderFailed)
    assert refusal.key == order(2).key
    assert refusal.reason == "2 orders are waiting here already; ask another agent"
    assert not refusal.final
    assert queue.offer(order(1)) is None, "those that wait are not refused"
    take(queue)
    assert queue.offer(order(2)) is None, "there is room again"


def test_a_waiting_order_is_cancelled_and_the_current_one_is_the_callers(queue: OrderQueue) -> None:
    queue.offer(order(0))
    queue.offer(order(1))
    assert not queue.cancel(order(1).key)
    assert len(queue) == 1
    take(queue)
    assert queue.cancel(order(0).key)
    assert not queue.cancel(order(5).key)
    queue.done(None)
    assert queue.offer(order(0)) is None
    assert len(queue) == 1, "a cancelled order has no answer to give"


def test_an_order_expires_by_the_time_it_was_given() -> None:
    clock = Clock()
    queue = OrderQueue(2, clock)
    queue.offer(order(0, ttl_s=5.0))
    queued = asyncio.run(queue.take())
    clock.now_s = 14.9
    assert not queue.expired(queued)
    clock.now_s = 15.0
    assert queue.expired(queued)


def test_taking_waits_for_an_order() -> None:
    async def test() -> None:
        queue = OrderQueue(2, Clock())
        taking = asyncio.create_task(queue.take())
        await asyncio.sleep(0)
        assert not taking.done()
        queue.offer(order(0))
        assert (await asyncio.wait_for(taking, 5)).order == order(0)

    asyncio.run(test())

from __future__ import annotations

import errno
import multiprocessing.context
import os
import signal
import threading
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import pytest
import torch
from simulated import clients

from models.networks import build_network, export_state
from models.state import State
from models.wire.chunks import make_ref
from models.wire.messages import EvaluateOrder, OrderKey
from models.wire.tensors import encode_tensors
from tools.simulate.inprocess import LocalLane, in_process
from tools.simulate.outbox import PER_LANE, Outbox
from tools.simulate.pool import MAX_LOSSES, ExecutorError, LaneLost, Pool, started
from tools.simulate.processes import ProcessLane, processes
from tools.simulate.worker import Assignment, Outcome, Stopped, Worker, WorkerSettings

LIMIT_S = 60.0


def assignment(number: int = 0, agent: int = 0) -> Assignment:
    client = clients(3)[agent]
    order = EvaluateOrder(
        key=OrderKey("job", "s", number, client.agent, 0, "evaluate"),
        tasks=("depth_zbuffer",),
        network="pi",
        size=32,
        base=make_ref(b"base"),
        batch_size=8,
        max_skipped_share=0.0,
        ttl_s=1.0,
        side="val",
    )
    return Assignment(client.setup, order)


@dataclass
class FakeLane:
    """Answers with nothing in it; loses the works whose numbers are in `losing`, each as often as it is named there."""

    losing: list[int] = field(default_factory=list)
    renewable: bool = True
    gate: threading.Event | None = None
    started: threading.Event = field(default_factory=threading.Event)
    done: list[int] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    closed: bool = False

    def do(self, assignment: Assignment, base: State) -> Outcome:
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(LIMIT_S)
        number = assignment.order.key.round
        if self.closed or number in self.losing:
            if number in self.losing:
                self.losing.remove(number)
            raise LaneLost("it went away")
        self.done.append(number)
        return Outcome(None, None, {}, 0.0, 0.0, number)  # type: ignore[arg-type]

    def forget(self, sha256s: Sequence[str]) -> None:
        self.forgotten += sha256s

    def renew(self) -> None:
        if not self.renewable:
            raise LaneLost("it cannot come back")

    def close(self) -> None:
        self.closed = True
        if self.gate is not None:
            self.gate.set()


def test_a_work_whose_lane_is_lost_is_done_again_and_counted() -> None:
    pool = Pool("fake", "cpu", [FakeLane([1])])
    results = [pool.submit(assignment(number), {}).result(LIMIT_S).images for number in range(3)]
    assert (results, pool.lost) == ([0, 1, 2], 1)
    pool.close()


def test_a_work_that_loses_lane_after_lane_is_given_up() -> None:
    lane = FakeLane([7] * MAX_LOSSES)
    pool = Pool("fake", "cpu", [lane])
    with pytest.raises(ExecutorError, match="3 workers were lost over one order"):
        pool.submit(assignment(7), {}).result(LIMIT_S)
    assert pool.submit(assignment(8), {}).result(LIMIT_S).images == 8, "the next work is done"
    pool.close()


def test_another_lane_takes_over_from_one_that_does_not_come_back() -> None:
    gone, left = FakeLane([0, 1, 2, 3], renewable=False), FakeLane()
    pool = Pool("fake", "cpu", [gone, left])
    results = [future.result(LIMIT_S).images for future in [pool.submit(assignment(n), {}) for n in range(4)]]
    assert results == [0, 1, 2, 3]
    assert pool.lost <= 1
    pool.close()


def test_without_a_lane_left_every_work_fails_with_the_reason() -> None:
    pool = Pool("fake", "cpu", [FakeLane([0], renewable=False)])
    waiting = pool.submit(assignment(0), {})
    with pytest.raises(ExecutorError, match="it cannot come back"):
        waiting.result(LIMIT_S)
    with pytest.raises(ExecutorError, match="no worker is left"):
        pool.submit(assignment(1), {})
    pool.close()


def test_a_cancelled_work_does_not_keep_others_from_hearing_that_no_lane_is_left() -> None:
    lane = FakeLane([0], renewable=False, gate=threading.Event())
    pool = Pool("fake", "cpu", [lane])
    running, cancelled, waiting = (pool.submit(assignment(number), {}) for number in range(3))
    assert lane.started.wait(LIMIT_S)
    assert cancelled.cancel()
    assert lane.gate is not None
    lane.gate.set()
    for future in (running, waiting):
        with pytest.raises(ExecutorError, match="no worker is left"):
            future.result(LIMIT_S)
    pool.close()


def test_lanes_that_were_started_are_closed_when_a_later_one_cannot_be() -> None:
    lanes: list[FakeLane] = []

    def start() -> FakeLane:
        if len(lanes) == 2:
            raise OSError("no more")
        lanes.append(FakeLane())
        return lanes[-1]

    with pytest.raises(OSError, match="no more"):
        started(start, 3)
    assert [lane.closed for lane in lanes] == [True, True]


def test_a_process_that_cannot_be_started_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", full)
    with pytest.raises(ExecutorError, match="Resource temporarily unavailable; try fewer workers"):
        processes(WorkerSettings(), 2)


class Notes:
    """An executor that only keeps what it was given."""

    kind, device, threads, lost = "notes", "cpu", 1, 0

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.given: list[tuple[int, Future[Outcome]]] = []

    def submit(self, assignment: Assignment, base: State) -> Future[Outcome]:
        self.given.append((assignment.order.key.round, Future()))
        return self.given[-1][1]

    def forget(self, sha256s: Sequence[str]) -> None: ...

    def close(self) -> None: ...


def test_only_a_few_orders_for_each_lane_are_handed_on_at_a_time() -> None:
    notes = Notes(lanes=2)
    outbox = Outbox(notes)
    works = [assignment(number) for number in range(40)]
    for work in works:
        outbox.add(work.setup, work.order, {})
    keys = list(outbox.sent)
    assert notes.given == [], "nothing is waited for yet"
    for number, key in enumerate(keys):
        outbox.take(key)
        assert len(notes.given) == min(40, number + PER_LANE * 2)
    assert [number for number, _ in notes.given] == list(range(40)), "in the order sent"


def test_an_order_that_is_waited_for_goes_first_and_one_dropped_goes_nowhere() -> None:
    notes = Notes(lanes=1)
    outbox = Outbox(notes)
    for work in map(assignment, range(10)):
        outbox.add(work.setup, work.order, {})
    keys = list(outbox.sent)
    outbox.drop(keys[1])
    outbox.take(keys[9])
    assert [number for number, _ in notes.given] == [9, 0, 2, 3]
    outbox.clear()
    assert [future.cancelled() for _, future in notes.given] == [False, True, True, True]
    assert outbox.sent == {}


def test_the_driver_s_cpu_seconds_are_no_client_s(base: State) -> None:
    pool = in_process(WorkerSettings())
    try:
        pool.submit(assignment(), base).result(LIMIT_S)
        (place,) = pool._places
        assert isinstance(place.lane, LocalLane)
        worker = place.lane._worker
        assert worker is not None
        assert worker.cpu_clock is time.thread_time
    finally:
        pool.close()
    several = LocalLane(WorkerSettings(threads=2))
    before = torch.get_num_threads()
    try:
        several.do(assignment(), base)
    finally:
        torch.set_num_threads(before)
    assert several._worker is not None
    assert several._worker.cpu_clock is time.process_time, "threads of torch's own count too"


def test_a_client_goes_back_to_the_lane_that_has_its_pictures() -> None:
    gates = threading.Event(), threading.Event()
    lanes = [FakeLane(gate=gate) for gate in gates]
    pool = Pool("fake", "cpu", lanes)
    first = [pool.submit(assignment(agent, agent), {}) for agent in (0, 1)]
    assert all(lane.started.wait(LIMIT_S) for lane in lanes)
    rest = [pool.submit(assignment(10 + agent, agent), {}) for agent in (0, 1, 0, 1)]
    # The other lane is still at its first, so all the rest is for this one to choose from.
    gates[0].set()
    for future in rest:
        future.result(LIMIT_S)
    own = lanes[0].done[0]
    assert lanes[0].done == [own, 10 + own, 10 + own, 11 - own, 11 - own]
    gates[1].set()
    assert sorted(future.result(LIMIT_S).images for future in first) == [0, 1]
    pool.close()


def test_the_end_cancels_what_is_queued_and_interrupts_what_is_not() -> None:
    lane = FakeLane(gate=threading.Event())
    pool = Pool("fake", "cpu", [lane])
    running = pool.submit(assignment(0), {})
    assert lane.started.wait(LIMIT_S)
    queued = pool.submit(assignment(1), {})
    pool.close()
    with pytest.raises(ExecutorError, match="was ended"):
        running.result(LIMIT_S)
    with pytest.raises(CancelledError):
        queued.result(LIMIT_S)


@pytest.fixture(scope="module")
def base() -> State:
    return export_state(build_network("pi", ("depth_zbuffer",), 32, seed=1))


def evaluated(outcome: Outcome) -> tuple[int, float]:
    (loss,) = outcome.answer.losses  # type: ignore[union-attr]
    return outcome.images, loss.loss_sum


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced_and_gives_the_same_result(base: State) -> None:
    lane = ProcessLane(WorkerSettings())
    try:
        first = evaluated(lane.do(assignment(), base))
        pid = lane.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(LaneLost, match="exit code -9"):
            lane.do(assignment(), base)
        lane.renew()
        assert lane.pid != pid
        assert evaluated(lane.do(assignment(), base)) == first
        lane.forget([assignment().order.base.sha256])
        assert evaluated(lane.do(assignment(), base)) == first, "a base that was let go comes again"
    finally:
        lane.close()
    assert evaluated(Worker(WorkerSettings()).do(assignment(), base)) == first


def test_a_worker_stops_between_two_batches(base: State) -> None:
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return True

    with pytest.raises(Stopped, match="after 1 of"):
        Worker(WorkerSettings(), stopped).do(assignment(), base)
    assert asked == [1]


def test_closing_ends_a_work_in_this_process(base: State) -> None:
    pool = in_process(WorkerSettings())
    pool.submit(assignment(), base).result(LIMIT_S)
    pool.close()
    with pytest.raises(ExecutorError, match="no worker is left"):
        pool.submit(assignment(), base)


def test_a_fault_of_a_work_is_its_answer(base: State) -> None:
    wrong = {name: value for name, value in base.items() if not name.startswith("heads.")}
    outcome = Worker(WorkerSettings()).do(assignment(), wrong)
    assert "the base model cannot be used" in outcome.answer.reason  # type: ignore[union-attr]
    assert encode_tensors(wrong) != encode_tensors(base)

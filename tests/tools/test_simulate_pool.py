from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import pytest
from simulated import clients

from models.networks import build_network, export_state
from models.state import State
from models.wire.chunks import make_ref
from models.wire.messages import EvaluateOrder, OrderKey
from models.wire.tensors import encode_tensors
from tools.simulate.inprocess import in_process
from tools.simulate.pool import MAX_LOSSES, ExecutorError, LaneLost, Pool
from tools.simulate.processes import ProcessLane
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
    return Assignment(client.setup, order, order.tasks)


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

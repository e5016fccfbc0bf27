"""A small job on a part of the demo's pictures, and executors that are watched."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import msgspec

from models.state import State
from models.wire.job import JobSpec, TrainSettings
from tools.demo.plan import PACK
from tools.simulate.clients import Client, clients_of
from tools.simulate.pool import Executor
from tools.simulate.settings import arrange_clients
from tools.simulate.worker import Assignment, Outcome

TASKS = ("depth_zbuffer", "segment_semantic")
SPEC = JobSpec(
    name="small",
    tasks=TASKS,
    scheme="mas",
    size=32,
    seed=3,
    rounds=2,
    merge_rounds=1,
    clients_per_round=2,
    probe_every=1,
    train=TrainSettings(batch_size=16, lr=0.05),
)


def clients(count: int = 3) -> list[Client]:
    """Each with one building to train on; the last also tests on a building of which nobody trains."""
    train = ["alder", "birch", "cedar", "damson"][:count]
    return clients_of(PACK, arrange_clients(PACK, None, train, ["maple"]))


def changed(**settings: Any) -> JobSpec:
    return msgspec.structs.replace(SPEC, **settings)


class Watched:
    """Passes everything on to an executor, and notes it."""

    def __init__(self, inner: Executor) -> None:
        self.inner = inner
        self.kind, self.device, self.lanes, self.threads = inner.kind, inner.device, inner.lanes, inner.threads
        self.submitted: list[Assignment] = []
        self.forgotten: list[str] = []
        self.done: list[Future[Outcome]] = []

    @property
    def lost(self) -> int:
        return self.inner.lost

    @lost.setter
    def lost(self, value: int) -> None:
        self.inner.lost = value

    def submit(self, assignment: Assignment, base: State) -> Future[Outcome]:
        self.submitted.append(assignment)
        self.done.append(self.inner.submit(assignment, base))
        return self.done[-1]

    def forget(self, sha256s: Sequence[str]) -> None:
        self.forgotten += sha256s
        self.inner.forget(sha256s)

    def close(self) -> None:
        self.inner.close()

"""A lane in this process: for one core or one GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from models.state import State
from tools.simulate.pool import LaneLost, Pool
from tools.simulate.worker import Assignment, Outcome, Stopped, Worker, WorkerSettings


class LocalLane:
    """The worker is made by the thread that uses it, since torch counts its threads by thread."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._worker: Worker | None = None

    def do(self, assignment: Assignment, base: State) -> Outcome:
        """The outcome, from this very thread."""
        if self._worker is None:
            self._worker = Worker(self._settings, self._stop.is_set)
        try:
            return self._worker.do(assignment, base)
        except Stopped as error:
            raise LaneLost(str(error)) from error

    def forget(self, sha256s: Sequence[str]) -> None:
        """Nothing is kept here."""

    def renew(self) -> None:
        """It cannot be lost but by `close`."""
        raise LaneLost("it was ended")

    def close(self) -> None:
        """End the work under way after its present batch."""
        self._stop.set()


def in_process(settings: WorkerSettings) -> Pool:
    """An Executor of one worker in this process."""
    return Pool("in-process", settings.device, [LocalLane(settings)])

"""A lane in this process: for one core or one GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from models.state import State
from tools.simulate.pool import LaneLost, Pool
from tools.simulate.worker import Assignment, Outcome, Stopped, Worker, WorkerSettings


class LocalLane:
    """The worker is made by the thread that uses it, since torch counts its threads by thread.

    CPU seconds of its work are those of that thread alone where it computes by itself: what the driver spends on
    averaging beside it is no client's. With more threads, or a GPU's own, they are the whole process's.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._worker: Worker | None = None

    def do(self, assignment: Assignment, base: State) -> Outcome:
        """The outcome, from this very thread."""
        if self._worker is None:
            alone = self._settings.threads == 1 and self._settings.device == "cpu"
            cpu_clock = time.thread_time if alone else time.process_time
            self._worker = Worker(self._settings, self._stop.is_set, cpu_clock=cpu_clock)
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
    return Pool("in-process", settings.device, [LocalLane(settings)], settings.used_threads)

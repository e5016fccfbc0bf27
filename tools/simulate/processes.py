"""Lanes that are processes of this machine, with one torch thread each unless told otherwise. A base goes to each of
them once."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Literal

from models.state import State
from tools.simulate.pool import ExecutorError, LaneLost, Pool, started
from tools.simulate.worker import Assignment, Outcome, Worker, WorkerSettings

#: What the parent says: a base to keep, bases to let go, an assignment with the base it starts from.
_Keep = tuple[Literal["keep"], str, State]
_Drop = tuple[Literal["drop"], tuple[str, ...]]
_Do = tuple[Literal["do"], str, Assignment]
_KILL_AFTER_S = 5.0


class ProcessLane:
    """A spawned process; it ends when its parent does, because its pipe does."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._dropped: list[str] = []
        self._held: set[str] = set()
        self._closed = False
        self._process, self._pipe = _start(settings)

    @property
    def pid(self) -> int | None:
        """The process that does the work now."""
        return self._process.pid

    def do(self, assignment: Assignment, base: State) -> Outcome:
        """Have it done over there."""
        sha256 = assignment.order.base.sha256
        with self._lock:
            dropped, self._dropped = tuple(self._held.intersection(self._dropped)), []
        try:
            if dropped:
                self._held.difference_update(dropped)
                self._pipe.send(("drop", dropped))
            if sha256 not in self._held:
                self._pipe.send(("keep", sha256, base))
                self._held.add(sha256)
            self._pipe.send(("do", sha256, assignment))
            outcome = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(_KILL_AFTER_S)
            raise LaneLost(f"a worker process ended with exit code {self._process.exitcode}") from error
        assert isinstance(outcome, Outcome)
        return outcome

    def forget(self, sha256s: Sequence[str]) -> None:
        """Told to the process before its next work."""
        with self._lock:
            self._dropped.extend(sha256s)

    def renew(self) -> None:
        """A new process with nothing in it."""
        with self._lock:
            if self._closed:
                raise LaneLost("it was ended")
            self._pipe.close()
            self._held.clear()
            try:
                self._process, self._pipe = _start(self._settings)
            except OSError as error:
                raise LaneLost(_cannot_start(error)) from error

    def close(self) -> None:
        """Terminate it."""
        with self._lock:
            self._closed = True
            process = self._process
        process.terminate()
        process.join(_KILL_AFTER_S)
        if process.exitcode is None:
            process.kill()
            process.join()


def processes(settings: WorkerSettings, workers: int) -> Pool:
    """An Executor of `workers` processes. Raises ExecutorError when one of them cannot be started; then none is."""
    try:
        lanes = started(lambda: ProcessLane(settings), workers)
    except OSError as error:
        raise ExecutorError(_cannot_start(error)) from error
    return Pool("processes", settings.device, lanes, settings.used_threads)


def _cannot_start(error: OSError) -> str:
    return f"a worker process could not be started: {error.strerror or error}; try fewer workers"


def _start(settings: WorkerSettings) -> tuple[SpawnProcess, Connection]:
    """Raises OSError, with neither end of the pipe left open."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, settings), name="mas-simulate", daemon=True)
    # Ctrl-C is the parent's to handle, from the process's first moment on: it inherits what is blocked here. The
    # tracker that comes with the first process would unblock it again, so it is there before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    except BaseException:
        ours.close()
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return process, ours


def _serve(pipe: Connection, settings: WorkerSettings) -> None:
    """The process: does what it is told until its parent is gone."""
    worker = Worker(settings)
    bases: dict[str, State] = {}
    while True:
        try:
            message: _Keep | _Drop | _Do = pipe.recv()
            if message[0] == "keep":
                bases[message[1]] = message[2]
            elif message[0] == "drop":
                for sha256 in message[1]:
                    bases.pop(sha256, None)
            else:
                pipe.send(worker.do(message[2], bases[message[1]]))
        except (EOFError, OSError):
            return

"""What every long-running service of ours needs of its process: a lock, signals, a log, tasks whose faults show."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


class Tasks:
    """The tasks of a service. A loop that fails is a fault of the program: it is logged and the service ends, so that
    systemd starts it afresh. So does an errand that others wait for; one that nobody waits for is logged only.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self.failed = False

    def loop(self, work: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
        """Run something that lasts as long as the service; `stop` is set when it fails."""
        self._start(self._guarded(work, stop))

    def errand(self, work: Coroutine[Any, Any, None], stop: asyncio.Event | None = None) -> None:
        """Run something that ends by itself; `stop`, if given, is set when it fails."""
        self._start(work if stop is None else self._guarded(work, stop))

    async def end(self) -> None:
        """Cancel everything and wait for it."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)

    async def _guarded(self, work: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
        try:
            await work
        except Exception:
            log.exception("the service cannot go on")
            self.failed = True
            stop.set()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task failed", exc_info=task.exception())


def run_service(
    what: str,
    state_dir: Path,
    verbose: bool,
    serve: Callable[[asyncio.Event], Awaitable[bool]],
    expected: tuple[type[Exception], ...],
    lasting: tuple[type[Exception], ...] = (),
) -> int:
    """Run `serve` until SIGTERM or SIGINT sets its event; the exit code of the process, 1 when it returns False.

    `expected` errors, and a state directory that another process uses, are logged without a traceback: exit code 1.
    So are `lasting` ones, which no further start mends: exit code 2, at which systemd leaves the service alone.
    """
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s"
    )

    async def until_stopped() -> bool:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        return await serve(stop)

    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        file = (state_dir / "lock").open("w")
    except OSError as error:
        log.error(
            "cannot run: the state directory %s cannot be written: %s; mount it read-write, make room, or name another",
            state_dir,
            error.strerror or error,
        )
        return 1
    try:
        with file as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return 0 if asyncio.run(until_stopped()) else 1
    except BlockingIOError:
        log.error("cannot run: another %s uses %s", what, state_dir)
    except OSError as error:
        log.error("cannot run: %s", error)
    except lasting as error:
        log.error("cannot run: %s", error)
        return 2
    except expected as error:
        log.error("cannot run: %s", error)
    return 1

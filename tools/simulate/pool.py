"""Who does the work: a queue of assignments before one or more lanes, each a worker somewhere.

A lane that is lost (its process died, its machine went away) is started again, and its assignment goes to whichever
lane is free next. Results do not depend on who computes them: neither a loss nor the number of lanes changes a bit,
as long as all lanes are on the same kind of processor with the same torch and as many threads each. On a cluster of
different machines the last bits depend on who computed what.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from edge_agent.trainer.protocol import Setup
from models.state import State
from tools.simulate.worker import Assignment, Outcome

#: How often one assignment may lose its lane before the simulation is given up.
MAX_LOSSES = 3
_ENDED = "the simulation was ended"


class ExecutorError(Exception):
    """Work that nobody is left to do, or a worker that cannot be started; the message says what to change."""


class LaneLost(Exception):
    """The worker behind a lane is gone; the message says how that was seen."""


class Executor(Protocol):
    """Does assignments, in whichever order and place, each with `threads` threads.

    `lost` counts assignments that had to be done again elsewhere.
    """

    kind: str
    device: str
    lanes: int
    threads: int
    lost: int

    def submit(self, assignment: Assignment, base: State) -> Future[Outcome]:
        """Have it done from `base`, which is the model that the order names and is not changed."""
        ...

    def forget(self, sha256s: Sequence[str]) -> None:
        """These bases are not needed any more."""
        ...

    def close(self) -> None:
        """End all workers now, whatever they are at."""
        ...


class Lane(Protocol):
    """One worker. `do` blocks; it is called by one thread only, the others by any."""

    def do(self, assignment: Assignment, base: State) -> Outcome:
        """The outcome. Raises LaneLost."""
        ...

    def forget(self, sha256s: Sequence[str]) -> None:
        """These bases will not come again."""
        ...

    def renew(self) -> None:
        """Start the worker again after it was lost. Raises LaneLost."""
        ...

    def close(self) -> None:
        """End the worker now; a `do` under way raises."""
        ...


LaneT = TypeVar("LaneT", bound=Lane)


@dataclass(slots=True)
class _Item:
    assignment: Assignment
    base: State
    future: Future[Outcome]
    losses: int = 0


@dataclass(slots=True)
class _Place:
    lane: Lane
    served: set[Setup] = field(default_factory=set)


class Pool:
    """An Executor over lanes, with one thread for each."""

    def __init__(self, kind: str, device: str, lanes: Sequence[Lane], threads: int = 1) -> None:
        self.kind, self.device, self.lanes, self.threads, self.lost = kind, device, len(lanes), threads, 0
        self._places = [_Place(lane) for lane in lanes]
        self._queue: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._alive = len(lanes)
        self._threads = [
            threading.Thread(target=self._serve, args=(place,), name=f"lane-{number}", daemon=True)
            for number, place in enumerate(self._places)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, assignment: Assignment, base: State) -> Future[Outcome]:
        """Queue it."""
        item = _Item(assignment, base, Future())
        with self._changed:
            if self._closed or not self._alive:
                raise ExecutorError("no worker is left; see what ended them")
            self._queue.append(item)
            self._changed.notify()
        return item.future

    def forget(self, sha256s: Sequence[str]) -> None:
        """Tell every lane."""
        for place in self._places:
            place.lane.forget(sha256s)

    def close(self) -> None:
        """End all lanes; what is queued is cancelled."""
        with self._changed:
            self._closed = True
            for item in self._queue:
                if not item.future.cancel():  # one that had begun on a lane that was lost
                    item.future.set_exception(ExecutorError(_ENDED))
            self._queue.clear()
            self._changed.notify_all()
        for place in self._places:
            place.lane.close()
        for thread in self._threads:
            thread.join()

    def _serve(self, place: _Place) -> None:
        while (item := self._take(place)) is not None:
            if not item.losses and not item.future.set_running_or_notify_cancel():
                continue
            try:
                outcome = place.lane.do(item.assignment, item.base)
            except LaneLost as error:
                if not self._replace(place, item, str(error)):
                    return
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the result
                item.future.set_exception(error)
            else:
                item.future.set_result(outcome)

    def _take(self, place: _Place) -> _Item | None:
        """The next item for this lane, preferably of a client whose pictures it has; None at the end."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            item = self._queue[self._choice(place)]
            self._queue.remove(item)
            place.served.add(item.assignment.setup)
            return item

    def _choice(self, place: _Place) -> int:
        """Known to this lane, else known to none, else the oldest."""
        known = set().union(*(other.served for other in self._places))
        setups = [item.assignment.setup for item in self._queue]
        mine = next((index for index, setup in enumerate(setups) if setup in place.served), None)
        fresh = next((index for index, setup in enumerate(setups) if setup not in known), None)
        return mine if mine is not None else fresh if fresh is not None else 0

    def _replace(self, place: _Place, item: _Item, reason: str) -> bool:
        """Queue a lost item again and renew its lane; False when the lane is over."""
        with self._changed:
            if self._closed:
                item.future.set_exception(ExecutorError(_ENDED))
                return False
            self.lost += 1
            item.losses += 1
            place.served.clear()
        if item.losses >= MAX_LOSSES:
            item.future.set_exception(
                ExecutorError(f"{item.losses} workers were lost over one order ({reason}); try fewer workers")
            )
        else:
            with self._changed:
                self._queue.appendleft(item)
                self._changed.notify()
        try:
            place.lane.renew()
        except LaneLost as error:
            self._bury(f"{reason}; {error}")
            return False
        return True

    def _bury(self, reason: str) -> None:
        with self._changed:
            self._alive -= 1
            if self._alive:
                return
            for item in self._queue:
                # One that had begun on a lane that was lost is running already; one that was cancelled wants nothing.
                if item.losses or item.future.set_running_or_notify_cancel():
                    item.future.set_exception(ExecutorError(f"no worker is left: {reason}"))
            self._queue.clear()


def started(start: Callable[[], LaneT], count: int) -> list[LaneT]:
    """`count` lanes; when one of them cannot be started, those before it are closed again."""
    lanes: list[LaneT] = []
    try:
        for _ in range(count):
            lanes.append(start())
    except BaseException:
        for lane in lanes:
            lane.close()
        raise
    return lanes

"""Everything a fleet says, kept for the block that runs: who is there, how boards are, what the job of now costs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import msgspec

from models.wire.messages import BoardInfo, JobStatus, Message, Presence, Telemetry
from models.wire.topics import Address
from tools.client import FleetClient
from tools.energy.tally import Tally

_LOOK_S = 0.5
_MAX_BOARDS = 4000
_MAX_PIECES = 20_000
_ENDED = ("deployed", "failed", "cancelled")


class Watch:
    """Feed it every message; `tally` is the job that is being measured, if one is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.aggregator_online = False
        self.online: set[str] = set()
        self.boards: dict[str, BoardInfo] = {}
        self.history: dict[str, list[BoardInfo]] = {}
        self.jobs: dict[str, JobStatus] = {}
        self.telemetry: dict[str, deque[tuple[float, Telemetry]]] = {}
        self.tally: Tally | None = None

    def take(self, address: Address, message: Message) -> None:
        """Note what a message says."""
        if isinstance(message, Presence):
            self._presence(address, message)
        elif isinstance(message, JobStatus):
            self.jobs[message.job] = message
        elif isinstance(message, Telemetry):
            self.telemetry.setdefault(address.name, deque(maxlen=_MAX_PIECES)).append((self._clock(), message))
            if message.board is not None:
                self._board(address.name, message.board)
        for board in getattr(message, "boards", ()):
            self._board(address.name, board)
        if self.tally is not None:
            self.tally.take(message, self._clock())

    def told(self, agent: str, start_s: float, end_s: float) -> list[tuple[float, Telemetry]]:
        """An agent's telemetry that came in a time, with the moment."""
        return [(at_s, piece) for at_s, piece in self.telemetry.get(agent, ()) if start_s <= at_s <= end_s]

    def begin(self) -> None:
        """A block begins: what boards say from here on is its history, with what they said last as its first."""
        self.history = {agent: [board] for agent, board in self.boards.items()}

    def follow(self, job: str) -> Tally:
        """Count what is said of a job from now on, and what was said of it already."""
        self.tally = tally = Tally(job)
        if job in self.jobs:
            tally.take(self.jobs[job], self._clock())
        return tally

    def active(self) -> list[JobStatus]:
        """Jobs that are not over."""
        return [status for status in self.jobs.values() if status.state not in _ENDED]

    def _presence(self, address: Address, message: Presence) -> None:
        if address.kind == "aggregator_presence":
            self.aggregator_online = message.online
            return
        (self.online.add if message.online else self.online.discard)(address.name)
        if message.capabilities is not None and message.capabilities.board is not None:
            self._board(address.name, message.capabilities.board)

    def _board(self, agent: str, board: BoardInfo) -> None:
        self.boards[agent] = board
        seen = self.history.setdefault(agent, [])
        if (not seen or seen[-1] != board) and len(seen) < _MAX_BOARDS:
            seen.append(board)


def summary(seen: list[BoardInfo]) -> tuple[BoardInfo, ...]:
    """A board's history for the record: the first, the hottest, the last, and each in which something else changed."""
    if not seen:
        return ()
    hottest = max(seen, key=lambda board: board.temperature_c if board.temperature_c is not None else -1e9)
    kept = [seen[0]]
    for board in seen[1:]:
        if board is hottest or board is seen[-1] or _steady(board) != _steady(kept[-1]):
            kept.append(board)
    return tuple(kept)


def _steady(board: BoardInfo) -> BoardInfo:
    return msgspec.structs.replace(board, temperature_c=None, battery_percent=None)


@contextlib.asynccontextmanager
async def watching_fleet(client: FleetClient, watch: Watch) -> AsyncIterator[None]:
    """Subscribe to all that is said, and pass it to `watch` as long as the block lasts."""
    await client.watch(*client.topics.observer_filters())

    async def listen() -> None:
        while True:
            said = await client.news(_LOOK_S)
            if said is not None:
                watch.take(*said)

    task = asyncio.create_task(listen())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

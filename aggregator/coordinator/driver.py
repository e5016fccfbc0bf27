"""The machine with its memory: an event is in the log before anything is done about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from aggregator.coordinator.actions import AnyAction
from aggregator.coordinator.events import AnyEvent, Restarted
from aggregator.coordinator.state import State
from aggregator.coordinator.step import step


class Log(Protocol):
    """Where events are kept; `aggregator.journal.Journal` is one, a list that lasts as long as the process another."""

    def append(self, event: AnyEvent, at_s: float) -> None:
        """Keep the event for good; returns only once it is safe, unless its loss would lose nothing."""
        ...

    def replay(self) -> Iterable[tuple[AnyEvent, float]]:
        """All events so far with their times, oldest first."""
        ...


class Coordinator:
    """Holds the state between steps. Not thread-safe: one caller at a time."""

    def __init__(self, log: Log, begin: tuple[State, float] = (State(), 0.0)) -> None:
        """Rebuild the state from `log`; follow with `restart` if it may hold a running job.

        `begin` is the state, and its time, that came before the log's first event, for a log that keeps only the last.
        """
        self._log = log
        self.state, self._last_s = begin
        for event, at_s in log.replay():
            self.state, _ = step(self.state, event, at_s)
            self._last_s = at_s

    @property
    def last_s(self) -> float:
        """When the last event happened, in seconds since the epoch; 0 before the first."""
        return self._last_s

    def restart(self, now_s: float) -> tuple[AnyAction, ...]:
        """Everything outstanding, with full time for open orders."""
        return self.handle(Restarted(), now_s)

    def handle(self, event: AnyEvent, now_s: float) -> tuple[AnyAction, ...]:
        """Let an event happen; returns what is to be done. An event that changes nothing is not logged.

        Time never runs backwards: a clock that was set back stands still until it has caught up.
        """
        now_s = max(now_s, self._last_s)
        state, actions = step(self.state, event, now_s)
        if state is not self.state:
            self._log.append(event, now_s)
            self.state, self._last_s = state, now_s
        return actions

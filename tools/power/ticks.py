"""The time of a command: instants at a steady pace until its end, which Ctrl-C only brings nearer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator


class Ticks:
    """Instants of the monotonic clock, `period_s` apart, from now until `seconds` have passed, and one at the end.

    After Ctrl-C, `interrupted` is True and the iteration ends in good order.
    """

    def __init__(
        self,
        seconds: float,
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._period_s, self._clock = period_s, clock
        self._wait = wait or threading.Event().wait
        self._seconds = seconds
        self.interrupted = False
        self.begin()

    def begin(self) -> float:
        """The window begins now, not when this was made; gives that instant."""
        self.start_s = self.now()
        self.end_s = self.start_s + self._seconds
        return self.start_s

    def now(self) -> float:
        """The time by this clock."""
        return self._clock()

    def __iter__(self) -> Iterator[float]:
        now_s = self._clock()
        yield now_s
        next_s = self.start_s
        try:
            while now_s < self.end_s:
                next_s = min(max(next_s + self._period_s, now_s), self.end_s)
                while (now_s := self._clock()) < next_s:
                    self._wait(next_s - now_s)
                yield now_s
        except KeyboardInterrupt:
            self.interrupted = True

    def passed(self, now_s: float) -> str:
        """Where we are, for people."""
        return f"{now_s - self.start_s:.0f} of {self.end_s - self.start_s:.0f} s"

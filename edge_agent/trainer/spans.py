"""When which phase ran, so that the daemon's meter can attribute joules to training, probing and evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edge_agent.trainer.protocol import Span, WorkPhase

MAX_SPANS = 1000


@dataclass(slots=True)
class SpanRecorder:
    """Collects spans in time order; consecutive spans of one phase become one, gaps included.

    At most `limit` are kept: when there are more, the shortest span that lies between two of one phase is absorbed
    by them, which misattributes the least time.
    """

    clock: Callable[[], float] = time.monotonic
    cpu_clock: Callable[[], float] = time.process_time
    limit: int = MAX_SPANS
    _spans: list[Span] = field(default_factory=list)

    @contextmanager
    def phase(self, phase: WorkPhase) -> Iterator[None]:
        """Record the body as one span of `phase`, also when it raises."""
        start_s, start_cpu_s = self.clock(), self.cpu_clock()
        try:
            yield
        finally:
            self._add(Span(phase, start_s, self.clock(), self.cpu_clock() - start_cpu_s))

    @property
    def spans(self) -> tuple[Span, ...]:
        """Everything recorded so far, in time order."""
        return tuple(self._spans)

    def duration_s(self, phase: WorkPhase) -> float:
        """Seconds spent in `phase`."""
        return sum(span.end_s - span.start_s for span in self._spans if span.phase == phase)

    def _add(self, span: Span) -> None:
        if self._spans and self._spans[-1].phase == span.phase:
            span = _joined(self._spans.pop(), span)
        self._spans.append(span)
        if len(self._spans) > max(self.limit, 3):
            self._absorb_shortest()

    def _absorb_shortest(self) -> None:
        inner = [i for i in range(1, len(self._spans) - 1) if self._spans[i - 1].phase == self._spans[i + 1].phase]
        if inner:
            i = min(inner, key=lambda i: self._spans[i].end_s - self._spans[i].start_s)
            self._spans[i - 1 : i + 2] = [_joined(*self._spans[i - 1 : i + 2])]


def _joined(*spans: Span) -> Span:
    """One span over all of them, of the first one's phase."""
    return Span(spans[0].phase, spans[0].start_s, spans[-1].end_s, sum(span.cpu_s for span in spans))

"""In which order reports reach the coordinator: that of their orders, or the one in which a fleet's came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aggregator.record import Record
from models.wire.messages import OrderKey

#: `{(split, round): agents in the order in which their updates were averaged}`.
Arrivals = Mapping[tuple[str, int], tuple[str, ...]]


class ArrivalsError(Exception):
    """The order asked for cannot be kept; the message says where."""


def arrivals_of(record: Record) -> dict[tuple[str, int], tuple[str, ...]]:
    """The order of a job that has run."""
    return {(split.split, done.round): done.agents for split in record.splits for done in split.rounds}


@dataclass(slots=True)
class Turnstile:
    """Says whose report is next. Where `arrivals` is silent, the order sent first comes first."""

    arrivals: Arrivals
    _passed: dict[tuple[str, int], int] = field(default_factory=dict)

    def next(self, sent: Iterable[OrderKey]) -> OrderKey:
        """The next of the outstanding orders, given in the order sent. Raises ArrivalsError when none may come."""
        keys = list(sent)
        for key in keys:
            place = (key.split, key.round)
            if key.kind != "train" or place not in self.arrivals:
                return key
            passed = self._passed.get(place, 0)
            if passed < len(self.arrivals[place]) and self.arrivals[place][passed] == key.agent:
                self._passed[place] = passed + 1
                return key
        waiting = "; ".join(f"{key.agent} in round {key.round} of split {key.split}" for key in keys[:5])
        raise ArrivalsError(
            f"the given arrivals do not fit this job, which waits for {waiting}; use the record of a job with the same "
            "settings, seed and clients in which no device failed"
        )

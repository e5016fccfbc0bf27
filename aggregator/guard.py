"""What devices send that cannot be used: counted by device and kind, limited in rate, and held against them.

The counts are for people (`mas fleet list`), the rate limit is for this process, and who has had `refusals` of what
counts against it within `within_s` is to be put in quarantine: that is an event of the coordinator, so that it is in
the journal and replays alike whatever the settings are by then. Single refusals are not in the journal: whoever lies
would fill the disk with them.

Where messages carry no proof of who sent them (a fleet without identities), anybody can write rubbish in a device's
name. There only what takes a sound answer to an open order is held against it: a report or an update that is no good.

Everything is bounded: `MOST_DEVICES` names are remembered, those not heard of for longest go first; kinds are few.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from aggregator.config import GuardConfig

Kind = Literal[
    "malformed",
    "oversized",
    "foreign message",
    "foreign sender",
    "not finite",
    "presence without capabilities",
    "report",
    "update",
    "norm",
    "chunk",
    "protocol version",
    "not waited for",
    "too many",
    "in quarantine",
    "not enrolled",
    "revoked",
]
#: What is held against a device even where a message is no proof of its sender.
HELD: frozenset[Kind] = frozenset({"report", "update", "norm"})
#: What is held against it where the broker lets nobody write in another's name.
HELD_OF_PROVEN: frozenset[Kind] = HELD | {"malformed", "oversized", "foreign message", "foreign sender", "chunk"}
HELD_OF_PROVEN |= {"not finite", "presence without capabilities"}
MOST_DEVICES = 4096
#: What a device says it has refused is counted by the words before the first colon; of other words than these none.
MOST_WORDS = 16
_LONGEST_WORD = 64
_LONGEST_REASON = 300
#: A device that was silent may send so many seconds' worth at once: what waited while the link was away.
BURST_S = 10.0
#: How often buckets that are full again are let go of.
_TIDY_S = 1.0
#: Of a message, that sums of many small waits may be off by.
_ROUNDING = 1e-6
_WIRE_FAULTS: dict[str, Kind] = {
    "Malformed": "malformed",
    "Oversized": "oversized",
    "WrongVersion": "protocol version",
    "NotFinite": "not finite",
    "Foreign": "foreign message",
}
#: Why a device does not belong, "" where it does; see `Guard.admission`.
Admission = Callable[[str], Literal["", "not enrolled", "revoked"]]


class DeviceStatus(msgspec.Struct, frozen=True):
    """One device. Times are seconds since the epoch.

    `online` is None for one that never said what it has. `kept_out`: "not enrolled", "revoked", or "" for one that
    belongs. `refused` counts what of it was not used, by kind; `told` what it says it has refused itself, by its words.
    """

    agent: str
    online: bool | None
    kept_out: str = ""
    refused: dict[str, int] = {}
    told: dict[str, int] = {}
    last_refusal: str = ""
    last_refused_at: float | None = None
    quarantined_since: float | None = None
    quarantined_until: float | None = None
    quarantine_reason: str = ""


class FleetStatus(msgspec.Struct, frozen=True):
    """The devices by name, at a time; `dropped` counts what this process has dropped, whoever it came from."""

    fleet: str
    at: float
    devices: tuple[DeviceStatus, ...] = ()
    dropped: dict[str, int] = {}


@dataclass(slots=True)
class Tally:
    """What was refused of one device. `told`: what the device says that it refused, by its own words."""

    refused: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    last_reason: str = ""
    last_at: float | None = None
    held_at: list[float] = field(default_factory=list)


class Guard:
    """Counts, limits and judges. `clock` is the aggregator's, in seconds since the epoch; `timer` is never set."""

    def __init__(
        self,
        config: GuardConfig,
        clock: Callable[[], float] = time.time,
        timer: Callable[[], float] = time.monotonic,
        *,
        proven: bool = False,
    ) -> None:
        """`proven`: the broker lets each device write on its own topics alone."""
        self.config = config
        #: Who belongs; a fleet with a registry puts its own here.
        self.admission: Admission = lambda agent: ""
        self._clock, self._timer = clock, timer
        self._held = HELD_OF_PROVEN if proven else HELD
        self._tallies: OrderedDict[str, Tally] = OrderedDict()
        #: When the bucket of each device will be full again, on `timer`; what is not there is full.
        self._full_at_s: dict[str, float] = {}
        self._tidy_at_s = 0.0
        self._due: dict[str, str] = {}
        #: How often something was counted, so that one sees whether there is more to keep.
        self.counted = 0

    @property
    def tallies(self) -> dict[str, Tally]:
        """What was refused, by device."""
        return dict(self._tallies)

    def recall(self, tallies: dict[str, Tally]) -> None:
        """Go on from what another process has counted."""
        self._tallies = OrderedDict(tallies)

    def admits(self, agent: str) -> bool:
        """Whether a device belongs to the fleet; a message of one that does not is counted."""
        why = self.admission(agent)
        if why:
            self.refused(agent, why, f"{agent} is {why}")
        return not why

    def passes(self, agent: str) -> bool:
        """Whether one more message of this device is within its rate; one that is not is counted, and to be dropped."""
        rate, now_s = self.config.messages_per_s, self._timer()
        if now_s >= self._tidy_at_s:
            self._tidy_at_s = now_s + _TIDY_S
            self._full_at_s = {name: at_s for name, at_s in self._full_at_s.items() if at_s > now_s}
        most = max(1.0, rate * BURST_S)
        full_at_s = max(now_s, self._full_at_s.pop(agent, now_s))
        enough = most - (full_at_s - now_s) * rate >= 1.0 - _ROUNDING
        if len(self._full_at_s) >= MOST_DEVICES:
            del self._full_at_s[next(iter(self._full_at_s))]
        # Behind all others, so that the one that goes was not heard of for longest.
        self._full_at_s[agent] = full_at_s + enough / rate
        if not enough:
            self.refused(agent, "too many", f"more than {rate:g} messages a second")
        return enough

    def refused(self, agent: str, kind: Kind, reason: str) -> None:
        """Count something of this device that was not used; `due` says when that was too much."""
        tally = self._tally(agent)
        tally.refused[kind] = tally.refused.get(kind, 0) + 1
        tally.last_reason, tally.last_at = reason[:_LONGEST_REASON], self._clock()
        if kind not in self._held:
            return
        now_s = tally.last_at
        # What a process before this one counted may be of a day to come, where its clock was wrong.
        before = (at for at in tally.held_at if now_s - self.config.within_s < at <= now_s)
        tally.held_at = [*before, now_s]
        if len(tally.held_at) >= self.config.refusals:
            times = f"{len(tally.held_at)} of what it sent refused within {self.config.within_s:g} s"
            self._due[agent] = f"{times}; the last: {kind}: {reason}"[:_LONGEST_REASON]
            tally.held_at = []

    def bad_wire(self, agent: str, error: Exception) -> None:
        """Count a message that could not be decoded (a `models.wire.codec.WireError`)."""
        self.refused(agent, _WIRE_FAULTS.get(type(error).__name__, "malformed"), str(error))

    def told(self, agent: str, reason: str) -> None:
        """Count what a device says it has refused itself."""
        told, word = self._tally(agent).told, reason.split(":", 1)[0][:_LONGEST_WORD]
        if word not in told and len(told) >= MOST_WORDS:
            word = "other"
        told[word] = told.get(word, 0) + 1

    def due(self, known: Collection[str]) -> list[tuple[str, str]]:
        """Who is to be put in quarantine now, of those that are `known`, and why; each is told once."""
        found = [(agent, why) for agent, why in self._due.items() if agent in known]
        for agent, _ in found:
            del self._due[agent]
        return found

    def _tally(self, agent: str) -> Tally:
        self.counted += 1
        tally = self._tallies.setdefault(agent, Tally())
        self._tallies.move_to_end(agent)
        for gone in _bound(self._tallies):
            self._due.pop(gone, None)
        return tally


def _bound(devices: OrderedDict[str, Tally]) -> list[str]:
    """Forget who was not heard of for longest, where there are too many; their names."""
    gone = []
    while len(devices) > MOST_DEVICES:
        gone.append(devices.popitem(last=False)[0])
    return gone

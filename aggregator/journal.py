"""The journal: every event that changed the coordinator's state, in order, in SQLite or PostgreSQL.

An event is safe when `append` returns: with SQLite's `synchronous=NORMAL` a power cut may take the last committed
events along, and an order we sent but no longer know of is a round lost. One sync an event is cheap beside a round's
minutes. `UNHURRIED` events alone go to disk together with the next one, or when `flush` is called: else each of a
thousand reports that come at once would wait for a sync. In a crash they are lost with what they tell of: an agent
whose report was not taken up says it again.

Of what is long past only the outcome is kept: after every `EVENTS_KEPT` events the state as it is takes their place,
so that neither the disk nor the time of a restart grows with a fleet's age. Errors: `JournalError`; what the database
said is its cause.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec

from aggregator.coordinator.events import AnyEvent, ReportHere
from aggregator.coordinator.state import State
from aggregator.database import Database, JournalError, NewerJournal, Row
from aggregator.reread import Rereader
from models.wire.finite import without_number

__all__ = ["EVENTS_KEPT", "SCHEMA_VERSION", "Journal", "JournalError", "NewerJournal"]

log = logging.getLogger(__name__)
#: Raised with every change that an older program could not read. Older ones are read, and have this number then.
SCHEMA_VERSION = 3
EVENTS_KEPT = 5000
#: Events whose loss in a crash loses nothing, and how many of them may wait for their way to disk.
UNHURRIED = (ReportHere,)
MOST_UNHURRIED = 256

_PAGE = 1000


class Journal:
    """An append-only list of events after a state. One writer: a second one is refused, by a lock."""

    def __init__(self, url: str) -> None:
        """Open or create the journal at an SQLAlchemy URL, e.g. `sqlite:////var/lib/mas/journal.db`."""
        self._decoder = msgspec.msgpack.Decoder(AnyEvent)
        self._state_decoder = msgspec.msgpack.Decoder(State)
        self._encoder = msgspec.msgpack.Encoder()
        self._rereader = Rereader()
        self._database = Database(url, SCHEMA_VERSION)
        self._kept = self._database.last_state
        self._seq = max(self._database.last_event, self._kept)
        self._tried = self._kept
        self._unwritten: tuple[Row, ...] = ()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many events there have been."""
        return self._seq

    @property
    def since_state(self) -> int:
        """How many events there have been since the state that is kept, or since one last could not be."""
        return self._seq - self._tried

    def append(self, event: AnyEvent, at_s: float) -> None:
        """Write the event, and those that waited; when this returns they outlive a power cut, unless it is `UNHURRIED`.
        Waits for a database that is being restarted.
        """
        rows = (*self._unwritten, Row(self._seq + 1, at_s, self._encoder.encode(event)))
        if not isinstance(event, UNHURRIED) or len(rows) > MOST_UNHURRIED:
            self._database.add(rows)
            rows = ()
        self._unwritten = rows
        self._seq += 1

    def flush(self) -> None:
        """Write what waits; when this returns every event outlives a power cut."""
        if self._unwritten:
            self._database.add(self._unwritten)
            self._unwritten = ()

    def replay(self) -> Iterator[tuple[AnyEvent, float]]:
        """All events since the state that is kept with the times they happened at, oldest first, a page at a time."""
        self.flush()
        after = self._kept
        while True:
            rows = self._database.after(after, _PAGE)
            for seq, at_s, body in rows:
                if seq != after + 1:
                    gap = f"events {after + 1} to {seq - 1} are missing from the journal"
                    raise JournalError(f"{gap}: restore a backup")
                after = seq
                yield self._decode(seq, body), at_s
            if len(rows) < _PAGE:
                return

    def _decode(self, seq: int, body: bytes) -> AnyEvent:
        try:
            event: AnyEvent = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise JournalError(f"event {seq} of the journal is damaged ({error}): restore a backup") from error
        return event

    def state(self) -> tuple[State, float]:
        """The state that `replay` goes on from and its time; an empty one at the beginning."""
        if not self._kept:
            return State(), 0.0
        _, at_s, body = self._database.state(self._kept)
        try:
            return self._state_decoder.decode(body), at_s
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            damaged = f"the journal's state after event {self._kept} is damaged ({error})"
            raise JournalError(f"{damaged}: restore a backup") from error

    def keep(self, state: State, at_s: float) -> bool:
        """Let `state`, that of now, take the place of all events so far; not if it would not come back the same.

        That one is a fault of this program, which costs room on the disk and time at a restart, and nothing else; it
        is told, and tried again only after as many events as for any other state, for it costs as much as the fleet is
        large.
        """
        self._tried = self._seq
        try:
            same = self._rereader.comes_back(state, State)
        except msgspec.MsgspecError as error:
            log.error("the journal keeps all its events: its state cannot be read back (%s)", error)
            return False
        if not same:
            log.error("the journal keeps all its events: its state is another one when read back (%s)", _unlike(state))
            return False
        self._database.put_state(Row(self._seq, at_s, self._encoder.encode(state)))
        self._kept, self._unwritten = self._seq, ()
        return True

    def close(self) -> None:
        """Write what waits, and let go of the database. May be called twice."""
        try:
            self.flush()
        except JournalError as error:
            log.warning("the last %d events are lost, and nothing with them: %s", len(self._unwritten), error)
        finally:
            self._unwritten = ()
            self._database.close()


def _unlike(state: State) -> str:
    """What of a state is not what it was, as well as one can tell."""
    return without_number(state, infinity=True) or "no number in it is to blame"

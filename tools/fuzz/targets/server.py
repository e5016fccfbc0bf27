"""What the aggregator reads back: the journal's events and states, a job's record."""

from __future__ import annotations

from pathlib import Path

import msgspec

from aggregator.coordinator.events import AnyEvent
from aggregator.coordinator.state import State
from aggregator.database import Database, Row
from aggregator.journal import SCHEMA_VERSION, Journal, JournalError
from tools.fuzz.target import Target, insist, packed

_AT_S = 1.0


def targets() -> list[Target]:
    """Each is a database that is written and opened: few inputs."""
    return [
        Target("journal: event", packed(AnyEvent), _event, (JournalError,), share=0.1),
        Target("journal: state", packed(State), _state, (JournalError,), share=0.05),
    ]


def _event(data: bytes, folder: Path) -> None:
    with _journal(folder, data, state=False) as journal:
        for event, at_s in journal.replay():
            insist(at_s == _AT_S and isinstance(event, msgspec.Struct), "no event")


def _state(data: bytes, folder: Path) -> None:
    with _journal(folder, data, state=True) as journal:
        state, at_s = journal.state()
        insist(at_s == _AT_S and isinstance(state, State), "no state")


def _journal(folder: Path, body: bytes, state: bool) -> Journal:
    """A journal with one row, which another process has written."""
    path = folder / "journal.db"
    for old in folder.glob("journal.db*"):
        old.unlink()
    url = f"sqlite:///{path}"
    database = Database(url, SCHEMA_VERSION)
    try:
        row = Row(1, _AT_S, body)
        if state:
            database.put_state(row)
        else:
            database.add([row])
    finally:
        database.close()
    return Journal(url)

"""A database that goes away for a moment: all calls wait for it, and what they did is done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

import aggregator.database as database_module
from aggregator.database import Database, JournalError, Row
from aggregator.journal import SCHEMA_VERSION


class Restarting:
    """An engine whose next `times` transactions find no database: at the beginning, or when they are committed."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine, self.times, self.committed = engine, 0, False
        self.dialect = SimpleNamespace(name="postgresql")

    def _go_away(self) -> None:
        self.times -= 1
        raise sa.exc.OperationalError("a statement", None, Exception("terminating connection"))

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        away = self.times > 0
        if away and not self.committed:
            self._go_away()
        with self.engine.begin() as connection:
            yield connection
        if away:
            self._go_away()

    @contextmanager
    def connect(self) -> Iterator[sa.Connection]:
        if self.times > 0:
            self._go_away()
        with self.engine.connect() as connection:
            yield connection

    def dispose(self) -> None:
        self.engine.dispose()


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    monkeypatch.setattr(database_module, "time", SimpleNamespace(sleep=lambda delay_s: None, monotonic=lambda: 0.0))
    found = Database(f"sqlite:///{tmp_path / 'journal.db'}", SCHEMA_VERSION)
    found.engine = Restarting(found.engine)  # type: ignore[assignment]
    for seq in (1, 2, 3):
        found.add([Row(seq, float(seq), b"event")])
    found.put_state(Row(1, 1.0, b"state"))
    yield found
    found.close()


CALLS: dict[str, tuple[Callable[[Database], Any], Any]] = {
    "add": (lambda each: each.add([Row(4, 4.0, b"event")]), None),
    "put_state": (lambda each: each.put_state(Row(2, 2.0, b"state")), None),
    "after": (lambda each: each.after(2, 10), [Row(3, 3.0, b"event")]),
    "state": (lambda each: each.state(1), Row(1, 1.0, b"state")),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("committed", [False, True])
def test_a_database_that_is_restarted_is_waited_for(database: Database, name: str, committed: bool) -> None:
    call, answer = CALLS[name]
    engine: Any = database.engine
    engine.times, engine.committed = 3, committed
    assert call(database) == answer
    assert engine.times == 0, "it was away, and asked until it was back"
    rows = database.after(0, 10)
    assert [row.seq for row in rows] == {"add": [2, 3, 4], "put_state": [3]}.get(name, [2, 3])
    assert database.state(2 if name == "put_state" else 1).body == b"state"


@pytest.mark.parametrize("name", CALLS)
def test_a_file_is_not_waited_for(database: Database, name: str) -> None:
    engine: Any = database.engine
    engine.dialect.name, engine.times = "sqlite", 1
    with pytest.raises(JournalError, match="terminating connection"):
        CALLS[name][0](database)

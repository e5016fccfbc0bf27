"""The journal: every event that changed the coordinator's state, in order, in any database SQLAlchemy knows.

SQLite by default, in WAL mode with `synchronous=FULL`: with NORMAL a power cut may take the last committed events
along, and an order we sent but no longer know of is a round lost. One sync an event is cheap beside a round's minutes.
Errors: `JournalError`; what the database said is its cause.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from aggregator.coordinator.events import AnyEvent

#: Raised with every change that an older program could not read.
SCHEMA_VERSION = 1

_METADATA = sa.MetaData()
_ABOUT = sa.Table(
    "journal_about",
    _METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
_EVENTS = sa.Table(
    "journal_events",
    _METADATA,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_s", sa.Float(53), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)
_PAGE = 1000


class JournalError(Exception):
    """The journal cannot be opened, read or written; the message says what to do."""


class Journal:
    """An append-only list of events. One writer: a second one is found out by its clashing numbers."""

    def __init__(self, url: str) -> None:
        """Open or create the journal at an SQLAlchemy URL, e.g. `sqlite:////var/lib/mas/journal.db`."""
        self._decoder = msgspec.msgpack.Decoder(AnyEvent)
        self._encoder = msgspec.msgpack.Encoder()
        with _translated(f"cannot open the journal at {_shown(url)}: check the URL, the folder and its permissions"):
            self._engine = sa.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                sa.event.listen(self._engine, "connect", _set_pragmas)
            _METADATA.create_all(self._engine)
            with self._engine.begin() as connection:
                self._check_version(connection)
                last = connection.execute(sa.select(sa.func.max(_EVENTS.c.seq))).scalar()
        self._seq = int(last or 0)

    def _check_version(self, connection: sa.Connection) -> None:
        query = sa.select(_ABOUT.c.value).where(_ABOUT.c.name == "schema_version")
        found = connection.execute(query).scalar()
        if found is None:
            connection.execute(_ABOUT.insert().values(name="schema_version", value=SCHEMA_VERSION))
        elif found != SCHEMA_VERSION:
            raise JournalError(
                f"the journal has schema version {found}, this program knows {SCHEMA_VERSION}: "
                "run the version of mas-edge that wrote it, or choose another store"
            )

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many events there are."""
        return self._seq

    def append(self, event: AnyEvent, at_s: float) -> None:
        """Write the event; when this returns it outlives a power cut."""
        row = {"seq": self._seq + 1, "at_s": at_s, "body": self._encoder.encode(event)}
        says = (
            "cannot write to the journal: check its disk, and that no other aggregator uses it; "
            "nothing was done about the event"
        )
        with _translated(says), self._engine.begin() as connection:
            connection.execute(_EVENTS.insert(), row)
        self._seq += 1

    def replay(self) -> Iterator[tuple[AnyEvent, float]]:
        """All events with the times they happened at, oldest first, a page at a time."""
        after = 0
        while True:
            rows = self._page(after)
            for seq, at_s, body in rows:
                if seq != after + 1:
                    gap = f"events {after + 1} to {seq - 1} are missing from the journal"
                    raise JournalError(f"{gap}: restore a backup")
                after = seq
                yield self._decode(seq, body), at_s
            if len(rows) < _PAGE:
                return

    def _page(self, after: int) -> list[tuple[int, float, bytes]]:
        columns = sa.select(_EVENTS.c.seq, _EVENTS.c.at_s, _EVENTS.c.body)
        query = columns.where(_EVENTS.c.seq > after).order_by(_EVENTS.c.seq).limit(_PAGE)
        with _translated("cannot read the journal: check its disk"), self._engine.connect() as connection:
            return [(int(seq), float(at_s), bytes(body)) for seq, at_s, body in connection.execute(query)]

    def _decode(self, seq: int, body: bytes) -> AnyEvent:
        try:
            event: AnyEvent = self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise JournalError(f"event {seq} of the journal is damaged ({error}): restore a backup") from error
        return event

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()


def _set_pragmas(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "the given URL"


@contextmanager
def _translated(says: str) -> Iterator[None]:
    """The one place where the database's exceptions become ours; a driver that is not installed is one of them."""
    try:
        yield
    except (SQLAlchemyError, ImportError) as error:
        raise JournalError(f"{says} ({error})") from error

"""The journal's tables, in a database that one process has, and no other can have while that one lives.

SQLite: a lock on a file beside it, in WAL mode with `synchronous=FULL`. PostgreSQL: one session, which holds an
advisory lock of its database and schema; every statement goes over that session, so that whoever has lost it has lost
the right to write, and a new session takes the lock anew or fails. Both locks end with the process, however it ends.
Errors: `JournalError`; what the database said is its cause.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

log = logging.getLogger(__name__)
T = TypeVar("T")
#: Names the lock among others that a database may know; any number will do.
_LOCK_CLASS = 0x6D6173
#: For how long the lock of a process that was just killed is waited for.
_LOCK_WAIT_S = 3.0
#: A connection that is dead without a word is found out within about this time.
_DEAD_AFTER_S = 15
_POSTGRESQL = {
    "connect_timeout": 10,
    "keepalives_idle": _DEAD_AFTER_S // 3,
    "keepalives_interval": _DEAD_AFTER_S // 3,
    "keepalives_count": 2,
    "tcp_user_timeout": _DEAD_AFTER_S * 1000,
}

#: For how long a database that went away is tried again before the process gives up and leaves it to the next one.
_RETRY_S = 8.0
_CACHE_KIB = 256
_NOT_WRITTEN = (
    "cannot write to the journal: check its disk, and that no other aggregator uses it; "
    "nothing was done about the event"
)
_NOT_READ = "cannot read the journal: check its disk"

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
_STATES = sa.Table(
    "journal_states",
    _METADATA,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_s", sa.Float(53), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
)


class JournalError(Exception):
    """The journal cannot be opened, read or written; the message says what to do."""


class NewerJournal(JournalError):
    """A journal that only a newer program can read."""


class InUse(JournalError):
    """Another process writes this journal."""


@contextmanager
def translated(says: str) -> Iterator[None]:
    """The one place where the database's exceptions become ours; a driver that is not installed is one of them."""
    try:
        yield
    except (SQLAlchemyError, ImportError, OSError) as error:
        hint = ""
        if isinstance(error, ImportError) and "psycopg" in str(error):
            hint = "; pip install 'mas-edge[postgres]'"
        # The driver's own words; what SQLAlchemy adds has the whole statement in it.
        said = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise JournalError(f"{says} ({said[0] if said else type(error).__name__}){hint}") from error


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "the given URL"


class Row(NamedTuple):
    """An event, or the state after it, as bytes."""

    seq: int
    at_s: float
    body: bytes


class Database:
    """The tables, and the lock that makes this process their only writer. Not thread-safe."""

    def __init__(self, url: str, version: int, retry_s: float = _RETRY_S) -> None:
        """Open or create. Older versions become `version`; NewerJournal, InUse, or JournalError for any other
        fault."""
        self._retry_s = retry_s
        self._lock: IO[str] | None = None
        with translated(f"cannot open the journal at {shown(url)}: check the URL, the folder and its permissions"):
            self.engine = self._engine(sa.make_url(url))
            try:
                with self.engine.begin() as connection:
                    _adopt(connection, version)
                    #: Numbers of the last event and of the state that is kept; 0 where there is none.
                    self.last_event = int(connection.execute(sa.select(sa.func.max(_EVENTS.c.seq))).scalar() or 0)
                    self.last_state = int(connection.execute(sa.select(sa.func.max(_STATES.c.seq))).scalar() or 0)
            except BaseException:
                self.close()
                raise

    def _engine(self, url: sa.URL) -> sa.Engine:
        if url.drivername in ("postgres", "postgresql"):
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() == "postgresql":
            asked = {name: value for name, value in _POSTGRESQL.items() if name not in url.query}
            engine = sa.create_engine(url, pool_size=1, max_overflow=0, connect_args=asked)
            sa.event.listen(engine, "connect", _lock_postgresql)
            return engine
        engine = sa.create_engine(url)
        if url.get_backend_name() == "sqlite":
            sa.event.listen(engine, "connect", _set_pragmas)
            if url.database and url.database != ":memory:":
                self._lock = _lock_file(Path(url.database))
        return engine

    def close(self) -> None:
        """Let go of the database, the lock last."""
        self.engine.dispose()
        if self._lock is not None:
            self._lock.close()

    def add(self, rows: Sequence[Row]) -> None:
        """Write events that follow each other, all or none; safe when this returns.

        Waits for a database that is being restarted, as all calls do.
        """
        self._patiently(_NOT_WRITTEN, lambda: self._insert(rows))

    def after(self, seq: int, limit: int) -> list[Row]:
        """The events that follow event `seq`, at most `limit`."""
        return self._patiently(_NOT_READ, lambda: self._after(seq, limit))

    def state(self, seq: int) -> Row:
        """The state that was kept after event `seq`."""

        def read() -> Row:
            with self.engine.connect() as connection:
                return _row(connection.execute(sa.select(_STATES).where(_STATES.c.seq == seq)).one())

        return self._patiently(_NOT_READ, read)

    def put_state(self, row: Row) -> None:
        """Let the state after an event take the place of that event, of all before it, and of earlier states."""

        def write() -> None:
            with self.engine.begin() as connection:
                # This state as well: a connection that is lost within a commit does not tell whether it was done.
                connection.execute(_STATES.delete().where(_STATES.c.seq <= row.seq))
                connection.execute(_STATES.insert(), row._asdict())
                connection.execute(_EVENTS.delete().where(_EVENTS.c.seq <= row.seq))

        self._patiently(_NOT_WRITTEN, write)

    def _patiently(self, says: str, work: Callable[[], T]) -> T:
        """Do something, and do it again for as long as a database that went away may be back."""
        give_up_s, waited = time.monotonic() + self._retry_s, False
        while True:
            try:
                with translated(says):
                    return work()
            except JournalError as error:
                # SQLite is a file: what is wrong with it is not mended by asking again.
                if self.engine.dialect.name == "sqlite" or not _lost_session(error) or time.monotonic() >= give_up_s:
                    raise
                if not waited:
                    log.warning("the journal's database is away, trying again for %.0f s: %s", self._retry_s, error)
                waited = True
                time.sleep(0.2)

    def _insert(self, rows: Sequence[Row]) -> None:
        try:
            with self.engine.begin() as connection:
                connection.execute(_EVENTS.insert(), [row._asdict() for row in rows])
        except sa.exc.IntegrityError:
            # A connection that is lost within a commit does not tell whether it was done.
            if self._after(rows[0].seq - 1, len(rows)) != list(rows):
                raise

    def _after(self, seq: int, limit: int) -> list[Row]:
        query = sa.select(_EVENTS).where(_EVENTS.c.seq > seq).order_by(_EVENTS.c.seq).limit(limit)
        with self.engine.connect() as connection:
            return [_row(found) for found in connection.execute(query)]


def _row(found: Sequence[Any]) -> Row:
    return Row(int(found[0]), float(found[1]), bytes(found[2]))


def _adopt(connection: sa.Connection, version: int) -> None:
    """Make the tables, or make them this version's; before anything is changed, a newer program's are left alone."""
    named, found = _ABOUT.c.name == "schema_version", None
    if sa.inspect(connection).has_table(_ABOUT.name):
        found = connection.execute(sa.select(_ABOUT.c.value).where(named)).scalar()
    if found is not None and not 1 <= found <= version:
        raise NewerJournal(
            f"the journal has schema version {found}, this program knows {version}: "
            "run the version of mas-edge that wrote it, or choose another store"
        )
    _METADATA.create_all(connection)
    if found is None:
        connection.execute(_ABOUT.insert().values(name="schema_version", value=version))
    elif found < version:
        connection.execute(_ABOUT.update().where(named).values(value=version))


def _lost_session(error: BaseException | None) -> bool:
    """Whether an error of ours came of a database that went away and may be back at once."""
    cause = error.__cause__ if isinstance(error, JournalError) else None
    return isinstance(cause, sa.exc.OperationalError | sa.exc.InterfaceError) and not isinstance(error, InUse)


def _lock_file(path: Path) -> IO[str]:
    lock = path.with_name(f"{path.name}.lock").open("w")
    try:
        _until_got(lambda: _try_flock(lock), f"the file {path}")
    except InUse:
        lock.close()
        raise
    return lock


def _try_flock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_postgresql(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
    def get() -> bool:
        cursor = connection.cursor()
        cursor.execute(f"SELECT pg_try_advisory_lock({_LOCK_CLASS}, hashtext(current_schema()))")
        got = bool(cursor.fetchone()[0])  # type: ignore[index]
        cursor.close()
        connection.commit()
        return got

    _until_got(get, "the database")


def _until_got(get: Callable[[], bool], what: str) -> None:
    give_up_s = time.monotonic() + _LOCK_WAIT_S
    while not get():
        if time.monotonic() >= give_up_s:
            raise InUse(f"another aggregator writes its journal to {what}: stop that one, or choose another store")
        time.sleep(0.1)


def _set_pragmas(connection: sa.engine.interfaces.DBAPIConnection, _: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    # Events are written once and read at a restart: pages that are kept for another reading would only fill memory.
    cursor.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    cursor.close()

"""The ledger in a SQLite file (WAL, every append fsynced), shared by processes of one machine.

The SQL is plain: the same text will serve PostgreSQL with its own placeholders.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

from lockgate.core.errors import IntegrityError, PermanentError, TemporaryError
from lockgate.core.events import Event
from lockgate.ledger.api import Head, Lease, Recorded, Row
from lockgate.ledger.chain import empty_head, make_row, recorded
from lockgate.ledger.memory import conflict, fenced, next_generation

_COLUMNS = "position, stream, version, at, actor, kind, body, previous, hash"
_INSERT = f"INSERT INTO event ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_SELECT = f"SELECT {_COLUMNS} FROM event WHERE position > ?"  # noqa: S608
_BUSY_S = 10.0
_PAGE = 1000


class SqliteLedger:
    """`Ledger` and `Leases` in one SQLite file; safe for threads and for processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with _translated(path):
            self._db = sqlite3.connect(
                path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            migrate(self._db)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _translated(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def append(
        self,
        stream: str,
        expected_version: int,
        events: Sequence[Event],
        *,
        actor: str,
        at: float,
        fence: Lease | None = None,
    ) -> tuple[Recorded, ...]:
        """See `Ledger.append`."""
        with self._transaction() as db:
            if fence is not None:
                _check_fence(db, fence)
            (version,) = db.execute(
                "SELECT COALESCE(MAX(version), 0) FROM event WHERE stream = ?", (stream,)
            ).fetchone()
            if version != expected_version:
                raise conflict(stream, expected_version, version)
            rows: list[Row] = []
            head = _head(db)
            for event in events:
                version += 1
                row = make_row(head, event, stream=stream, version=version, at=at, actor=actor)
                head = Head(position=row.position, hash=row.hash)
                rows.append(row)
            db.executemany(_INSERT, [_values(row) for row in rows])
            db.execute(
                "INSERT INTO head (id, position, hash) VALUES (1, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET position = excluded.position, hash = excluded.hash",
                (head.position, head.hash),
            )
        return tuple(recorded(row) for row in rows)

    def read(
        self, *, stream: str | None = None, after: int = 0, limit: int = 1000
    ) -> tuple[Recorded, ...]:
        """See `Ledger.read`."""
        return tuple(recorded(row) for row in self._select(stream, after, limit))

    def _select(self, stream: str | None, after: int, limit: int) -> list[Row]:
        query, values = _SELECT, [after]
        parameters: list[object] = list(values)
        if stream is not None and stream.endswith("/"):
            query += " AND stream >= ? AND stream < ?"
            parameters += [stream, stream[:-1] + "0"]  # "0" is the character after "/"
        elif stream is not None:
            query += " AND stream = ?"
            parameters.append(stream)
        with self._lock, _translated(self._path):
            found = self._db.execute(
                query + " ORDER BY position LIMIT ?", (*parameters, limit)
            ).fetchall()
        return [_row(values) for values in found]

    def rows(self, *, after: int = 0) -> Iterator[Row]:
        """See `Ledger.rows`."""
        while page := self._select(None, after, _PAGE):
            yield from page
            after = page[-1].position

    def head(self) -> Head:
        """See `Ledger.head`."""
        with self._lock, _translated(self._path):
            return _head(self._db)

    def acquire(self, name: str, holder: str, *, ttl: float, now: float) -> Lease | None:
        """See `Leases.acquire`."""
        with self._transaction() as db:
            held = _lease(db, name)
            if held and held.holder != holder and held.expires > now:
                return None
            generation = next_generation(held, holder)
            lease = Lease(name=name, holder=holder, generation=generation, expires=now + ttl)
            db.execute(
                "INSERT INTO lease (name, holder, generation, expires) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, "
                "generation = excluded.generation, expires = excluded.expires",
                (name, holder, generation, lease.expires),
            )
            return lease

    def give_back(self, lease: Lease) -> None:
        """See `Leases.give_back`."""
        with self._transaction() as db:
            db.execute(
                "UPDATE lease SET holder = '', expires = 0 "
                "WHERE name = ? AND holder = ? AND generation = ?",
                (lease.name, lease.holder, lease.generation),
            )

    def copy(self) -> tuple[bytes, int]:
        """Returns the whole ledger as a database file of its own, and its last position."""
        with _translated(self._path), self._lock:
            twin = sqlite3.connect(":memory:")
            try:
                self._db.backup(twin)
                return twin.serialize(), _head(twin).position
            finally:
                twin.close()

    def close(self) -> None:
        """See `Ledger.close`."""
        with self._lock:
            self._db.close()


def migrate(db: sqlite3.Connection) -> None:
    """Brings the schema up to date: each numbered file once, each in its own transaction."""
    db.execute("CREATE TABLE IF NOT EXISTS migration (number INTEGER NOT NULL PRIMARY KEY)")
    files = sorted(
        (
            item
            for item in resources.files("lockgate.ledger").joinpath("migrations").iterdir()
            if item.name.endswith(".sql")
        ),
        key=lambda item: item.name,
    )
    for file in files:
        number = int(file.name.split("_")[0])
        db.execute("BEGIN IMMEDIATE")
        try:
            done = db.execute("SELECT 1 FROM migration WHERE number = ?", (number,)).fetchone()
            if not done:
                for statement in file.read_text("utf-8").split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO migration (number) VALUES (?)", (number,))
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def _values(row: Row) -> tuple[object, ...]:
    return tuple(getattr(row, name) for name in _COLUMNS.split(", "))


def _row(values: tuple[object, ...]) -> Row:
    return Row(**dict(zip(_COLUMNS.split(", "), values, strict=True)))  # type: ignore[arg-type]


def _head(db: sqlite3.Connection) -> Head:
    found = db.execute("SELECT position, hash FROM head WHERE id = 1").fetchone()
    return Head(position=found[0], hash=found[1]) if found else empty_head()


def _lease(db: sqlite3.Connection, name: str) -> Lease | None:
    found = db.execute(
        "SELECT holder, generation, expires FROM lease WHERE name = ?", (name,)
    ).fetchone()
    if not found:
        return None
    return Lease(name=name, holder=found[0], generation=found[1], expires=found[2])


def _check_fence(db: sqlite3.Connection, fence: Lease) -> None:
    held = _lease(db, fence.name)
    if held is None or held.generation != fence.generation or held.holder != fence.holder:
        raise fenced(fence)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Turns the driver's errors into ours."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        text = str(error)
        if isinstance(error, sqlite3.OperationalError) and ("locked" in text or "busy" in text):
            raise TemporaryError(f"the ledger {path} is busy: {text}") from error
        if isinstance(error, sqlite3.OperationalError):
            raise PermanentError(
                f"the ledger {path} can't be used: {text}",
                hint="is the disk full, or the folder read-only?",
            ) from error
        raise IntegrityError(
            f"the ledger {path} is damaged: {text}", hint="restore it from a backup"
        ) from error

"""Samples in a SQLite file of their own, beside the ledger: many rows, none of them an event.

A batch is one transaction (WAL, synchronous NORMAL): it survives a killed process; a power failure
may cost the last moments' rows, which the judge takes as silence.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lockgate.core.errors import IntegrityError, PermanentError
from lockgate.core.traffic import Sample
from lockgate.observe.api import Totals

_FIELDS = tuple(Sample.__dataclass_fields__)
_SCHEMA = (
    f"CREATE TABLE IF NOT EXISTS sample ({', '.join(_FIELDS)})",
    "CREATE INDEX IF NOT EXISTS sample_window ON sample (route, at)",
    "CREATE TABLE IF NOT EXISTS total (route TEXT NOT NULL, version TEXT NOT NULL, "
    "requests INTEGER NOT NULL, failed INTEGER NOT NULL, bytes_out INTEGER NOT NULL, "
    "PRIMARY KEY (route, version))",
)
_INSERT = f"INSERT INTO sample VALUES ({', '.join('?' * len(_FIELDS))})"  # noqa: S608
_COUNT = (
    "INSERT INTO total VALUES (?, ?, ?, ?, ?) ON CONFLICT (route, version) DO UPDATE SET "
    "requests = requests + excluded.requests, failed = failed + excluded.failed, "
    "bytes_out = bytes_out + excluded.bytes_out"
)
_WINDOW = (
    f"SELECT {', '.join(_FIELDS)} FROM sample "  # noqa: S608
    "WHERE route = ? AND at >= ? ORDER BY at DESC LIMIT ?"
)


class SqliteSamples:
    """`Samples` in one SQLite file; safe for threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._translated():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            for statement in _SCHEMA:
                self._db.execute(statement)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise PermanentError(f"the samples in {self._path} can't be used: {error}") from error
        except sqlite3.DatabaseError as error:
            raise IntegrityError(
                f"the samples in {self._path} are damaged: {error}",
                hint="move the file away: only running judgements start anew",
            ) from error

    def record(self, samples: Sequence[Sample]) -> None:
        """See `Samples.record`."""
        rows = [tuple(getattr(sample, name) for name in _FIELDS) for sample in samples]
        counts = [(s.route, s.version, 1, int(s.failed), s.bytes_out) for s in samples]
        with self._lock, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(_INSERT, rows)
                self._db.executemany(_COUNT, counts)
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def window(self, route: str, *, since: float, limit: int = 200_000) -> Sequence[Sample]:
        """See `Samples.window`."""
        with self._lock, self._translated():
            rows = self._db.execute(_WINDOW, (route, since, limit)).fetchall()
        return [Sample(**dict(zip(_FIELDS, row, strict=True))) for row in reversed(rows)]

    def totals(self) -> Sequence[Totals]:
        """See `Samples.totals`."""
        names = ("route", "version", "requests", "failed", "bytes_out")
        with self._lock, self._translated():
            rows = self._db.execute(
                f"SELECT {', '.join(names)} FROM total ORDER BY route, version"  # noqa: S608
            ).fetchall()
        return tuple(Totals(**dict(zip(names, row, strict=True))) for row in rows)

    def prune(self, before: float) -> None:
        """See `Samples.prune`."""
        with self._lock, self._translated():
            self._db.execute("DELETE FROM sample WHERE at < ?", (before,))

    def close(self) -> None:
        """See `Samples.close`."""
        with self._lock:
            self._db.close()

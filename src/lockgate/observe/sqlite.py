"""Samples in a SQLite file of their own, beside the ledger: many rows, none of them an event.

A batch is one transaction (WAL, synchronous NORMAL): it survives a killed process; a power failure
may cost the last moments' rows, which the judge takes as silence. What the judge made of the rows
so far (a case) stands beside them with the position it reached.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lockgate.core.errors import IntegrityError, PermanentError
from lockgate.core.traffic import Sample
from lockgate.observe.api import Kept, Totals

_FIELDS = tuple(Sample.__dataclass_fields__)
_LAYOUT = 2
"""Of the file, as `PRAGMA user_version` has it; samples of an older one are dropped."""
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS sample "
    f"(id INTEGER PRIMARY KEY AUTOINCREMENT, {', '.join(_FIELDS)})",
    "CREATE INDEX IF NOT EXISTS sample_window ON sample (route, at)",
    "CREATE INDEX IF NOT EXISTS sample_log ON sample (route, id)",
    "CREATE TABLE IF NOT EXISTS total (route TEXT NOT NULL, version TEXT NOT NULL, "
    "requests INTEGER NOT NULL, failed INTEGER NOT NULL, bytes_out INTEGER NOT NULL, "
    "PRIMARY KEY (route, version))",
    "CREATE TABLE IF NOT EXISTS kept (release TEXT PRIMARY KEY, position INTEGER NOT NULL, "
    "state TEXT NOT NULL)",
    f"PRAGMA user_version = {_LAYOUT}",
)
_INSERT = (
    f"INSERT INTO sample ({', '.join(_FIELDS)}) "  # noqa: S608
    f"VALUES ({', '.join('?' * len(_FIELDS))})"
)
_COUNT = (
    "INSERT INTO total VALUES (?, ?, ?, ?, ?) ON CONFLICT (route, version) DO UPDATE SET "
    "requests = requests + excluded.requests, failed = failed + excluded.failed, "
    "bytes_out = bytes_out + excluded.bytes_out"
)
_WINDOW = (
    f"SELECT {', '.join(_FIELDS)} FROM sample "  # noqa: S608
    "WHERE route = ? AND at >= ? ORDER BY at DESC LIMIT ?"
)
_LOG = (
    f"SELECT id, {', '.join(_FIELDS)} FROM sample "  # noqa: S608
    "WHERE route = ? AND id > ? ORDER BY id LIMIT ?"
)
_UNIT, _SCORES, _MIRRORED = (_FIELDS.index(name) for name in ("unit", "scores", "mirrored"))
_HALF = 1 << 63


class SqliteSamples:
    """`Samples` and `Cases` in one SQLite file; safe for threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._translated():
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            if self._db.execute("PRAGMA user_version").fetchone()[0] != _LAYOUT:
                self._db.execute("DROP TABLE IF EXISTS sample")
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
        rows = [_row(sample) for sample in samples]
        counts = [
            (s.route, s.version, 1, int(s.failed), s.bytes_out)
            for s in samples
            if not (s.scores or s.mirrored)
        ]
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
        return [_sample(row) for row in reversed(rows)]

    def read(self, route: str, *, after: int, limit: int = 20_000) -> tuple[Sequence[Sample], int]:
        """See `Samples.read`."""
        with self._lock, self._translated():
            rows = self._db.execute(_LOG, (route, after, limit)).fetchall()
        return [_sample(row[1:]) for row in rows], rows[-1][0] if rows else after

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

    def keep(self, release: str, kept: Kept) -> None:
        """See `Cases.keep`."""
        row = (release, kept.position, json.dumps(kept.state))
        with self._lock, self._translated():
            self._db.execute("INSERT OR REPLACE INTO kept VALUES (?, ?, ?)", row)

    def find(self, release: str) -> Kept | None:
        """See `Cases.find`."""
        query = "SELECT position, state FROM kept WHERE release = ?"
        with self._lock, self._translated():
            row = self._db.execute(query, (release,)).fetchone()
        return Kept(position=row[0], state=json.loads(row[1])) if row else None

    def forget(self, release: str) -> None:
        """See `Cases.forget`."""
        with self._lock, self._translated():
            self._db.execute("DELETE FROM kept WHERE release = ?", (release,))

    def keep_only(self, releases: Collection[str]) -> None:
        """See `Cases.keep_only`."""
        with self._lock, self._translated():
            known = [row[0] for row in self._db.execute("SELECT release FROM kept").fetchall()]
            gone = [(name,) for name in known if name not in releases]
            self._db.executemany("DELETE FROM kept WHERE release = ?", gone)

    def end(self) -> int:
        """See `Cases.end`."""
        query = "SELECT seq FROM sqlite_sequence WHERE name = 'sample'"
        with self._lock, self._translated():
            row = self._db.execute(query).fetchone()
        return row[0] if row else 0

    def close(self) -> None:
        """See `Samples.close`."""
        with self._lock:
            self._db.close()


def _row(sample: Sample) -> list[object]:
    row = [getattr(sample, name) for name in _FIELDS]
    if sample.unit is not None:
        row[_UNIT] = sample.unit - _HALF  # SQLite's integers have a sign
    row[_SCORES] = json.dumps(dict(sample.scores)) if sample.scores else None
    return row


def _sample(row: Sequence[Any]) -> Sample:
    values = list(row)
    if values[_UNIT] is not None:
        values[_UNIT] += _HALF
    values[_SCORES] = json.loads(values[_SCORES]) if values[_SCORES] else {}
    values[_MIRRORED] = bool(values[_MIRRORED])
    return Sample(**dict(zip(_FIELDS, values, strict=True)))

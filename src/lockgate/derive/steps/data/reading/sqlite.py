"""A query on a SQLite file → chunks of rows: read-only, without side doors, within a time."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from urllib.parse import quote

from lockgate.core.errors import UsageError
from lockgate.derive.steps.data.reading.files import Source
from lockgate.derive.steps.data.reading.tables import Chunk, check_names

_ROWS = 1 << 13
_ROOM = 1 << 22
_STEPS = 10_000  # of SQLite's virtual machine between two looks at the clock
_CELL = 1 << 24
_CHANCE = ("random", "randomblob", "load_extension", "changes", "total_changes",
           "last_insert_rowid", "readfile", "writefile", "edit", "fts3_tokenizer")  # fmt: skip
_NOW = re.compile(r"'now'|\"now\"|\bcurrent_(?:date|time|timestamp)\b", re.IGNORECASE)
_READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)


def sqlite_chunks(source: Source, query: str, seconds: float) -> Iterator[Chunk]:
    """Yields the rows of `query`, which may only read, and takes `seconds` at most.

    Raises UsageError for a query that would write, attach, or depend on chance or the clock; for a
    file that is no database, or whose last writes lie in a log beside it.
    """
    if _NOW.search(query):
        raise UsageError(
            "the query depends on the clock, so the same recipe would give other rows",
            hint="write the time into the query",
        )
    log = source.path.with_name(source.path.name + "-wal")
    if log.is_file() and log.stat().st_size:
        raise UsageError(
            f"{source.name} has writes that lie in {log.name} only",
            hint="run PRAGMA wal_checkpoint(TRUNCATE) on it, and publish it again",
        )
    address = f"file:{quote(str(source.path.resolve()))}?mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(address, uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise UsageError(f"{source.name} can't be opened: {error}") from error
    try:
        _confine(connection, time.monotonic() + seconds)
        yield from _read(connection, source.name, query)
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        raise _said(source.name, error, seconds) from error
    finally:
        connection.close()


def _said(name: str, error: Exception, seconds: float) -> UsageError:
    if "interrupted" in str(error):
        return UsageError(
            f"the query on {name} took more than {seconds:g} s", hint="raise query_seconds"
        )
    if "authoriz" in str(error) or "prohibited" in str(error):
        return UsageError(
            f"the query on {name} does more than read rows: {error}",
            hint="one SELECT, without chance, clock, ATTACH or PRAGMA",
        )
    return UsageError(f"the query on {name} fails: {error}", hint="try it with sqlite3 first")


def _confine(connection: sqlite3.Connection, deadline: float) -> None:
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.execute("PRAGMA cache_size = -32768")
    connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _CELL)
    connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
    connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)

    def allowed(action: int, _first: str | None, second: str | None, *_: object) -> int:
        if action in _READS:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() not in _CHANCE:
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY

    connection.set_authorizer(allowed)


def _read(connection: sqlite3.Connection, name: str, query: str) -> Iterator[Chunk]:
    cursor = connection.execute(query)
    if cursor.description is None:
        raise UsageError(f"the query on {name} gives no rows", hint="it begins with SELECT or WITH")
    names = check_names(name, [item[0] for item in cursor.description])
    number = 0
    rows: list[tuple[object, ...]] = []
    room = 0
    for row in cursor:
        rows.append(row)
        room += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
        if len(rows) >= _ROWS or room > _ROOM:
            yield _chunk(name, names, rows, number + 1)
            number, rows, room = number + len(rows), [], 0
    yield _chunk(name, names, rows, number + 1)


def _chunk(name: str, names: list[str], rows: list[tuple[object, ...]], first: int) -> Chunk:
    cells = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    return Chunk(
        source=name, form="values", numbers=range(first, first + len(rows)),
        columns=dict(zip(names, cells, strict=True)),
    )  # fmt: skip

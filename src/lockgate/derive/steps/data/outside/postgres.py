"""The rows of a query on PostgreSQL → `rows.parquet`: one moment of it, read-only, in parts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.errors import (
    DeniedError,
    LockgateError,
    PermanentError,
    TemporaryError,
    UsageError,
)
from lockgate.derive.api import Advance, Work
from lockgate.derive.connections import NAME, options, shown
from lockgate.derive.steps.data.outside.columns import (
    NATIVE,
    Column,
    RowsDigest,
    arrow_of,
    schema_of,
    table_of,
)
from lockgate.derive.steps.data.outside.taken import Taken, check_scheme, missing_package
from lockgate.derive.steps.data.reading.tables import check_names
from lockgate.derive.steps.data.rows import FILE, RowsWriter

_SCHEMES = ("postgresql", "postgres")
_FIRST, _MOST = 16, 1 << 15  # rows that are asked for at once
_ROOM = 1 << 23  # bytes that such a part should have
_SETTINGS = {
    "timezone": "UTC", "datestyle": "ISO, YMD", "intervalstyle": "iso_8601",
    "extra_float_digits": "1", "bytea_output": "hex", "synchronize_seqscans": "off",
    "cursor_tuple_fraction": "1",
}  # fmt: skip
"""What decides how values are written, and in which order a table is read."""


class PostgresRows(BaseModel):
    """The rows of one SELECT."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["postgres"]
    connection: Annotated[str, Field(pattern=NAME)] = Field(
        description="of the environment variable LOCKGATE_CONNECTION_…: postgresql://…"
    )
    query: Annotated[str, Field(min_length=1, max_length=1 << 16)] = Field(
        description="one SELECT; say ORDER BY, or the digest depends on the server's mood"
    )
    seconds: Annotated[float, Field(gt=0, le=7 * 86_400)] = Field(
        default=600.0, description="that the query may take in all"
    )

    def pinned(self) -> bool:
        """Tables change: says no."""
        return False

    def take(self, address: str, work: Work) -> Taken:
        """Writes `rows.parquet`; memory does not grow with the rows.

        Raises UsageError for a query that fails, writes, takes too long, or gives a value that its
        column can't hold, with its row; DeniedError or TemporaryError when the server says no or
        can't be reached.
        """
        check_scheme(address, _SCHEMES, self.connection)
        with _transaction(address) as connection:
            work.log(f"PostgreSQL {connection.info.server_version // 10_000}, {shown(address)}")
            rows = _Rows(connection, self.query, self.seconds)
            hashed = RowsDigest(rows.columns)
            with RowsWriter(work.out / FILE, schema_of(rows.columns)) as writer:
                for table in rows.tables():
                    hashed.add(table)
                    writer.write(table)
                    work.report(Advance(done=writer.rows, total=0, unit="rows"))
        if not writer.rows:
            raise UsageError("the query gives no rows", hint="an empty dataset can't be published")
        about = {
            "query": self.query, "rows": writer.rows,
            "columns": {c.name: {"server": c.server, "type": str(c.type)} for c in rows.columns},
        }  # fmt: skip
        size = (work.out / FILE).stat().st_size
        metrics = {"rows": float(writer.rows), "columns": float(len(rows.columns)),
                   "bytes": float(size)}  # fmt: skip
        return Taken(about=about, digest=hashed.digest(), metrics=metrics)


@contextmanager
def _transaction(address: str) -> Iterator[Any]:
    """Gives a connection in a transaction that sees one moment and may write nothing."""
    try:
        import psycopg
    except ImportError as error:
        raise missing_package("psycopg") from error
    wait = int(options(address).get("connect_timeout") or 10)
    try:
        connection = psycopg.connect(address, connect_timeout=wait)
    except psycopg.Error as error:
        raise _refused(str(error), shown(address)) from None
    try:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        encoding = connection.execute("SHOW server_encoding").fetchone()
        if encoding != ("SQL_ASCII",):
            connection.execute("SET LOCAL client_encoding = 'UTF8'")
        _all_else_as_text(connection)
        yield connection
        connection.rollback()
    except psycopg.OperationalError as error:
        raise TemporaryError(f"the server ended the connection: {_first(error)}") from None
    finally:
        connection.close()


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:500]


def _refused(said: str, where: str) -> LockgateError:
    said = " ".join(said.split())[:500]
    if "authentication failed" in said or "no password supplied" in said or "pg_hba" in said:
        return DeniedError(f"{where} refuses this user: {said}", hint="correct user and password")
    if "does not exist" in said:
        return UsageError(f"{where} can't be opened: {said}", hint="correct the connection's name")
    if "invalid" in said or "missing" in said:
        return PermanentError(f"{where} can't be opened: {said}")
    return TemporaryError(f"{where} can't be reached: {said}")


def _all_else_as_text(connection: Any) -> None:
    """Makes the driver give text for all types but the plain ones: Arrow reads it, or it stays."""
    from psycopg.types.string import TextLoader

    for info in connection.adapters.types:
        if info.oid not in NATIVE:
            connection.adapters.register_loader(info.oid, TextLoader)
        if info.array_oid:
            connection.adapters.register_loader(info.array_oid, TextLoader)


class _Rows:
    """A query's columns, and its rows in parts of about 8 MiB."""

    def __init__(self, connection: Any, query: str, seconds: float) -> None:
        self._connection = connection
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._cursor = connection.cursor(name="lockgate", scrollable=False)
        self._done = 0
        with self._errors():
            for name, value in _SETTINGS.items():
                connection.execute("SELECT set_config(%s, %s, true)", (name, value))
            self._allow_the_rest()
            self._cursor.execute(query)
        self.columns = self._described()

    def _described(self) -> list[Column]:
        found = self._cursor.description or ()
        check_names("the query", [column.name for column in found])
        return [
            Column(
                name=column.name, server=column.type_display,
                type=arrow_of(column.type_code, column.precision, column.scale),
            )
            for column in found
        ]  # fmt: skip

    def tables(self) -> Iterator[Any]:
        """Yields the rows as Arrow tables."""
        wanted = _FIRST
        while rows := self._fetch(wanted):
            table = table_of(self.columns, rows, self._done + 1)
            self._done += len(rows)
            yield table
            fits = _ROOM * len(rows) // max(1, _room(rows))
            wanted = max(1, min(fits, wanted * 4, _MOST))

    def _fetch(self, wanted: int) -> list[Sequence[Any]]:
        with self._errors():
            self._allow_the_rest()
            found: list[Sequence[Any]] = self._cursor.fetchmany(wanted)
            return found

    def _allow_the_rest(self) -> None:
        """Gives the next statement what is left of the time."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise self._too_long()
        text = str(max(1, int(left * 1000)))
        self._connection.execute("SELECT set_config('statement_timeout', %s, true)", (text,))

    def _too_long(self) -> UsageError:
        return UsageError(
            f"the query took more than {self._seconds:g} s, after {self._done} rows",
            hint="raise seconds, or ask for less",
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.errors.QueryCanceled as error:
            if "timeout" in str(error):
                raise self._too_long() from None
            raise UsageError(f"the query was ended by somebody: {_first(error)}") from None
        except psycopg.errors.InsufficientPrivilege as error:
            raise DeniedError(f"the query is refused: {_first(error)}") from None
        except psycopg.OperationalError:
            raise
        except UnicodeDecodeError:
            raise UsageError(
                f"there is text that is not UTF-8 after row {self._done}",
                hint="the database has no encoding (SQL_ASCII); convert it in the query",
            ) from None
        except psycopg.Error as error:
            raise UsageError(
                f"the query fails after {self._done} rows: {_first(error)}",
                hint="one SELECT that only reads; try it with psql first",
            ) from None


def _room(rows: Sequence[Sequence[Any]]) -> int:
    """Returns about how many bytes the cells have."""
    return sum(len(cell) if isinstance(cell, str | bytes) else 8 for row in rows for cell in row)

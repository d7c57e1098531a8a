"""The file `rows.parquet`: written in row groups of bounded size, read again batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lockgate.core.errors import UsageError
from lockgate.derive.steps.data.reading import calendar
from lockgate.derive.steps.data.reading.files import shown
from lockgate.derive.steps.data.reading.tables import Reject, check_names, clip

FILE = "rows.parquet"
GROUP_ROWS = 1 << 17
GROUP_BYTES = 1 << 25
_BATCH = 1 << 15
_LEVEL = 3


class RowsWriter:
    """Writes tables of one schema as Parquet with Zstandard; the same rows give the same bytes.

    A row group has at most 131,072 rows and about 32 MiB in memory.
    """

    def __init__(self, path: Path, schema: Any) -> None:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(
            path, schema, compression="zstd", compression_level=_LEVEL, version="2.6",
            dictionary_pagesize_limit=1 << 20, store_schema=True,
        )  # fmt: skip
        self._waiting: list[Any] = []
        self._rows = self._bytes = 0
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if kind is None:
            self._flush()
        self._writer.close()

    def write(self, table: Any) -> None:
        """Adds rows."""
        for begin in range(0, table.num_rows, GROUP_ROWS):
            part = table.slice(begin, GROUP_ROWS)
            if self._rows + part.num_rows > GROUP_ROWS or self._bytes > GROUP_BYTES:
                self._flush()
            self._waiting.append(part)
            self._rows += part.num_rows
            self._bytes += part.nbytes
            self.rows += part.num_rows

    def _flush(self) -> None:
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), row_group_size=GROUP_ROWS)
        self._waiting, self._rows, self._bytes = [], 0, 0


def rows_files(folder: Path) -> list[Path]:
    """Returns the Parquet files of a dataset's folder; raises UsageError when there is none."""
    found = sorted(folder.glob("*.parquet"))
    if not found:
        raise UsageError("the dataset has no *.parquet", hint="make it with the step ingest")
    return found


def read_schema(folder: Path) -> Any:
    """Returns the Arrow schema that all Parquet files of a folder have.

    Raises UsageError for broken files, other schemas, and types that have no place in a flat table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas = []
    for path in rows_files(folder):
        try:
            schemas.append(pq.read_schema(path).remove_metadata())
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path.name} is no sound Parquet file: {error}") from error
        _check_flat(shown(path.name), schemas[-1])
        if schemas[-1] != schemas[0]:
            raise UsageError(
                f"{shown(path.name)} has other columns than the files before it",
                hint="bring them into one form with the step ingest",
            )
    return schemas[0]


def _check_flat(name: str, schema: Any) -> None:
    import pyarrow.types as pt

    check_names(name, schema.names)
    for field in schema:
        kind = field.type
        plain = (
            pt.is_boolean(kind) or (pt.is_integer(kind) and not pt.is_uint64(kind))
            or pt.is_floating(kind) or pt.is_date32(kind) or pt.is_string(kind)
            or (pt.is_timestamp(kind) and kind.unit != "ns") or pt.is_null(kind)
        )  # fmt: skip
        if not plain:
            raise UsageError(
                f"{name}, column {clip(field.name)} is {kind}, which has no place in a flat table",
                hint="the step ingest brings rows into plain types",
            )


def read_rows(folder: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yields a folder's rows as tables of at most 32,768 rows; raises UsageError for broken ones.

    `columns`: only those. A table has no metadata.
    """
    read_schema(folder)
    for path in rows_files(folder):
        yield from read_file(path, columns)


def read_file(path: Path, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Yields the rows of one Parquet file as tables; see `read_rows`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            row = 1
            for batch in _batches(file, columns):
                _check_times(shown(path.name), batch, row)
                row += batch.num_rows
                yield pa.Table.from_batches([batch]).replace_schema_metadata(None)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path.name} is no sound Parquet file: {error}") from error


def _check_times(name: str, batch: Any, row: int) -> None:
    """Raises UsageError for a date or time that no calendar has; `row` is that of the first."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if found := calendar.strays(column):
            reject = Reject(source=name, row=row + found[0], column=field.name, reason=calendar.WHY)
            raise UsageError(f"{reject}", hint="ingest the source anew: it refuses such rows")


def _batches(file: Any, columns: Sequence[str] | None) -> Iterator[Any]:
    """Yields batches that lie in one row group, whose bytes are bounded."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(
            batch_size=_BATCH, row_groups=[group], columns=columns and list(columns),
            use_threads=False,
        )  # fmt: skip


def check_columns(schema: Any, names: Sequence[str], what: str) -> None:
    """Raises UsageError when a column that `what` names is not there."""
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise UsageError(
            f"{what} names the column {missing[0]!r}, which is not there",
            hint=f"there are: {', '.join(schema.names[:50])}",
        )

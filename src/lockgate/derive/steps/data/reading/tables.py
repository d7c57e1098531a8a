"""CSV, JSON lines and Parquet → chunks of rows with their numbers; memory does not grow."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lockgate.core.errors import UsageError
from lockgate.derive.steps.data.reading.files import Source, blocks

LONGEST_LINE = 1 << 24
_MOST_COLUMNS = 10_000
_GROUP_BYTES = 1 << 30
_TEXT_BYTES = 1 << 24
_BATCH_ROWS = 1 << 15
_HELD_BLOCKS = 9  # a record that goes on for more blocks than this has no end


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """A row that can't be used: number in its file (from 1, header not counted), column, why."""

    source: str
    row: int
    column: str
    reason: str

    def __str__(self) -> str:
        where = f", column {self.column!r}" if self.column else ""
        return f"{self.source}, row {self.row}{where}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Rows of a file, by column.

    `form`: cells are texts (CSV), values of Python (JSON, SQLite), or an Arrow array (Parquet).
    `numbers`: the row's number for each cell.
    """

    source: str
    form: Literal["text", "values", "arrow"]
    numbers: Sequence[int]
    columns: dict[str, Any]
    rejects: tuple[Reject, ...] = ()


def clip(value: object) -> str:
    """Returns a value as it may stand in a message: quoted, escaped, at most 60 characters."""
    said = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return said if len(said) <= 60 else said[:57] + "…"


class _Lines:
    """The lines of a block as text, and of the next ones as long as a record goes on.

    `at_end`: the last line of a block was handed out. Broken UTF-8 is kept, as surrogates.
    """

    def __init__(self, first: bytes, more: Iterator[bytes]) -> None:
        self._first = first
        self._more = more
        self.at_end = False

    def __iter__(self) -> Iterator[str]:
        raw: bytes | None = self._first
        for _ in range(_HELD_BLOCKS):
            if raw is None:
                return
            text = raw.decode("utf-8", "surrogateescape")
            lines = io.StringIO(text, newline="").readlines()
            self.at_end = False
            yield from lines[:-1]
            self.at_end = True
            yield from lines[-1:]
            raw = next(self._more, None)
        raise csv.Error("the record does not end: a quote is not closed")


def csv_chunks(source: Source, delimiter: str, names: Sequence[str] | None) -> Iterator[Chunk]:
    """Yields the rows of a CSV file; `names`: of a file without a header.

    Blocks without quotes are cut by Arrow, others by the standard library: the same rows, more
    slowly. Raises UsageError for a broken header or a record whose quotes do not close; rows with
    another number of fields are rejects.
    """
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        reader = _CsvReader(source, "\t" if source.tabs else delimiter)
        yield from reader.chunks(names)
    finally:
        csv.field_size_limit(before)


class _CsvReader:
    """Reads one CSV file, block by block; counts rows (from 1) and lines."""

    def __init__(self, source: Source, delimiter: str) -> None:
        self._name = source.name
        self._delimiter = delimiter
        self._blocks = blocks(source, LONGEST_LINE)
        self._header: list[str] = []
        self._rows = self._lines = 0

    def chunks(self, names: Sequence[str] | None) -> Iterator[Chunk]:
        block = next(self._blocks, b"").removeprefix(b"\xef\xbb\xbf")
        if names is None:
            names, block = self._cut_header(block)
        self._header = check_names(self._name, names)
        for part in itertools.chain([block], self._blocks):
            yield self._quickly(part) or self._slowly(part)

    def _cut_header(self, block: bytes) -> tuple[list[str], bytes]:
        """Returns the names, and the block without them."""
        pulled = [block]

        def more() -> Iterator[bytes]:
            for another in self._blocks:
                pulled.append(another)
                yield another

        text = iter(_Lines(block, more()))
        taken: list[str] = []

        def tapped() -> Iterator[str]:
            for line in text:
                taken.append(line)
                yield line

        try:
            reader = csv.reader(tapped(), delimiter=self._delimiter, strict=True)
            names = next((row for row in reader if row), [])
        except csv.Error as error:
            raise _broken(self._name, 0, 1, str(error)) from error
        self._lines = len(taken)
        size = len("".join(taken).encode("utf-8", "surrogateescape"))
        return names, b"".join(pulled)[size:]

    def _quickly(self, block: bytes) -> Chunk | None:
        """Returns the rows of a block as Arrow cuts them; None where there is a doubt."""
        if b'"' in block or block.count(b"\r") != block.count(b"\r\n"):
            return None
        import pyarrow as pa
        from pyarrow import csv as pcsv

        if not block.strip(b"\r\n"):
            return _text_chunk(self._name, self._header, [], [], [])
        try:
            table = pcsv.read_csv(
                pa.BufferReader(block),
                pcsv.ReadOptions(
                    column_names=self._header, use_threads=False, block_size=len(block) + 1
                ),
                pcsv.ParseOptions(delimiter=self._delimiter, quote_char=False),
                pcsv.ConvertOptions(
                    column_types=dict.fromkeys(self._header, pa.string()), strings_can_be_null=False
                ),
            )
        except pa.ArrowException:  # broken UTF-8, or another number of fields: find out where
            return None
        first = self._rows + 1
        self._rows += table.num_rows
        self._lines += block.count(b"\n")
        columns = {name: table.column(name).combine_chunks() for name in self._header}
        return Chunk(
            source=self._name, form="text", numbers=range(first, self._rows + 1), columns=columns
        )

    def _slowly(self, block: bytes) -> Chunk:
        lines = _Lines(block, self._blocks)
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        rows: list[list[str]] = []
        numbers: list[int] = []
        rejects: list[Reject] = []
        width = len(self._header)
        try:
            for row in reader:
                if row:
                    self._rows += 1
                    if len(row) == width:
                        rows.append(row)
                        numbers.append(self._rows)
                    else:
                        rejects.append(_ragged(self._name, self._rows, self._header, len(row)))
                if lines.at_end:
                    break
        except csv.Error as error:
            line = self._lines + reader.line_num
            raise _broken(self._name, self._rows + 1, line, str(error)) from error
        self._lines += reader.line_num
        return _text_chunk(self._name, self._header, rows, numbers, rejects)


def _broken(name: str, row: int, line: int, why: str) -> UsageError:
    return UsageError(
        f"{name}, row {row} (up to line {line}) is no CSV record: {why}",
        hint='a field with a quote, a delimiter or a line\'s end stands in "…", quotes doubled',
    )


def _ragged(name: str, row: int, header: Sequence[str], width: int) -> Reject:
    missing = header[width] if width < len(header) else ""
    said = f"it has {width} fields, the header has {len(header)}"
    return Reject(source=name, row=row, column=missing, reason=said)


def _text_chunk(
    name: str, header: Sequence[str], rows: list[list[str]], numbers: list[int],
    rejects: list[Reject],
) -> Chunk:  # fmt: skip
    columns: Any = zip(*rows, strict=True) if rows else ([] for _ in header)
    return Chunk(
        source=name, form="text", numbers=numbers, rejects=tuple(rejects),
        columns=dict(zip(header, columns, strict=True)),
    )  # fmt: skip


def check_names(source: str, names: Sequence[str]) -> list[str]:
    """Returns the names of columns; raises UsageError for none, empty, doubled or broken ones."""
    if not names:
        raise UsageError(f"{source} has no header", hint="its first line names the columns")
    if len(names) > _MOST_COLUMNS:
        raise UsageError(f"{source} has {len(names)} columns, at most {_MOST_COLUMNS} are read")
    seen: dict[str, int] = {}
    for place, name in enumerate(names, 1):
        if not name or "\0" in name or len(name) > 1000 or _is_broken(name):
            raise UsageError(
                f"{source}, header, column {place} has the name {clip(name)}",
                hint="a name is UTF-8 text of 1 to 1000 characters without NUL",
            )
        if name in seen:
            raise UsageError(
                f"{source}, header: columns {seen[name]} and {place} are both named {clip(name)}",
                hint="give every column a name of its own",
            )
        seen[name] = place
    return list(names)


def _is_broken(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands in it twice")
    return made


def json_chunks(source: Source, declared: Sequence[str]) -> Iterator[Chunk]:
    """Yields the rows of JSON lines: objects; a name that is missing is null.

    The names are those of the first block, and `declared`. Lines that are no objects, or have
    another name, are rejects.
    """
    names: list[str] | None = None
    number = 0
    for block in blocks(source, LONGEST_LINE):
        rows: list[dict[str, Any]] = []
        numbers: list[int] = []
        rejects: list[Reject] = []
        for line in block.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
            if not line or line.isspace():
                continue
            number += 1
            try:
                rows.append(_object(line))
                numbers.append(number)
            except ValueError as error:
                rejects.append(Reject(source=source.name, row=number, column="", reason=str(error)))
        if names is None:
            found = dict.fromkeys(name for row in rows for name in row)
            if not found and not declared:
                raise _nameless(source.name, rejects)
            names = check_names(source.name, [*found, *(d for d in declared if d not in found)])
        yield _values_chunk(source.name, names, rows, numbers, rejects)


def _nameless(name: str, rejects: Sequence[Reject]) -> UsageError:
    """Returns the error for JSON lines that begin without one row that has names."""
    if rejects:
        return UsageError(
            f"{rejects[0]}", hint='one object a line: {"name": "Ann", "age": 3}, no list around it'
        )
    return UsageError(f"{name} has no names: its rows are empty", hint="leave the file out")


def _object(line: bytes) -> dict[str, Any]:
    try:
        made = json.loads(line, object_pairs_hook=_pairs)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start + 1}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at character {error.pos + 1}") from error
    if not isinstance(made, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 (a reason, not a type error)
    return made


def _values_chunk(
    name: str, names: list[str], rows: list[dict[str, Any]], numbers: list[int],
    rejects: list[Reject],
) -> Chunk:  # fmt: skip
    known = set(names)
    if any(not row.keys() <= known for row in rows):
        good = []
        for row, number in zip(rows, numbers, strict=True):
            more = [key for key in row if key not in known]
            if more:
                said = "the rows before have no such name"
                rejects.append(Reject(source=name, row=number, column=more[0], reason=said))
            else:
                good.append((row, number))
        rows, numbers = [row for row, _ in good], [number for _, number in good]
    columns = {key: [row.get(key) for row in rows] for key in names}
    return Chunk(
        source=name, form="values", numbers=numbers, columns=columns, rejects=tuple(rejects)
    )


def parquet_chunks(source: Source) -> Iterator[Chunk]:
    """Yields the rows of a Parquet file; raises UsageError for a broken or an oversized one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path) as plain:
            names = check_names(source.name, plain.schema_arrow.names)
            texts = [field.name for field in plain.schema_arrow if field.type == pa.string()]
        with pq.ParquetFile(source.path, read_dictionary=texts) as file:
            first = 1
            for group in range(file.metadata.num_row_groups):
                size = file.metadata.row_group(group).total_byte_size
                if size > _GROUP_BYTES:
                    raise UsageError(
                        f"{source.name}, row group {group} unpacks to {size} bytes, at most "
                        f"{_GROUP_BYTES} are read at once", hint="write it in smaller row groups",
                    )  # fmt: skip
                for batch in file.iter_batches(
                    batch_size=_BATCH_ROWS, row_groups=[group], use_threads=False
                ):
                    for part in _in_parts(batch):
                        columns = dict(zip(names, part.columns, strict=True))
                        numbers = range(first, first + part.num_rows)
                        first += part.num_rows
                        yield Chunk(
                            source=source.name, form="arrow", numbers=numbers, columns=columns
                        )
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{source.name} is no sound Parquet file: {error}", hint="make it again"
        ) from error


def _in_parts(batch: Any) -> Iterator[Any]:
    """Yields a batch, halved until its texts are few bytes: a dictionary may be a bomb."""
    import pyarrow as pa
    import pyarrow.compute as pc

    size = 0
    for column in batch.columns:
        if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type):
            lengths = pc.take(pc.binary_length(column.dictionary), column.indices)
            size += pc.sum(pc.cast(lengths, pa.int64())).as_py() or 0
    if size <= _TEXT_BYTES or batch.num_rows < 2:
        yield batch
        return
    half = batch.num_rows // 2
    yield from _in_parts(batch.slice(0, half))
    yield from _in_parts(batch.slice(half))

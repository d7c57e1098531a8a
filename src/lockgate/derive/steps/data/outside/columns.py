"""A server's columns as Arrow's, and a digest of rows that no file format or library decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lockgate.core.digests import Digest, Hasher, digest_of_value
from lockgate.core.errors import UsageError
from lockgate.derive.steps.data.reading.tables import clip

_DIGITS = 38  # of a decimal that Arrow keeps in 16 bytes
NATIVE = {16: "bool", 17: "binary", 20: "int64", 21: "int16", 23: "int32", 26: "int64",
          700: "float32", 701: "float64"}  # fmt: skip
"""PostgreSQL's type numbers whose values a driver gives as Python's; all others come as text."""
_NUMERIC, _DATE, _TIMESTAMP, _TIMESTAMPTZ = 1700, 1082, 1114, 1184


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column of a query: its name, its type as the server calls it, and as Arrow does."""

    name: str
    server: str
    type: Any


def arrow_of(oid: int, precision: int | None, scale: int | None) -> Any:
    """Returns the Arrow type of PostgreSQL's type `oid`; string for what Arrow has no place for.

    A `numeric` without a precision may have any number of digits, so it is a string too.
    """
    import pyarrow as pa

    if oid == _NUMERIC and precision is not None and scale is not None:
        if precision <= _DIGITS and scale <= precision:
            return pa.decimal128(precision, scale)
        return pa.string()
    if oid in NATIVE:
        return getattr(pa, NATIVE[oid].replace("bool", "bool_"))()
    return {
        _DATE: pa.date32(), _TIMESTAMP: pa.timestamp("us"), _TIMESTAMPTZ: pa.timestamp("us", "UTC")
    }.get(oid, pa.string())  # fmt: skip


def table_of(columns: Sequence[Column], rows: Sequence[Sequence[Any]], first: int) -> Any:
    """Returns rows as an Arrow table; `first` is the number of the first one, from 1.

    Raises UsageError, with row and column, for a value that its column can't hold.
    """
    import pyarrow as pa

    cells = list(zip(*rows, strict=True)) or [() for _ in columns]
    arrays = [_array(c, values, first) for c, values in zip(columns, cells, strict=True)]
    return pa.table(arrays, schema=schema_of(columns))


def schema_of(columns: Sequence[Column]) -> Any:
    """Returns the Arrow schema."""
    import pyarrow as pa

    return pa.schema([(column.name, column.type) for column in columns])


def _array(column: Column, cells: Sequence[Any], first: int) -> Any:
    import pyarrow as pa

    try:
        return _cast(column, cells)
    except (pa.ArrowException, ValueError, OverflowError):
        for number, cell in enumerate(cells, first):
            try:
                _cast(column, [cell])
            except (pa.ArrowException, ValueError, OverflowError) as error:
                raise UsageError(
                    f"row {number}, column {column.name!r}: {clip(cell)} is no {column.type} "
                    f"(the server says {column.server})",
                    hint="cast it in the query, as in column::text",
                ) from error
        raise


def _cast(column: Column, cells: Sequence[Any]) -> Any:
    import pyarrow as pa
    import pyarrow.types as pt

    kind = column.type
    if pt.is_decimal(kind) or pt.is_temporal(kind):
        return pa.array(cells, pa.string()).cast(kind)
    return pa.array(cells, kind)


class RowsDigest:
    """Hashes rows: names, types, values in their order; however they come in parts."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self._hashers = [(Hasher(), Hasher(), Hasher()) for _ in columns]
        self._rows = 0

    def add(self, table: Any) -> None:
        """Adds rows."""
        self._rows += table.num_rows
        for (valid, lengths, values), column in zip(self._hashers, table.columns, strict=True):
            for chunk in column.chunks:
                valid.update(_bytes(chunk.is_valid()))
                some = chunk.drop_null()
                _hash_values(some, lengths, values)

    def digest(self) -> Digest:
        """Returns the digest of all rows so far."""
        listed = [
            [column.name, str(column.type), *(hasher.digest() for hasher in hashers)]
            for column, hashers in zip(self._columns, self._hashers, strict=True)
        ]
        return digest_of_value({"rows": self._rows, "columns": listed})


def _bytes(array: Any) -> bytes:
    """Returns the little-endian bytes of a fixed-width array without nulls."""
    import pyarrow as pa
    import pyarrow.types as pt

    kind = array.type
    if pt.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif pt.is_date32(kind):
        array = array.cast(pa.int32())
    elif pt.is_timestamp(kind):
        array = array.cast(pa.int64())
    width = array.type.bit_width // 8
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return b""
    begin = array.offset * width
    return bytes(memoryview(buffer)[begin : begin + len(array) * width])


def _hash_values(array: Any, lengths: Hasher, values: Hasher) -> None:
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.types as pt

    if not (pt.is_string(array.type) or pt.is_binary(array.type)):
        values.update(_bytes(array))
        return
    if not len(array):
        return
    lengths.update(_bytes(pc.binary_length(array)))
    _, places, data = array.buffers()
    where = np.frombuffer(places, np.int32)[array.offset : array.offset + len(array) + 1]
    if data is not None:
        values.update(memoryview(data)[int(where[0]) : int(where[-1])])

"""Cells → typed Arrow columns; what does not fit is named by its place, never bent."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lockgate.core.errors import UsageError
from lockgate.derive.steps.data.reading import calendar
from lockgate.derive.steps.data.reading.tables import Chunk, Reject, clip

ColumnType = Literal["bool", "int64", "float64", "date", "timestamp", "string"]
TYPES: tuple[ColumnType, ...] = get_args(ColumnType)
_STAMP = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
_ZONE = r"(Z|[+-][0-9]{2}:?[0-9]{2})"
_FLOAT = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_FORMS = {  # what is read
    "bool": r"(?i:true|false|0|1)",
    "int64": r"[+-]?[0-9]{1,19}",
    "float64": rf"({_FLOAT}|(?i:[+-]?(nan|inf|infinity)))",
    "date": r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    "timestamp": rf"{_STAMP}{_ZONE}?",
}
_GUESSES: dict[ColumnType, str] = {  # what a type is inferred from: 007 is a name, not a number
    "bool": r"(?i:true|false)",
    "int64": r"[+-]?(0|[1-9][0-9]{0,17})",
    "float64": r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?",
    "date": _FORMS["date"],
    "timestamp": _FORMS["timestamp"],
}
_FORMULA = r"\A[\t\r\n ]*(?:=.|[+\-@][A-Za-z]|[+\-@].*\|.*!)"  # the last: DDE, -1+cmd|'/C x'!A0
_PYTHON: dict[str, set[type]] = {
    "bool": {bool}, "int64": {int}, "float64": {int, float}, "string": {str},
    "date": {str}, "timestamp": {str},
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRules:
    """What a cell may be.

    `nulls`: texts of a CSV file that mean null. `longest`: characters or bytes of a cell.
    `nonfinite`: NaN and infinities are allowed. `formulas`: cells that a spreadsheet would run
    are refused, or counted only.
    """

    nulls: tuple[str, ...]
    longest: int
    nonfinite: bool
    refuse_formulas: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A column: an Arrow array, why a cell (by its index) is bad, indexes of formulas."""

    array: Any
    bad: dict[int, str]
    formulas: tuple[int, ...] = ()


def arrow_type(kind: ColumnType) -> Any:
    """Returns the Arrow type of a column's type; timestamps are microseconds in UTC."""
    import pyarrow as pa

    return {
        "bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64(), "string": pa.string(),
        "date": pa.date32(), "timestamp": pa.timestamp("us", tz="UTC"),
    }[kind]  # fmt: skip


def infer(chunk: Chunk, name: str, rules: CellRules) -> ColumnType:
    """Returns the narrowest type that all cells of a first chunk have; `string` for none."""
    cells = chunk.columns[name]
    if chunk.form == "arrow":
        return _of_arrow(cells.type, chunk.source, name)
    if chunk.form == "values":
        kinds = set(map(type, cells)) - {type(None)}
        for kind in ("bool", "int64", "float64"):
            if kinds and kinds <= _PYTHON[kind]:
                return kind
        return "string"
    import pyarrow.compute as pc

    array = _null(_texts(cells).array, rules.nulls)
    if array.null_count == len(array):
        return "string"
    for kind, form in _GUESSES.items():
        if pc.all(pc.match_substring_regex(array, rf"\A(?:{form})\z")).as_py():
            return kind
    return "string"


def _of_arrow(kind: Any, source: str, name: str) -> ColumnType:
    import pyarrow.types as pt

    tests: tuple[tuple[Callable[[Any], bool], ColumnType], ...] = (
        (pt.is_boolean, "bool"), (pt.is_integer, "int64"), (pt.is_floating, "float64"),
        (pt.is_decimal, "float64"), (pt.is_date, "date"), (pt.is_timestamp, "timestamp"),
        (pt.is_string, "string"), (pt.is_large_string, "string"), (pt.is_null, "string"),
    )  # fmt: skip
    if pt.is_dictionary(kind):
        return _of_arrow(kind.value_type, source, name)
    for test, found in tests:
        if test(kind):
            return found
    raise UsageError(
        f"{source}, column {name!r} has the type {kind}, which has no place in a flat table",
        hint=f"columns are {', '.join(TYPES)}",
    )


def convert(chunk: Chunk, name: str, kind: ColumnType, rules: CellRules) -> Converted:
    """Returns a chunk's column as `kind`; a bad cell is null in it and has a reason."""
    if chunk.form == "text":
        made = _from_text(chunk.columns[name], kind, rules)
    elif chunk.form == "values":
        made = _from_values(chunk.columns[name], kind)
    else:
        made = _from_arrow(chunk, name, kind)
    return _checked(made, kind, rules)


def _from_text(cells: Any, kind: ColumnType, rules: CellRules) -> Converted:
    made = _texts(cells)
    array = _null(made.array, rules.nulls)
    if kind == "string":
        return Converted(array=array, bad=made.bad)
    parsed = _parse(array, kind)
    return Converted(array=parsed.array, bad={**parsed.bad, **made.bad})


def _texts(cells: Any) -> Converted:
    """Returns texts as an array; those with broken UTF-8 (kept as surrogates) are bad."""
    import pyarrow as pa

    if isinstance(cells, pa.Array):
        return Converted(array=cells, bad={})
    try:
        return Converted(array=pa.array(cells, pa.string()), bad={})
    except UnicodeEncodeError:
        good: list[str | None] = []
        bad = {}
        for index, cell in enumerate(cells):
            try:
                if cell is not None:
                    cell.encode()
                good.append(cell)
            except UnicodeEncodeError as error:
                good.append(None)
                bad[index] = f"it is not UTF-8 at character {error.start + 1}: {clip(cell)}"
        return Converted(array=pa.array(good, pa.string()), bad=bad)


def _null(array: Any, nulls: Sequence[str]) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not nulls:
        return array
    isnull = pc.is_in(array, value_set=pa.array(list(nulls), pa.string()))
    return pc.if_else(isnull, pa.scalar(None, pa.string()), array)


def _parse(array: Any, kind: ColumnType) -> Converted:
    """Returns texts as values of `kind`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    fits = pc.match_substring_regex(array, rf"\A(?:{_FORMS[kind]})\z")
    bad: dict[int, str] = {}
    if not pc.all(fits).as_py():
        bad = {i: f"{clip(array[i].as_py())} is not {_a(kind)}" for i in _places(pc.invert(fits))}
        array = pc.if_else(fits, array, pa.scalar(None, pa.string()))
    try:
        return Converted(array=_cast(array, kind), bad=bad)
    except pa.ArrowInvalid:
        made = _each(array.to_pylist(), kind, lambda cell: _cast(pa.array([cell]), kind))
        return Converted(array=made.array, bad={**bad, **made.bad})


def _cast(texts: Any, kind: ColumnType) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if kind == "bool":
        isone = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(["true", "1"]))
        return pc.if_else(pc.is_null(texts), pa.scalar(None, pa.bool_()), isone)
    if kind in ("int64", "float64"):
        if pc.any(pc.starts_with(texts, "+")).as_py():
            texts = pc.replace_substring_regex(texts, r"\A\+", "")
        return pc.cast(texts, arrow_type(kind))
    if kind == "date":
        return pc.cast(texts, pa.date32())
    zoned = pc.match_substring_regex(texts, rf"{_ZONE}\z")
    none = pa.scalar(None, pa.string())
    bare = pc.cast(pc.if_else(zoned, none, texts), pa.timestamp("us"))
    with_zone = pc.cast(pc.if_else(zoned, texts, none), pa.timestamp("us", tz="UTC"))
    return pc.coalesce(with_zone, pc.assume_timezone(bare, "UTC"))


def _each(cells: Sequence[Any], kind: ColumnType, one: Callable[[Any], Any]) -> Converted:
    """Converts cell by cell where a whole column fails: slow, and says which."""
    import pyarrow as pa

    good: list[Any] = []
    bad = {}
    for index, cell in enumerate(cells):
        try:
            good.append(None if cell is None else one(cell)[0].as_py())
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            good.append(None)
            bad[index] = f"{clip(cell)} is not {_a(kind)}"
    return Converted(array=pa.array(good, arrow_type(kind)), bad=bad)


def _from_values(cells: list[Any], kind: ColumnType) -> Converted:
    """Takes values as JSON or SQLite have them; 1 is no true, and 1.0 no integer."""
    import pyarrow as pa

    allowed = _PYTHON[kind] | {type(None)}
    bad: dict[int, str] = {}
    if not set(map(type, cells)) <= allowed:
        bad = {i: f"{clip(cell)} is not {_a(kind)}" for i, cell in enumerate(cells)
               if type(cell) not in allowed}  # fmt: skip
        cells = [cell if type(cell) in allowed else None for cell in cells]
    if kind in ("string", "date", "timestamp"):
        made = _texts(cells)
        parsed = made if kind == "string" else _parse(made.array, kind)
        return Converted(array=parsed.array, bad={**bad, **parsed.bad, **made.bad})
    if kind == "float64":
        cells = [_float(cell) for cell in cells]
    try:
        return Converted(array=pa.array(cells, arrow_type(kind)), bad=bad)
    except (pa.ArrowException, OverflowError):
        made = _each(cells, kind, lambda cell: pa.array([cell], arrow_type(kind)))
        return Converted(array=made.array, bad={**bad, **made.bad})


def _float(cell: Any) -> float | None:
    try:
        return None if cell is None else float(cell)
    except OverflowError:
        return float("inf")


def _from_arrow(chunk: Chunk, name: str, kind: ColumnType) -> Converted:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as pt

    array = chunk.columns[name]
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"{chunk.source}, column {clip(name)} is not sound: {error}", hint="make it again"
        ) from error
    if pt.is_decimal(array.type) and kind == "float64":
        return Converted(array=pc.cast(array, pa.float64(), safe=False), bad={})
    one = arrow_type(kind)
    is_text = pt.is_string(array.type) or pt.is_large_string(array.type)
    if is_text == (kind == "string") or array.null_count == len(array):
        try:
            return Converted(array=pc.cast(array, one), bad={})
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return _each(
        [_value(cell) for cell in array], kind,
        lambda cell: pc.cast(pa.array([cell], array.type), one),
    )  # fmt: skip


def _value(cell: Any) -> Any:
    """Returns a cell as Python has it, as text where it has no such time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return cell.as_py()
    except (OverflowError, ValueError):
        try:
            return pc.cast(cell, pa.string()).as_py()
        except pa.ArrowException:
            return str(cell.value)


def _checked(made: Converted, kind: ColumnType, rules: CellRules) -> Converted:
    """Adds what is bad in values that have the right type, and takes it out."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    array, bad = made.array, dict(made.bad)
    formulas: tuple[int, ...] = ()
    if stray := calendar.strays(array):
        bad |= dict.fromkeys(stray, calendar.WHY)
        gone = np.zeros(len(array), bool)
        gone[stray] = True
        array = pc.if_else(pa.array(gone), pa.scalar(None, array.type), array)
    if kind == "float64" and not rules.nonfinite:
        for i in _places(pc.invert(pc.is_finite(array))):
            bad[i] = f"{array[i].as_py()} is not finite, and nonfinite is not allowed"
    if kind == "string":
        if (pc.max(pc.binary_length(array)).as_py() or 0) > rules.longest:
            for i in _places(pc.greater(pc.binary_length(array), rules.longest)):
                size = len(array[i].as_py().encode())
                bad[i] = f"it has {size} bytes, at most {rules.longest} are allowed"
        for i in _places(pc.match_substring(array, "\0")):
            bad[i] = f"it has a NUL byte: {clip(array[i].as_py())}"
        formulas = tuple(_places(pc.match_substring_regex(array, _FORMULA)))
        if rules.refuse_formulas:
            for i in formulas:
                bad[i] = f"a spreadsheet would run {clip(array[i].as_py())} as a formula"
    return Converted(array=array, bad=bad, formulas=formulas)


def _places(mask: Any) -> list[int]:
    """Returns the indexes at which a mask is true."""
    import pyarrow.compute as pc

    if not pc.any(mask).as_py():
        return []
    found: list[int] = pc.indices_nonzero(mask).to_pylist()
    return found


def _a(kind: ColumnType) -> str:
    return {
        "bool": "a bool (true or false)", "int64": "an int64", "float64": "a float64",
        "date": "a date (2031-12-24)", "timestamp": "a timestamp (2031-12-24T18:00:00Z)",
        "string": "a string",
    }[kind]  # fmt: skip


def rejects_of(chunk: Chunk, name: str, bad: dict[int, str]) -> list[Reject]:
    """Returns the rejects of a column's bad cells."""
    return [
        Reject(source=chunk.source, row=chunk.numbers[i], column=name, reason=reason)
        for i, reason in sorted(bad.items())
    ]


def as_text(value: Any) -> Any:
    """Returns a value as JSON can hold it: dates and times in ISO 8601."""
    if isinstance(value, dt.date | dt.datetime):
        return value.isoformat()
    return value

"""The rows of a task, read and checked, and what answers to them are worth."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar

from lockgate.core.errors import UsageError
from lockgate.gates.measure.metrics import Metric
from lockgate.gates.measure.rows import read_batches

_AT_ONCE = 8
_MAX_LINE = 1_000_000
_MOST_LOST = 0.1
Json = Mapping[str, Any]
Tell = Callable[[int, int], None]
One = TypeVar("One")
Said = TypeVar("Said")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a version's answers to one task are worth. `lost`: questions without an answer.

    `labels`, `chances` and `groups` (shape [rows]) are those of a table, for fairness.
    """

    metrics: tuple[Metric, ...]
    lost: int
    labels: Any = None
    chances: Any = None
    groups: Any = None


def read_rows(path: Path, limit: int | None = None) -> list[Json]:
    """Returns the rows of JSON lines or of Parquet; raises UsageError, naming the line."""
    if path.suffix == ".parquet":
        return _table_rows(path, limit)
    rows: list[Json] = []
    try:
        with path.open("r", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(rows) >= limit:
                    break
                if line.strip():
                    rows.append(_row(line, path, number))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not rows:
        raise UsageError(f"{path} has no rows")
    return rows


def _table_rows(path: Path, limit: int | None) -> list[Json]:
    rows: list[Json] = []
    for _, batch in read_batches(path):
        rows.extend(batch.to_pylist())
        if limit is not None and len(rows) >= limit:
            return rows[:limit]
    if not rows:
        raise UsageError(f"{path} has no rows")
    return rows


def _row(line: str, path: Path, number: int) -> Json:
    if len(line) > _MAX_LINE:
        raise UsageError(f"{path.name}, line {number} is longer than {_MAX_LINE} characters")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name}, line {number}: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path.name}, line {number}: it is no JSON object")
    return found


def check_lost(lost: int, rows: int) -> None:
    """Raises UsageError when a tenth of the questions got no answer."""
    if lost > _MOST_LOST * rows:
        raise UsageError(
            f"{lost} of {rows} questions got no answer", hint="does its runtime serve it at all?"
        )


def ask_all(ask: Callable[[One], Said], asked: Sequence[One], tell: Tell) -> list[Said]:
    """Returns what `ask` says to each, in order; some are asked at the same time."""
    found: list[Said] = []
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ask") as pool:
        for said in pool.map(ask, asked):
            found.append(said)
            tell(len(found), len(asked))
    return found


def field(row: Json, name: str, number: int) -> Any:
    """Returns a row's field; raises UsageError where it has none."""
    if name not in row:
        raise UsageError(f"row {number} has no field {name!r}", hint=f"it has {', '.join(row)}")
    return row[name]


def label(row: Json, name: str, number: int) -> int:
    """Returns a row's label, 0 or 1; raises UsageError."""
    found = field(row, name, number)
    if found not in (0, 1, True, False):
        raise UsageError(f"row {number}: the label is {found!r}, not 0 or 1")
    return int(found)


def numbers(row: Json, name: str, number: int) -> list[float]:
    """Returns a row's finite numbers; raises UsageError."""
    found = field(row, name, number)
    try:
        values = [float(value) for value in found]
    except (TypeError, ValueError):
        values = [float("nan")]
    if not all(isfinite(value) for value in values):
        raise UsageError(f"row {number}: {name!r} is not a list of finite numbers")
    return values


def items(row: Json, name: str, number: int, count: int) -> Iterator[int]:
    """Yields a row's items, each below `count`; raises UsageError."""
    for item in field(row, name, number):
        if not isinstance(item, int) or not 0 <= item < count:
            raise UsageError(f"row {number}: {item!r} is no item of 0 to {count - 1}")
        yield item

"""The step `clean`: casts, maps, fills, clips and drops, and counts every cell that it changed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Input, Metrics, Work
from lockgate.derive.steps.data.ingest import need_pyarrow
from lockgate.derive.steps.data.profile import Profile, type_name
from lockgate.derive.steps.data.reading.convert import (
    CellRules,
    ColumnType,
    arrow_type,
    convert,
    rejects_of,
)
from lockgate.derive.steps.data.reading.tables import Chunk
from lockgate.derive.steps.data.rows import FILE, RowsWriter, check_columns, read_rows, read_schema
from lockgate.derive.steps.data.spill import AT, Spill

Value = bool | int | float | str
_RULES = CellRules(nulls=(), longest=1 << 24, nonfinite=True, refuse_formulas=False)


class CleanParameters(BaseModel):
    """What is done, in this order; each names columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    drop_columns: tuple[str, ...] = ()
    cast: dict[str, ColumnType] = Field(default_factory=dict)
    bad_casts: Literal["refuse", "null"] = Field(
        default="refuse", description="cells that have no such value"
    )
    map: dict[str, dict[str, str | None]] = Field(
        default_factory=dict, description="texts to other texts, or to null"
    )
    fill: dict[str, Value] = Field(default_factory=dict, description="what stands for null")
    clip: dict[str, tuple[float, float]] = Field(default_factory=dict, description="[low, high]")
    drop_nulls: tuple[str, ...] = Field(default=(), description="rows that are null there")
    drop_duplicates: tuple[str, ...] | Literal["row"] | None = Field(
        default=None,
        description="key columns, or row: only the first row is kept; a null is in no key",
    )
    distinct_exact: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000

    @model_validator(mode="after")
    def _spans(self) -> CleanParameters:
        for name, (low, high) in self.clip.items():
            if not low <= high:
                raise ValueError(f"clip of {name}: {low} is above {high}")
        return self


class Clean:
    """Cleans rows, batch by batch."""

    name = "clean"
    summary = "Cast, map, fill, clip and drop values, nulls and duplicates; counts every change."
    inputs: tuple[Input, ...] = (Input(name="data", relation="derived-from"),)
    parameters: type[CleanParameters] = CleanParameters
    libraries: tuple[str, ...] = ("pyarrow", "numpy", "xxhash")
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes `rows.parquet`, `profile.json`, and `changes.json` with counts by column.

        Returns rows, and cells or rows changed by each kind of change. Raises UsageError for a
        column that is not there or has no such value, with its row.
        """
        need_pyarrow()
        asked: CleanParameters = work.parameters
        schema = read_schema(work.one("data"))
        named = [*asked.drop_columns, *asked.cast, *asked.map, *asked.fill, *asked.clip]
        check_columns(schema, [*named, *asked.drop_nulls, *_keys(asked, [])], "clean")
        made = _made_schema(schema, asked)
        if not made.names:
            raise UsageError("no column is left", hint="drop fewer columns")
        check_columns(made, asked.drop_nulls, "drop_nulls")
        first = None if asked.drop_duplicates is None else _first_rows(work, asked)
        changes = _Changes(asked)
        profile = Profile(made, work.seed, asked.distinct_exact)
        done = 0
        with RowsWriter(work.out / FILE, made) as writer:
            for table in _cleaned(work, changes):
                kept = table
                if first is not None:
                    kept = changes.dropped(table, first[done : done + table.num_rows])
                done += table.num_rows
                writer.write(kept)
                profile.add(kept)
                work.report(Advance(done=done, total=0, unit="rows"))
        if not writer.rows:
            raise UsageError("no row is left", hint="an empty dataset can't be published")
        profile.write(work.out)
        text = json.dumps(changes.body(), indent=1, ensure_ascii=False)
        (work.out / "changes.json").write_text(text + "\n", "utf-8")
        return {"rows": float(writer.rows), **changes.metrics()}


def _keys(asked: CleanParameters, names: list[str]) -> list[str]:
    if asked.drop_duplicates is None:
        return []
    return names if asked.drop_duplicates == "row" else list(asked.drop_duplicates)


def _made_schema(schema: Any, asked: CleanParameters) -> Any:
    import pyarrow as pa

    kinds = {field.name: field.type for field in schema if field.name not in asked.drop_columns}
    kinds.update({name: arrow_type(kind) for name, kind in asked.cast.items() if name in kinds})
    return pa.schema(list(kinds.items()))


def _cleaned(work: Work, changes: _Changes) -> Iterator[Any]:
    """Yields the rows with all changes but the dropped duplicates."""
    row = 1
    for table in read_rows(work.one("data")):
        yield changes.apply(table, row)
        row += table.num_rows


def _first_rows(work: Work, asked: CleanParameters) -> Any:
    """Returns which of the cleaned rows are the first with their key: a bool for each."""
    import pyarrow as pa

    made = _made_schema(read_schema(work.one("data")), asked)
    keys = _keys(asked, made.names)
    check_columns(made, keys, "drop_duplicates")
    kept: list[Any] = []
    done = 0
    with Spill(work.scratch / "keys", keys) as spill:
        for table in _cleaned(work, _Changes(asked)):
            known = np.ones(table.num_rows, bool)
            if asked.drop_duplicates != "row":
                for name in keys:
                    known &= table.column(name).is_valid().to_numpy()
            at = np.arange(done, done + table.num_rows)[known]
            spill.add(table.filter(pa.array(known)), at, np.zeros(len(at)))
            kept.append(~known)
            done += table.num_rows
        found = np.concatenate([*kept, np.empty(0, bool)])
        for group in spill.groups():
            found[group.column(f"{AT}_min").to_numpy()] = True
    return found


class _Changes:
    """Applies what was asked for, and counts it by column."""

    def __init__(self, asked: CleanParameters) -> None:
        self._asked = asked
        self._cells: dict[str, dict[str, int]] = {}
        self._rows = {"null": 0, "duplicate": 0}

    def _count(self, kind: str, name: str, count: int) -> None:
        counts = self._cells.setdefault(kind, {})
        counts[name] = counts.get(name, 0) + int(count)

    def apply(self, table: Any, row: int) -> Any:
        """Returns a batch changed; `row` is the number of its first row."""
        table = table.drop_columns([n for n in self._asked.drop_columns if n in table.column_names])
        for name in table.column_names:
            column = table.column(name)
            changed = self._column(name, column, row)
            if changed is not column:
                place = table.column_names.index(name)
                table = table.set_column(place, name, changed)
        return self._without_nulls(table)

    def _column(self, name: str, column: Any, row: int) -> Any:
        asked = self._asked
        if name in asked.cast:
            column = self._cast(name, column, asked.cast[name], row)
        if name in asked.map:
            column = self._map(name, column, asked.map[name])
        if name in asked.fill:
            column = self._fill(name, column, asked.fill[name])
        if name in asked.clip:
            column = self._clip(name, column, asked.clip[name])
        return column

    def _cast(self, name: str, column: Any, kind: ColumnType, row: int) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if column.type == arrow_type(kind):
            return column
        array = column.combine_chunks()
        if kind == "string":
            made, bad = pc.cast(array, pa.string()), {}
        else:
            form: Any = "text" if array.type == pa.string() else "arrow"
            numbers = range(row, row + len(array))
            chunk = Chunk(source="data", form=form, numbers=numbers, columns={name: array})
            converted = convert(chunk, name, kind, _RULES)
            made, bad = converted.array, converted.bad
            if bad and self._asked.bad_casts == "refuse":
                raise UsageError(
                    f"{rejects_of(chunk, name, bad)[0]}", hint="bad_casts: null, or map it before"
                )
        self._count("cast", name, len(array) - array.null_count - len(bad))
        self._count("made_null", name, len(bad))
        return made

    def _map(self, name: str, column: Any, pairs: Mapping[str, str | None]) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        if column.type != pa.string():
            raise _no_such(name, column.type, "map", "texts are mapped; cast it to string first")
        old = pa.array(list(pairs), pa.string())
        place = pc.index_in(column, value_set=old)
        new = pc.take(pa.array(list(pairs.values()), pa.string()), place)
        hit = pc.is_valid(place)
        self._count("mapped", name, pc.sum(hit).as_py() or 0)
        return pc.if_else(hit, new, column)

    def _fill(self, name: str, column: Any, value: Value) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        fits = _fits(column.type, value)
        if not fits:
            raise _no_such(name, column.type, "fill", f"{value!r} is no value of that type")
        scalar = pc.cast(pa.scalar(value), column.type)
        self._count("filled", name, column.null_count)
        return pc.fill_null(column, scalar)

    def _clip(self, name: str, column: Any, span: tuple[float, float]) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = type_name(column.type)
        whole = all(_is_int64(end) for end in span)
        if kind not in ("int64", "float64") or (kind == "int64" and not whole):
            raise _no_such(name, column.type, "clip", "numbers are clipped, integers at integers")
        low, high = (pa.scalar(int(e) if kind == "int64" else float(e), column.type) for e in span)
        under, over = pc.less(column, low), pc.greater(column, high)
        changed = pc.sum(pc.or_(under, over)).as_py() or 0
        self._count("clipped", name, changed)
        if not changed:
            return column
        return pc.if_else(under, low, pc.if_else(over, high, column))

    def _without_nulls(self, table: Any) -> Any:
        import pyarrow as pa

        known = np.ones(table.num_rows, bool)
        for name in self._asked.drop_nulls:
            known &= table.column(name).is_valid().to_numpy()
        if known.all():
            return table
        self._rows["null"] += int((~known).sum())
        return table.filter(pa.array(known))

    def dropped(self, table: Any, first: Any) -> Any:
        """Returns the rows that are the first with their key."""
        import pyarrow as pa

        self._rows["duplicate"] += int((~first).sum())
        return table if first.all() else table.filter(pa.array(first))

    def body(self) -> dict[str, Any]:
        """Returns counts of cells by change and column, and of dropped rows by reason."""
        return {"cells": self._cells, "dropped_rows": self._rows}

    def metrics(self) -> Metrics:
        """Returns totals."""
        found = {kind: float(sum(counts.values())) for kind, counts in self._cells.items()}
        return {**found, **{f"dropped_{why}": float(n) for why, n in self._rows.items()}}


def _fits(kind: Any, value: Value) -> bool:
    name = type_name(kind)
    if isinstance(value, bool):
        return name == "bool"
    if isinstance(value, str):
        return name == "string"
    return name == "float64" or (name == "int64" and _is_int64(value))


def _is_int64(value: float) -> bool:
    return float(value).is_integer() and -(2**63) <= value < 2**63


def _no_such(name: str, kind: Any, what: str, why: str) -> UsageError:
    return UsageError(f"column {name!r} is {type_name(kind)}, which {what} can't change", hint=why)

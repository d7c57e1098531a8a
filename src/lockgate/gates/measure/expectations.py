"""What a column is expected to be, and how many rows are not so: one pass over the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.errors import UsageError
from lockgate.core.verdict import CheckResult, Outcome
from lockgate.gates.measure.rows import duplicates, kind_of, plain, read_batches

_FIRST = 5
_CLIP = 40
Share = Annotated[float, Field(ge=0, le=1)]
Value = bool | int | float | str
Bad = Callable[[Any], Any]  # a column → where it is bad (an Arrow mask)


class Expected(BaseModel):
    """What one column is expected to be; nulls are looked at by `nulls_at_most` only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["bool", "int64", "float64", "date", "timestamp", "string"] | None = None
    nulls_at_most: Share | None = Field(default=None, description="share of rows")
    between: tuple[Value, Value] | None = Field(
        default=None, description="both ends are allowed; dates as texts"
    )
    one_of: tuple[Value, ...] | None = Field(default=None, min_length=1)
    unique: bool = False
    matches: str | None = Field(
        default=None, max_length=1000, description="a regular expression (RE2) for the whole text"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Expected:
        if not self.model_fields_set:
            raise ValueError("nothing is expected of it")
        return self


class _Tally:
    """Counts the bad rows of one expectation and keeps the first."""

    def __init__(self, column: str, what: str, bad: Bad, share: float = 0.0) -> None:
        self.column, self.what, self.share = column, what, share
        self._bad = bad
        self.rows = self.count = 0
        self.first: list[tuple[int, Any]] = []

    def add(self, start: int, values: Any) -> None:
        import pyarrow.compute as pc

        bad = pc.fill_null(self._bad(values), fill_value=False).to_numpy(zero_copy_only=False)
        places = np.flatnonzero(bad)
        self.rows += len(values)
        self.count += len(places)
        for place in places[: _FIRST - len(self.first)]:
            self.first.append((start + int(place), plain(values[int(place)])))

    def result(self) -> CheckResult:
        share = self.count / self.rows if self.rows else 0.0
        outcome: Outcome = "pass" if share <= self.share else "fail"
        said = f"{self.column!r} {self.what} in all {self.rows} rows"
        if self.count:
            rows = ", ".join(_told(number, value) for number, value in self.first)
            more = ", …" if self.count > len(self.first) else ""
            said = f"{self.column!r} {self.what}, but for {self.count} of {self.rows} rows"
            said += f": rows {rows}{more}"
            said += f"; a share of {self.share:g} is allowed" if self.share else ""
        return _result(self.column, self.what, outcome, said, share, self.share, self.rows)


def _told(number: int, value: Any) -> str:
    said = repr(value)
    return f"{number} ({said if len(said) <= _CLIP else said[: _CLIP - 1] + '…'})"


def _result(
    column: str, what: str, outcome: Outcome, reason: str, value: float, limit: float, rows: int
) -> CheckResult:
    return CheckResult(
        check=f"{column} {what}"[:120], signal="bad_rows", outcome=outcome, reason=reason,
        value=value, limit=limit, n=rows, unit="share",
    )  # fmt: skip


def check_columns(
    path: Path, schema: Any, expected: Mapping[str, Expected], tell: Callable[[int], None]
) -> list[CheckResult]:
    """Returns one result for each expectation, in the order in which they stand.

    Raises UsageError for an expectation that makes no sense, such as a broken pattern.
    """
    made: list[_Tally | CheckResult | str] = []
    for name, wants in expected.items():
        if name not in schema.names:
            said = f"there is no column {name!r}; there are {', '.join(schema.names[:20])}"
            made.append(_result(name, "is there", "fail", said, 1.0, 0.0, 0))
            continue
        made.extend(_of_column(name, schema.field(name).type, wants))
        if wants.unique:
            made.append(name)
    tallies = [item for item in made if isinstance(item, _Tally)]
    columns = list(dict.fromkeys(tally.column for tally in tallies))
    for start, batch in read_batches(path, columns) if columns else ():
        tell(start)
        for tally in tallies:
            tally.add(start, batch.column(tally.column))
    return [_finished(item, path) for item in made]


def _finished(item: _Tally | CheckResult | str, path: Path) -> CheckResult:
    if isinstance(item, CheckResult):
        return item
    if isinstance(item, _Tally):
        return item.result()
    count, first = duplicates(path, item)
    said = f"{item!r} is unique"
    if count:
        more = ", …" if count > len(first) else ""
        rows = ", ".join(map(str, first))
        said = f"{item!r} repeats an earlier value in {count} rows: {rows}{more}"
    return _result(item, "is unique", "fail" if count else "pass", said, float(count), 0.0, 0)


def _of_column(name: str, kind: Any, wants: Expected) -> list[_Tally | CheckResult | str]:
    import pyarrow.compute as pc

    made: list[_Tally | CheckResult | str] = []
    found = kind_of(kind)
    if wants.type is not None:
        said = f"{name!r} is {found}" + ("" if found == wants.type else f", not {wants.type}")
        outcome: Outcome = "pass" if found == wants.type else "fail"
        what = f"is {wants.type}"
        made.append(_result(name, what, outcome, said, float(found != wants.type), 0.0, 0))
    if wants.nulls_at_most is not None:
        made.append(_Tally(name, "is not null", pc.is_null, wants.nulls_at_most))
    if wants.between is not None:
        made.append(_between(name, kind, wants.between))
    if wants.one_of is not None:
        made.append(_one_of(name, kind, wants.one_of))
    if wants.matches is not None:
        made.append(_matches(name, found, wants.matches))
    return made


def _between(name: str, kind: Any, span: tuple[Value, Value]) -> _Tally | CheckResult:
    import pyarrow.compute as pc

    what = f"is from {span[0]} to {span[1]}"
    ends = _as(kind, span)
    if ends is None or kind_of(kind) in ("string", "bool"):
        said = f"{name!r} is {kind_of(kind)}, which has no place from {span[0]!r} to {span[1]!r}"
        return _result(name, what, "fail", said, 1.0, 0.0, 0)
    low, high = ends[0], ends[1]

    def bad(values: Any) -> Any:  # NaN is in no span
        return pc.invert(pc.and_(pc.greater_equal(values, low), pc.less_equal(values, high)))

    return _Tally(name, what, bad)


def _one_of(name: str, kind: Any, allowed: Sequence[Value]) -> _Tally | CheckResult:
    import pyarrow.compute as pc

    listed = ", ".join(map(str, allowed[:8])) + (", …" if len(allowed) > 8 else "")
    what = f"is one of {listed}"
    values_set = _as(kind, allowed)
    if values_set is None:
        said = f"{name!r} is {kind_of(kind)}, and can't be one of {listed}"
        return _result(name, what, "fail", said, 1.0, 0.0, 0)

    def bad(values: Any) -> Any:
        isin = pc.is_in(values, value_set=values_set)
        return pc.and_(pc.is_valid(values), pc.invert(isin))

    return _Tally(name, what, bad)


def _as(kind: Any, values: Sequence[Value]) -> Any:
    """Returns values as an array of a column's type; None where they have no such value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind):
        return None
    number = kind_of(kind) in ("int64", "float64")
    fits = all(
        isinstance(v, bool) == (kind_of(kind) == "bool")
        and isinstance(v, str) == (not number and kind_of(kind) != "bool")
        for v in values
    )
    if not fits:
        return None
    try:
        if number:  # an end such as 0.5 may stand beside integers
            whole = all(float(v).is_integer() for v in values)
            wide = kind if kind_of(kind) == "float64" or whole else pa.float64()
            return pa.array([int(v) if wide == pa.int64() else float(v) for v in values], wide)
        made = pa.array(list(values))
        if kind_of(kind) != "timestamp":
            return pc.cast(made, kind)
        return _stamps(made, kind)
    except (pa.ArrowException, OverflowError, ValueError):
        return None


def _stamps(texts: Any, kind: Any) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        return pc.cast(texts, kind)
    except pa.ArrowInvalid:  # without a zone it is UTC
        return pc.cast(pc.assume_timezone(pc.cast(texts, pa.timestamp("us")), "UTC"), kind)


def _matches(name: str, found: str, pattern: str) -> _Tally | CheckResult:
    import pyarrow as pa
    import pyarrow.compute as pc

    whole = rf"\A(?:{pattern})\z"
    try:
        pc.match_substring_regex(pa.array([""]), whole)
    except pa.ArrowInvalid as error:
        raise UsageError(
            f"the pattern {pattern!r} of column {name!r} is broken: {error}",
            hint="RE2's syntax: no look-around, no back-references",
        ) from error
    what = f"matches {pattern}"
    if found != "string":
        said = f"{name!r} is {found}, and only texts match a pattern"
        return _result(name, what, "fail", said, 1.0, 0.0, 0)
    return _Tally(name, what, lambda values: pc.invert(pc.match_substring_regex(values, whole)))

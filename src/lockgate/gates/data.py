"""The gate `data` asks of a dataset: is it what was expected, and has it moved from another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.verdict import CheckResult, Outcome, Verdict
from lockgate.gates.api import Asked, verdict_of
from lockgate.gates.measure.drift import Drift, compare_numbers, compare_words, holm
from lockgate.gates.measure.expectations import Expected, check_columns
from lockgate.gates.measure.rows import kind_of, read_batches, read_schema, sample

_FEW = 30
_FILE = "rows.parquet"


class DriftSettings(BaseModel):
    """Against what, and how much. A column fails when its drift is proven and large."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: str = Field(description="owner/name:v1, or a Parquet file")
    columns: tuple[str, ...] = Field(default=(), description="empty: all that both have")
    psi_at_most: Annotated[float, Field(gt=0)] = Field(
        default=0.1, description="how large a drift may be; 0.25 is widely called major"
    )
    alpha: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="how often any column at all may be called drifted by chance"
    )
    rows: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        default=20_000, description="rows drawn from each side"
    )


class DataSettings(BaseModel):
    """A dataset and what is expected of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str = Field(description="owner/name:v1 (its rows.parquet), or a Parquet file")
    rows_at_least: Annotated[int, Field(ge=1)] = 1
    columns: dict[str, Expected] = Field(default_factory=dict)
    only: bool = Field(default=False, description="there are no other columns than those")
    drift: DriftSettings | None = None


class Data:
    """Expectations of each column, and drift from another version."""

    name = "data"
    remedy = "change"
    settings = DataSettings

    def reads(self, settings: DataSettings, asked: Asked) -> Sequence[Path]:
        """See `Gate.reads`."""
        named = [settings.data, *([settings.drift.against] if settings.drift else [])]
        return [_path(name, asked) for name in named]

    def judge(self, settings: DataSettings, asked: Asked) -> Verdict:
        """See `Gate.judge`."""
        path = _path(settings.data, asked)
        schema = read_schema(path)
        rows = sum(batch.num_rows for _, batch in read_batches(path, schema.names[:1]))
        checks = [_rows(rows, settings.rows_at_least)]
        if settings.only:
            checks.append(_only(schema.names, settings.columns.keys()))
        checks += check_columns(
            path, schema, settings.columns, lambda row: asked.tell("expectations", row, rows)
        )
        if settings.drift is not None:
            checks += _drift(path, settings.drift, asked)
        return verdict_of(checks, asked.now)


def _path(name: str, asked: Asked) -> Path:
    """Returns a file; of a dataset named without one, its `rows.parquet`."""
    head, colon, rest = name.partition(":")
    whole = colon and "/" in head and "/" not in rest
    return asked.files(f"{name}/{_FILE}" if whole else name)


def _rows(rows: int, least: int) -> CheckResult:
    enough = rows >= least
    said = f"it has {rows} rows, at least {least} are expected"
    return CheckResult(
        check="rows", signal="rows", outcome="pass" if enough else "fail", reason=said,
        value=float(rows), limit=float(least), n=rows, unit="rows",
    )  # fmt: skip


def _only(names: Sequence[str], expected: Any) -> CheckResult:
    more = [name for name in names if name not in expected]
    said = f"it has columns that are not expected: {', '.join(more[:20])}"
    return CheckResult(
        check="no other columns", signal="columns", outcome="fail" if more else "pass",
        reason=said if more else "it has no other columns", value=float(len(more)), limit=0.0,
    )  # fmt: skip


def _drift(path: Path, wanted: DriftSettings, asked: Asked) -> list[CheckResult]:
    other = _path(wanted.against, asked)
    here, there = read_schema(path), read_schema(other)
    names = wanted.columns or [name for name in here.names if name in there.names]
    checks, compared = [], []
    for name in names:
        kinds = [kind_of(s.field(name).type) if name in s.names else "" for s in (here, there)]
        if kinds[0] == kinds[1] != "" and not _measurable(here.field(name).type):
            said = f"{name!r} is {kinds[0]}: drift of that is not measured; name other 'columns'"
            checks.append(_result(name, "hold", said, None, wanted))
        elif kinds[0] == kinds[1] != "":
            compared.append(name)
        else:
            said = f"{name!r} is {kinds[0] or 'not there'}, and {kinds[1] or 'not there'} before"
            checks.append(_result(name, "fail", said, None, wanted))
    if not names:
        checks.append(_result("any column", "hold", "both have no column in common", None, wanted))
    if not compared:
        return checks
    asked.tell("drift", 0, len(compared))
    found = sample(path, compared, wanted.rows, asked.seed)
    before = sample(other, compared, wanted.rows, asked.seed + 1)
    drifts = [_compare(name, found.column(name), before.column(name)) for name in compared]
    corrected = holm([drift.p for drift in drifts])
    return checks + [
        _judged(d, p, len(drifts), wanted) for d, p in zip(drifts, corrected, strict=True)
    ]


def _measurable(kind: Any) -> bool:
    import pyarrow.types as pt

    return not (
        pt.is_nested(kind) or pt.is_dictionary(kind) or pt.is_null(kind) or pt.is_binary(kind)
        or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind)
    )  # fmt: skip


def _compare(name: str, found: Any, before: Any) -> Drift:
    if kind_of(found.type) in ("string", "bool"):
        return compare_words(name, found.to_pylist(), before.to_pylist())
    return compare_numbers(name, _numbers(found), _numbers(before))


def _numbers(column: Any) -> Any:
    """Returns numbers, dates (days) or times (microseconds) as floats, NaN for null."""
    import pyarrow as pa
    import pyarrow.types as pt

    if pt.is_date32(column.type):
        column = column.cast(pa.int32())
    elif pt.is_temporal(column.type):
        column = column.cast(pa.int64())
    isnull = column.is_null().to_numpy()
    made = column.fill_null(0).to_numpy().astype(np.float64)
    made[isnull] = np.nan
    return made


def _judged(drift: Drift, p: float, columns: int, wanted: DriftSettings) -> CheckResult:
    """Judges one column; `p` is corrected for the number of columns."""
    proven, large = p <= wanted.alpha, drift.psi > wanted.psi_at_most
    said = (
        f"{drift.column!r} has PSI {drift.psi:.3f} (at most {wanted.psi_at_most:g}), {drift.test} "
        f"{drift.statistic:.3g} with p = {p:.2g} (Holm, {columns} columns) "
        f"on {drift.n} rows against {drift.n_baseline}"
    )
    outcome: Outcome = "pass"
    if min(drift.n, drift.n_baseline) < _FEW:
        outcome, said = "hold", f"{said}: fewer than {_FEW} rows say nothing"
    elif proven and large:
        outcome, said = "fail", f"{said}: it has drifted"
    elif large:
        outcome, said = "hold", f"{said}: chance alone may give that; more rows would tell"
    elif proven:
        said = f"{said}: it has moved, less than matters"
    return _result(drift.column, outcome, said, drift, wanted)


def _result(
    column: str, outcome: Outcome, reason: str, drift: Drift | None, wanted: DriftSettings
) -> CheckResult:
    return CheckResult(
        check=f"drift of {column}"[:120], signal="psi", outcome=outcome, reason=reason,
        value=drift.psi if drift else None, limit=wanted.psi_at_most, n=drift.n if drift else 0,
        n_baseline=drift.n_baseline if drift else 0,
    )  # fmt: skip

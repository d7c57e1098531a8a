"""The step `split`: the same content is always on the same side, and what leaks is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Input, Metrics, Work
from lockgate.derive.steps.data.ingest import need_pyarrow
from lockgate.derive.steps.data.reading.convert import as_text
from lockgate.derive.steps.data.reading.tables import clip
from lockgate.derive.steps.data.rows import RowsWriter, check_columns, read_rows, read_schema
from lockgate.derive.steps.data.sketch import Sample, hash_rows, mix
from lockgate.derive.steps.data.spill import AT, SIDE, Spill

Shares = Mapping[str, float]
_STRATA = 1000
_DRAWN = 1 << 16
_TOLD = 5
_FAR = 1 << 62  # added to the numbers of the other dataset's rows
_SIDE = r"^[a-z][a-z0-9_-]{0,30}$"


class SplitParameters(BaseModel):
    """How much goes where, and what has to stay together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shares: dict[Annotated[str, Field(pattern=_SIDE)], Annotated[float, Field(gt=0, lt=1)]] = Field(
        default={"train": 0.8, "validation": 0.1, "test": 0.1}, min_length=2,
        description="sides and their shares, together 1",
    )  # fmt: skip
    by: tuple[str, ...] = Field(
        default=(), description="key columns that stay together; empty: the whole row"
    )
    ignore: tuple[str, ...] = Field(
        default=(), description="columns that make no row another one, such as a running number"
    )
    stratify: str | None = Field(
        default=None, description="a column each value of which has the same shares"
    )
    apart: tuple[str, ...] = Field(
        default=(), description="columns no value of which may be on two sides"
    )
    leaks: Literal["refuse", "report"] = "refuse"

    @model_validator(mode="after")
    def _sums(self) -> SplitParameters:
        if not math.isclose(sum(self.shares.values()), 1.0, abs_tol=1e-9):
            raise ValueError("the shares are not 1 together")
        return self


class Split:
    """Splits rows into sides by a hash of their key."""

    name = "split"
    summary = "Split rows into train, validation and test; the same key is always on one side."
    inputs: tuple[Input, ...] = (
        Input(name="data", relation="derived-from"),
        Input(name="against", relation="derived-from", required=False),
    )
    parameters: type[SplitParameters] = SplitParameters
    libraries: tuple[str, ...] = ("pyarrow", "numpy", "xxhash")
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes one Parquet file for each side, and `split.json` with counts and leaks.

        A row's side is a hash of its key and the seed, so the same row, or key, can't be on two
        sides; with `stratify`, for one value of that column. What is looked for: keys (`by`) and
        values of `apart` on two sides, keys and whole rows that `against` has too. Returns rows by
        side and leaks. Raises UsageError, naming rows, for leaks unless they are only reported.
        """
        need_pyarrow()
        asked: SplitParameters = work.parameters
        schema = read_schema(work.one("data"))
        named = [*asked.by, *asked.apart, *asked.ignore, *([asked.stratify or schema.names[0]])]
        check_columns(schema, named, "split")
        splitting = _Splitting(work, asked, schema)
        counts = splitting.write()
        leaks = splitting.leaks()
        body = {"rows": counts, "strata": splitting.strata, "leaks": leaks, "seed": work.seed}
        text = json.dumps(body, indent=1, ensure_ascii=False)
        (work.out / "split.json").write_text(text + "\n", "utf-8")
        found = sum(leak["count"] for leak in leaks)
        if found and asked.leaks == "refuse":
            raise _refusal(leaks)
        for side, rows in counts.items():
            if not rows:
                raise UsageError(
                    f"the side {side!r} has no rows", hint="more rows, fewer keys, other shares"
                )
        return {**{f"rows_{side}": float(n) for side, n in counts.items()}, "leaks": float(found)}


def _refusal(leaks: Sequence[Mapping[str, Any]]) -> UsageError:
    first = next(leak for leak in leaks if leak["count"])
    told = "; ".join(
        f"{item['value']} (row {item['row']}) is in {item['sides'][0]} and {item['sides'][1]}"
        for item in first["first"][:3]
    )
    return UsageError(
        f"{first['count']} values of {first['of']} are on two sides: {told}",
        hint="split 'by' that column, stratify by one that is constant in a key, take the rows "
        "out of 'against', or leaks: report",
    )


class _Splitting:
    """One run: which columns make a row, thresholds by stratum, what is kept for the leaks."""

    def __init__(self, work: Work, asked: SplitParameters, schema: Any) -> None:
        self._work = work
        self._asked = asked
        self._schema = schema
        self._sides = list(asked.shares)
        self._row = [name for name in schema.names if name not in asked.ignore]
        self._ends = np.cumsum(list(asked.shares.values()))[:-1]
        self._by_stratum: dict[Any, NDArray[np.float64]] = {}
        self.strata: dict[str, dict[str, int]] = {}
        if asked.stratify is not None:
            self._by_stratum = self._thresholds(asked.stratify)

    def _places(self, table: Any) -> NDArray[np.float64]:
        """Returns a number in [0, 1) for each row: of its key and the seed alone."""
        hashes = hash_rows(table.select(list(self._asked.by) or self._row))
        salt = mix(np.array([self._work.seed % 2**64], np.uint64))
        return mix(hashes ^ salt) / 2.0**64

    def _thresholds(self, name: str) -> dict[Any, NDArray[np.float64]]:
        """Returns where the sides end for each value of `name`.

        Exact up to 65,536 rows of a value, then from a sample of so many.
        """
        samples: dict[Any, Sample] = {}
        for table in read_rows(self._work.one("data")):
            places = self._places(table)
            for value, rows in _strata(table.column(name)):
                if value not in samples:
                    rng = np.random.default_rng([self._work.seed, len(samples)])
                    samples[value] = Sample(rng, _DRAWN)
                samples[value].add(places[rows])
            if len(samples) > _STRATA:
                raise UsageError(
                    f"column {name!r} has more than {_STRATA} values, which is no stratum",
                    hint="stratify by a column with few values",
                )
        ends = tuple(float(end) for end in self._ends)
        return {value: np.array(sample.quantiles(ends)) for value, sample in samples.items()}

    def _side_of(self, table: Any) -> NDArray[np.int64]:
        places = self._places(table)
        if self._asked.stratify is None:
            return np.searchsorted(self._ends, places, side="right")
        found = np.zeros(len(places), np.int64)
        for value, rows in _strata(table.column(self._asked.stratify)):
            ends = self._by_stratum[value]
            found[rows] = np.searchsorted(ends, places[rows], side="right")
        return found

    def _tally(self, table: Any, sides: NDArray[np.int64]) -> None:
        for value, rows in _strata(table.column(self._asked.stratify)):
            counts = np.bincount(sides[rows], minlength=len(self._sides))
            tally = self.strata.setdefault(str(as_text(value)), dict.fromkeys(self._sides, 0))
            for side, count in zip(self._sides, counts, strict=True):
                tally[side] += int(count)

    def write(self) -> dict[str, int]:
        """Writes the sides; returns how many rows each has."""
        import pyarrow as pa

        with ExitStack() as stack:
            writers = [
                stack.enter_context(RowsWriter(self._work.out / f"{side}.parquet", self._schema))
                for side in self._sides
            ]
            done = 0
            for table in read_rows(self._work.one("data")):
                sides = self._side_of(table)
                if self._asked.stratify is not None:
                    self._tally(table, sides)
                for side, writer in enumerate(writers):
                    writer.write(table.filter(pa.array(sides == side)))
                done += table.num_rows
                self._work.report(Advance(done=done, total=0, unit="rows"))
        return {side: writer.rows for side, writer in zip(self._sides, writers, strict=True)}

    def leaks(self) -> list[dict[str, Any]]:
        """Returns what was looked for, how often it was found, and where first."""
        against = self._work.maybe("against")
        groups = [[name] for name in self._asked.apart]
        if self._asked.by and list(self._asked.by) not in groups:
            groups.append(list(self._asked.by))
        if against is not None:
            groups.append(self._row)
            other = read_schema(against)
            check_columns(other, [name for group in groups for name in group], "against")
            for name in {name for group in groups for name in group}:
                if other.field(name).type != self._schema.field(name).type:
                    raise UsageError(
                        f"column {name!r} is {self._schema.field(name).type}, and "
                        f"{other.field(name).type} in 'against'", hint="ingest both with one type",
                    )  # fmt: skip
        return [self._leaks_of(columns, against) for columns in groups]

    def _leaks_of(self, columns: Sequence[str], against: Path | None) -> dict[str, Any]:
        import pyarrow.compute as pc

        sides = [*self._sides, "against"]
        whole = list(columns) == self._row and against is not None
        found: list[tuple[int, dict[str, Any]]] = []
        count = 0
        with Spill(self._work.scratch / "keys", columns) as spill:
            for at, table, side in self._sided(columns, against, whole=whole):
                spill.add(table, at, side)
            for group in spill.groups():
                low, high = group.column(f"{SIDE}_min"), group.column(f"{SIDE}_max")
                apart = group.filter(pc.not_equal(low, high))
                count += apart.num_rows
                found += [(row[f"{AT}_min"], row) for row in _first(apart)]
        found.sort(key=lambda item: item[0])
        first = [_told(at, row, columns, sides) for at, row in found[:_TOLD]]
        return {"of": "whole rows" if whole else ", ".join(columns), "count": count, "first": first}

    def _sided(
        self, columns: Sequence[str], against: Path | None, *, whole: bool
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Yields row numbers, keys without null, and sides."""
        done = 0
        for table in read_rows(self._work.one("data")):
            side = self._side_of(table)
            at = np.arange(done + 1, done + 1 + table.num_rows)
            done += table.num_rows
            yield _told_apart(at, table.select(list(columns)), side, whole=whole)
        done = 0
        for table in read_rows(against, columns) if against is not None else ():
            at = np.arange(done + 1, done + 1 + table.num_rows) + _FAR
            done += table.num_rows
            side = np.full(table.num_rows, len(self._sides))
            yield _told_apart(at, table.select(list(columns)), side, whole=whole)


def _told_apart(at: Any, table: Any, side: Any, *, whole: bool) -> tuple[Any, Any, Any]:
    """Returns rows whose key is known: a null in a key is nobody's, in a row it is a value."""
    import pyarrow as pa

    if whole:
        return at, table, side
    known = np.ones(table.num_rows, bool)
    for column in table.columns:
        known &= column.is_valid().to_numpy()
    return at[known], table.filter(pa.array(known)), side[known]


def _first(apart: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = apart.sort_by(f"{AT}_min").slice(0, _TOLD).to_pylist()
    return found


def _told(at: int, row: Mapping[str, Any], columns: Sequence[str], sides: Any) -> dict[str, Any]:
    value = ", ".join(f"{name}={clip(as_text(row[name]))}" for name in columns[:4])
    ends = [sides[row[f"{SIDE}_min"]], sides[row[f"{SIDE}_max"]]]
    return {"value": value, "row": at, "sides": ends}


def _strata(column: Any) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Yields each value of a column with the indexes of its rows."""
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    indices = coded.indices.to_numpy(zero_copy_only=False)
    for place, value in enumerate(coded.dictionary.to_pylist()):
        if isinstance(value, float) and math.isnan(value):
            value = "NaN"  # noqa: PLW2901 - a NaN is not equal to itself, and would be no key
        yield value, np.flatnonzero(indices == place)

"""The step `ingest`: raw files or a database's query → one table of typed rows, and its profile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.digests import digest_of
from lockgate.core.errors import UsageError
from lockgate.derive.api import Advance, Input, Metrics, Work
from lockgate.derive.steps.data.profile import Profile
from lockgate.derive.steps.data.reading.convert import (
    CellRules,
    ColumnType,
    Converted,
    arrow_type,
    convert,
    infer,
    rejects_of,
)
from lockgate.derive.steps.data.reading.files import Source, find_sources
from lockgate.derive.steps.data.reading.sqlite import sqlite_chunks
from lockgate.derive.steps.data.reading.tables import (
    Chunk,
    Reject,
    csv_chunks,
    json_chunks,
    parquet_chunks,
)
from lockgate.derive.steps.data.rows import FILE, RowsWriter

REJECTED = "rejected.jsonl"
_KEPT_REJECTS = 10_000
_TOLD = 5
_HASHED = 1 << 24


class IngestParameters(BaseModel):
    """What to read, what columns there are, what to do with what does not fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    files: tuple[str, ...] = Field(
        default=(), description="globs over the folder's files; empty: all of a known kind"
    )
    path: str | None = Field(
        default=None, description="without 'source': a file of this machine; needs 'digest'"
    )
    digest: str | None = Field(default=None, description="of the file at 'path', as blake3:…")
    query: str | None = Field(default=None, description="one SELECT, for a SQLite file")
    query_seconds: Annotated[float, Field(gt=0)] = 600.0
    columns: dict[str, ColumnType] = Field(
        default_factory=dict,
        description="types by name; others are inferred from the first 1 MiB, then enforced",
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1, pattern=r'[^\n\r"]')] = ","
    names: tuple[str, ...] = Field(default=(), description="of a CSV file without a header")
    nulls: tuple[str, ...] = Field(default=("",), description="texts of a CSV that mean null")
    nonfinite: Literal["refuse", "allow"] = Field(
        default="refuse", description="NaN and infinities in float64"
    )
    formulas: Literal["report", "refuse"] = Field(
        default="report",
        description="texts that a spreadsheet would run: =…, and + - @ with a letter",
    )
    longest: Annotated[int, Field(ge=1, le=1 << 24)] = Field(
        default=1 << 20, description="bytes of a text"
    )
    on_bad: Literal["refuse", "skip"] = Field(default="refuse", description="rows that don't fit")
    skip_at_most: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="share of all rows"
    )
    expand_at_most: Annotated[int, Field(ge=1, le=2000)] = Field(
        default=200, description="times its size that an archive may unpack to"
    )
    distinct_exact: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10_000, description="so many different values of a column are counted exactly"
    )

    @model_validator(mode="after")
    def _agree(self) -> IngestParameters:
        if (self.path is None) != (self.digest is None):
            raise ValueError("path and digest go together: the digest is what the recipe means")
        return self


class Ingest:
    """Reads raw files into rows."""

    name = "ingest"
    summary = "Read CSV, JSON lines, Parquet or a SQLite query into typed rows with a profile."
    inputs: tuple[Input, ...] = (Input(name="source", relation="derived-from", required=False),)
    parameters: type[IngestParameters] = IngestParameters
    libraries: tuple[str, ...] = ("pyarrow", "numpy", "xxhash")
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes `rows.parquet`, `profile.json`, and `rejected.jsonl` for skipped rows.

        Returns rows, skipped, formulas, columns and bytes. Raises UsageError with file, row and
        column of the first row that does not fit, unless `on_bad` is skip.
        """
        need_pyarrow()
        asked: IngestParameters = work.parameters
        sources = find_sources(_folder(work, asked), asked.files, asked.expand_at_most)
        with (work.out / REJECTED).open("w", encoding="utf-8") as rejected:
            made = _Ingesting(work, asked, rejected)
            for source in sources:
                made.read(source)
            made.close()
        if not made.skipped:
            (work.out / REJECTED).unlink()
        return made.metrics()


def need_pyarrow() -> None:
    """Raises UsageError where pyarrow is not installed."""
    try:
        import pyarrow as pa  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "tables need pyarrow, which is not installed", hint="pip install 'lockgate[data]'"
        ) from error


def _folder(work: Work, asked: IngestParameters) -> Path:
    folder = work.maybe("source")
    if folder is not None and asked.path is None:
        return folder
    if folder is not None or asked.path is None:
        raise UsageError("ingest reads a version or a file", hint="--from source=…, or path")
    path = Path(asked.path)
    if not path.is_file():
        raise UsageError(f"there is no file {path}", hint="name it as seen from here")
    found = digest_of_file(path)
    if found != asked.digest:
        raise UsageError(f"{path} has the digest {found}, not {asked.digest}",
                         hint="it has changed; say the digest that you mean")  # fmt: skip
    return path


def digest_of_file(path: Path) -> str:
    """Returns the digest of a file's bytes, read in parts."""
    from blake3 import blake3

    found = blake3()
    with path.open("rb") as file:
        while part := file.read(_HASHED):
            found.update(part)
    empty = str(digest_of(b""))
    return empty.partition(":")[0] + ":" + found.hexdigest()


class _Ingesting:
    """One run: the schema once it is known, the writer, the profile, what was skipped."""

    def __init__(self, work: Work, asked: IngestParameters, rejected: IO[str]) -> None:
        self._work = work
        self._asked = asked
        self._rejected = rejected
        self._rules = CellRules(
            nulls=asked.nulls, longest=asked.longest, nonfinite=asked.nonfinite == "allow",
            refuse_formulas=asked.formulas == "refuse",
        )  # fmt: skip
        self._types: dict[str, ColumnType] = {}
        self._schema: Any = None
        self._writer: RowsWriter | None = None
        self._profile: Profile | None = None
        self.skipped = self._formulas = self._rows = 0
        self._first: Reject | None = None

    def read(self, source: Source) -> None:
        """Reads one file."""
        self._work.log(f"reading {source.name}")
        for chunk in _chunks(source, self._asked, tuple(self._types)):
            if not len(chunk.numbers) and not chunk.rejects:
                continue
            if self._schema is None:
                self._learn(chunk)
            self._same_names(chunk)
            self._take(chunk)
            self._work.report(Advance(done=self._rows, total=0, unit="rows"))

    def _learn(self, chunk: Chunk) -> None:
        import pyarrow as pa

        asked = self._asked.columns
        absent = [name for name in asked if name not in chunk.columns]
        if absent:
            raise UsageError(
                f"{chunk.source} has no column {absent[0]!r}, which is declared",
                hint=f"it has: {', '.join(list(chunk.columns)[:50])}",
            )
        if len(chunk.columns) == 1 and any(mark in next(iter(chunk.columns)) for mark in ";\t|"):
            self._work.log(f"{chunk.source} has one column: is another 'delimiter' meant?")
        for name in chunk.columns:
            self._types[name] = asked.get(name) or infer(chunk, name, self._rules)
        self._schema = pa.schema([(name, arrow_type(kind)) for name, kind in self._types.items()])
        self._writer = RowsWriter(self._work.out / FILE, self._schema)
        self._profile = Profile(self._schema, self._work.seed, self._asked.distinct_exact)

    def _same_names(self, chunk: Chunk) -> None:
        if chunk.columns.keys() != self._types.keys():
            other = min(chunk.columns.keys() ^ self._types.keys())
            raise UsageError(
                f"{chunk.source} has other columns than the file before: {other!r} is in one only",
                hint="name the files that belong together in 'files'",
            )

    def _take(self, chunk: Chunk) -> None:
        import numpy as np
        import pyarrow as pa

        made = {n: convert(chunk, n, k, self._rules) for n, k in self._types.items()}
        self._rows += len(chunk.numbers) + len(chunk.rejects)
        self._tell_formulas(chunk, made)
        rejects = list(chunk.rejects)
        for name, column in made.items():
            rejects.extend(rejects_of(chunk, name, column.bad))
        bad = sorted({index for column in made.values() for index in column.bad})
        if rejects:
            self._reject(rejects, len(bad) + len(chunk.rejects))
        table = pa.table([column.array for column in made.values()], schema=self._schema)
        if bad:
            kept = np.ones(len(chunk.numbers), bool)
            kept[bad] = False
            table = table.filter(pa.array(kept))
        if self._writer is not None and self._profile is not None:
            self._writer.write(table)
            self._profile.add(table)

    def _tell_formulas(self, chunk: Chunk, made: Mapping[str, Converted]) -> None:
        for name, column in made.items():
            if column.formulas and self._formulas < _TOLD:
                row = chunk.numbers[column.formulas[0]]
                self._work.log(f"{chunk.source}, row {row}, column {name!r} looks like a formula")
            self._formulas += len(column.formulas)

    def _reject(self, rejects: list[Reject], rows: int) -> None:
        rejects.sort(key=lambda reject: reject.row)
        first = rejects[0]
        if self._asked.on_bad == "refuse":
            more = f" ({len(rejects) - 1} more near it)" if len(rejects) > 1 else ""
            raise UsageError(f"{first}{more}", hint=_hint(first, self._asked))
        self._first = self._first or first
        for reject in rejects[: max(0, _KEPT_REJECTS - self.skipped)]:
            line = {"file": reject.source, "row": reject.row, "column": reject.column or None,
                    "reason": reject.reason}  # fmt: skip
            self._rejected.write(json.dumps(line, ensure_ascii=True) + "\n")
        self.skipped += rows

    def close(self) -> None:
        """Writes what is left; raises UsageError when too many rows were skipped, or none came."""
        if self._writer is None or self._profile is None:
            raise UsageError("the files have no rows", hint="an empty dataset can't be published")
        with self._writer:
            pass
        if self.skipped > self._asked.skip_at_most * self._rows:
            raise UsageError(
                f"{self.skipped} of {self._rows} rows don't fit, more than the share "
                f"{self._asked.skip_at_most:g} that may be skipped; the first: {self._first}",
                hint="mend the source, declare other columns, or raise skip_at_most",
            )
        if not self._writer.rows:
            raise UsageError("the files have no rows", hint="an empty dataset can't be published")
        self._profile.write(self._work.out)

    def metrics(self) -> Metrics:
        """Returns counts for the version."""
        return {
            "rows": float(self._rows - self.skipped), "skipped": float(self.skipped),
            "formulas": float(self._formulas), "columns": float(len(self._types)),
            "bytes": float((self._work.out / FILE).stat().st_size),
        }  # fmt: skip


def _hint(first: Reject, asked: IngestParameters) -> str:
    if first.column and first.column not in asked.columns and "is not a" in first.reason:
        return (
            f"its type was inferred; declare columns: {{{first.column}: string}}, or on_bad: skip"
        )
    return "mend the source, or on_bad: skip with skip_at_most"


def _chunks(source: Source, asked: IngestParameters, known: tuple[str, ...]) -> Iterator[Chunk]:
    """Yields a file's rows; `known`: the columns of the files before it."""
    if source.kind == "csv":
        return csv_chunks(source, asked.delimiter, asked.names or None)
    if source.kind == "jsonl":
        return json_chunks(source, known or tuple(asked.columns))
    if source.kind == "parquet":
        return parquet_chunks(source)
    if asked.query is None:
        raise UsageError(
            f"{source.name} is a database, and there is no query",
            hint="query: SELECT … FROM … ORDER BY …, or leave it out of 'files'",
        )
    return sqlite_chunks(source, asked.query, asked.query_seconds)

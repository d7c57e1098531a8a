"""Rows of a Parquet file, batch by batch, and a sample of them; memory does not grow with rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lockgate.core.errors import UsageError

_BATCH = 1 << 15
_HELD = 1 << 24  # hashes of rows held at once: 128 MiB
_FIRST = 5
_KEPT = 100_000
_KINDS = {"double": "float64", "float": "float32", "date32[day]": "date", "large_string": "string"}


def kind_of(kind: Any) -> str:
    """Returns the name of an Arrow type as the step `ingest` declares it."""
    name = str(kind)
    return "timestamp" if name.startswith("timestamp") else _KINDS.get(name, name)


def read_schema(path: Path) -> Any:
    """Returns the Arrow schema of a Parquet file; raises UsageError where it is none."""
    with _opened(path) as file:
        schema = file.schema_arrow
    name, count = next(iter(Counter(schema.names).most_common(1)), ("", 0))
    if count > 1:
        raise UsageError(f"{path.name} has {count} columns named {name!r}", hint="make it again")
    return schema


def plain(cell: Any) -> Any:
    """Returns an Arrow cell as Python has it; the bare number of a time that Python has not."""
    try:
        return cell.as_py()
    except (OverflowError, ValueError):
        return cell.value


def _opened(path: Path) -> Any:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError(
            "the gate data needs pyarrow, which is not installed",
            hint="pip install 'lockgate[data]'",
        ) from error
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UsageError(
            f"{path.name} is no sound Parquet file: {error}",
            hint="make it with the step ingest: its rows.parquet",
        ) from error


def read_batches(path: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, Any]]:
    """Yields the number of a batch's first row (from 1), and the batch; raises UsageError."""
    with _opened(path) as file:
        import pyarrow as pa

        first = 1
        try:
            for batch in _batches(file, columns):
                yield first, batch
                first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise UsageError(
                f"{path.name} is broken after row {first - 1}: {error}", hint="make it again"
            ) from error


def _batches(file: Any, columns: Sequence[str] | None) -> Iterator[Any]:
    """Yields batches that lie in one row group: the step ingest bounds its bytes."""
    for group in range(file.num_row_groups):
        yield from file.iter_batches(
            batch_size=_BATCH, row_groups=[group], columns=columns and list(columns),
            use_threads=False,
        )  # fmt: skip


def sample(path: Path, columns: Sequence[str], size: int, seed: int) -> Any:
    """Returns a table of at most `size` rows, drawn uniformly without replacement.

    (Those with the smallest random keys; the same seed draws the same rows.)
    """
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    keys, bar = np.empty(0), 1.0
    parts: list[Any] = []
    for _, batch in read_batches(path, columns):
        fresh = rng.random(batch.num_rows)
        near = fresh < bar
        keys = np.concatenate([keys, fresh[near]])
        parts.append(batch.filter(pa.array(near)))
        if len(keys) > 2 * size:
            keys, parts = _nearest(keys, parts, size)
            bar = float(keys.max())
    keys, parts = _nearest(keys, parts, size)
    schema = pa.schema([read_schema(path).field(name) for name in columns])
    return pa.Table.from_batches(parts, schema) if parts else schema.empty_table()


def _nearest(keys: Any, parts: list[Any], size: int) -> tuple[Any, list[Any]]:
    import pyarrow as pa

    if len(keys) <= size:
        return keys, parts
    kept = np.sort(np.argpartition(keys, size - 1)[:size])
    return keys[kept], pa.Table.from_batches(parts).take(
        pa.array(kept)
    ).combine_chunks().to_batches()


def duplicates(path: Path, column: str) -> tuple[int, tuple[int, ...]]:
    """Returns how many rows repeat an earlier value of `column`, and the numbers of a few.

    Values are compared by 64-bit hashes (8 bytes a row, 16 million rows at once) and, where hashes
    are equal, by themselves: exact up to 100,000 repeated values, above that their count is by
    hash. Nulls are not compared.
    """
    with _opened(path) as file:
        rows = file.metadata.num_rows
    parts = max(1, -(-rows // _HELD))
    count = 0
    first: list[int] = []
    for part in range(parts):
        seen = [h[h % np.uint64(parts) == part] for _, _, h in _hashes(path, column)]
        values, counts = np.unique(np.concatenate([*seen, np.empty(0, np.uint64)]),
                                   return_counts=True)  # fmt: skip
        twice = values[counts > 1]
        proven, some = _repeated(path, column, twice[:_KEPT])
        count += int((counts - 1).sum()) if len(twice) > _KEPT else proven
        first.extend(some)
    return count, tuple(sorted(first)[:_FIRST])


def _repeated(path: Path, column: str, hashes: Any) -> tuple[int, list[int]]:
    if not len(hashes):
        return 0, []
    seen: set[str] = set()
    count = 0
    first: list[int] = []
    for start, values, found in _hashes(path, column):
        for place in np.flatnonzero(np.isin(found, hashes)):
            value = plain(values[int(place)])
            if value is None:
                continue
            if repr(value) in seen:  # NaN too: it is not equal to itself
                count += 1
                if len(first) < _FIRST:
                    first.append(start + int(place))
            seen.add(repr(value))
    return count, first


def _list(values: Any) -> list[Any]:
    try:
        found: list[Any] = values.to_pylist()
    except (OverflowError, ValueError):
        return [plain(cell) for cell in values]
    return found


def _hashes(path: Path, column: str) -> Iterator[tuple[int, Any, Any]]:
    """Yields a batch's first row number, its values, and their hashes."""
    import xxhash

    for start, batch in read_batches(path, [column]):
        values = batch.column(0)
        isnull = values.is_null().to_numpy(zero_copy_only=False)
        texts = [repr(value).encode() for value in _list(values)]
        made = np.fromiter((xxhash.xxh3_64_intdigest(t) for t in texts), np.uint64, len(texts))
        if isnull.any():  # a null's hash is its row number: no other row has it, but by chance
            made[isnull] = np.arange(start, start + len(made), dtype=np.uint64)[isnull]
        yield start, values, made

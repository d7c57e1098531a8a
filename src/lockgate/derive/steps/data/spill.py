"""Rows on disk in parts by a hash of their key, so that equal keys meet and memory is bounded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from lockgate.derive.steps.data.sketch import hash_rows

_PARTS = 64
_TOGETHER = 1 << 18
AT, SIDE = "\0at", "\0side"  # no column has such a name: names have no NUL


class Spill:
    """Groups rows by key, exactly: keys are compared by value, the hash only says where they lie.

    Memory is that of the different keys of one of 64 parts. The folder is removed at the end.
    """

    def __init__(self, folder: Path, keys: Sequence[str]) -> None:
        self._folder = folder
        self._keys = list(keys)
        self._files: list[Any] = []
        self._writers: list[Any] = []

    def __enter__(self) -> Self:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _close(self) -> None:
        for opened in (*self._writers, *self._files):
            opened.close()
        self._writers, self._files = [], []

    def add(self, table: Any, at: Any, side: Any) -> None:
        """Adds rows: a table with the keys, and for each row its number and its side (integers)."""
        import pyarrow as pa

        plain = table.select(self._keys)
        for place, column in enumerate(plain.columns):
            if pa.types.is_floating(column.type):
                plain = plain.set_column(place, plain.schema.names[place], _plain(column))
        places = (hash_rows(plain) % np.uint64(_PARTS)).astype(np.int64)
        plain = plain.append_column(AT, pa.array(np.asarray(at, np.int64)))
        plain = plain.append_column(SIDE, pa.array(np.asarray(side, np.int64)))
        if not self._writers:
            self._open(plain.schema)
        order = np.argsort(places, kind="stable")
        sorted_rows = plain.take(pa.array(order)).combine_chunks()
        ends = np.searchsorted(places[order], np.arange(_PARTS + 1))
        for part in range(_PARTS):
            if ends[part] < ends[part + 1]:
                rows = sorted_rows.slice(ends[part], ends[part + 1] - ends[part])
                self._writers[part].write_table(rows)

    def _open(self, schema: Any) -> None:
        import pyarrow as pa

        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        for part in range(_PARTS):
            self._files.append(pa.OSFile(str(self._folder / f"{part}"), "wb"))
            self._writers.append(pa.ipc.new_stream(self._files[-1], schema, options=options))

    def groups(self) -> Iterator[Any]:
        """Yields tables with one row for each key: the keys, the first `at`, and both end sides.

        Their columns are the keys, `AT`_min, `SIDE`_min, `SIDE`_max. Nulls are equal to each other.
        """
        import pyarrow as pa

        some = bool(self._writers)
        self._close()
        for part in range(_PARTS) if some else ():
            with pa.OSFile(str(self._folder / f"{part}"), "rb") as file:
                yield self._grouped(pa.ipc.open_stream(file))

    def _grouped(self, batches: Any) -> Any:
        import pyarrow as pa

        done: Any = None
        waiting: list[Any] = []
        rows = 0
        for batch in batches:
            waiting.append(batch)
            rows += batch.num_rows
            if rows >= _TOGETHER:
                done = self._merged(done, pa.Table.from_batches(waiting))
                waiting, rows = [], 0
        if waiting or done is None:
            done = self._merged(done, pa.Table.from_batches(waiting, batches.schema))
        return done

    def _merged(self, done: Any, more: Any) -> Any:
        import pyarrow as pa

        asked = [(AT, "min"), (SIDE, "min"), (SIDE, "max")]
        names = [*self._keys, f"{AT}_min", f"{SIDE}_min", f"{SIDE}_max"]
        found = pa.TableGroupBy(more, self._keys, use_threads=False).aggregate(asked).select(names)
        if done is None:
            return found
        again = [(names[-3], "min"), (names[-2], "min"), (names[-1], "max")]
        both = pa.TableGroupBy(
            pa.concat_tables([done, found]), self._keys, use_threads=False
        ).aggregate(again)
        ends = [f"{name}_{how}" for name, how in again]
        return both.select([*self._keys, *ends]).rename_columns(names)


def _plain(column: Any) -> Any:
    """Returns floats as float64 with one zero and one NaN: equal ones have equal bits."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = pc.cast(column, pa.float64())
    return pc.if_else(pc.is_nan(column), pa.scalar(float("nan")), pc.add(column, 0.0))

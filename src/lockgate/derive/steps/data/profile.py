"""A profile of rows, made while they pass: what is in each column."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from lockgate.derive.steps.data.reading.convert import as_text
from lockgate.derive.steps.data.sketch import SAMPLE, SMALLEST, Distinct, Moments, Sample

FORMAT = "lockgate/profile@1"
FILE = "profile.json"
_SHARES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_TOP = 10
_CLIP = 200


class Profile:
    """The columns of one table. `exact`: so many different values a column are counted exactly.

    With more than 64 columns each has less room, so that all have the same together.
    """

    def __init__(self, schema: Any, seed: int, exact: int = 10_000) -> None:
        room = 64 / max(64, len(schema))
        self._columns = {
            field.name: _Column(field.type, np.random.default_rng([seed, place]), exact, room)
            for place, field in enumerate(schema)
        }
        self._rows = 0

    def add(self, table: Any) -> None:
        """Looks at the next rows."""
        self._rows += table.num_rows
        for name, column in self._columns.items():
            column.add(table.column(name))

    def body(self) -> dict[str, Any]:
        """Returns the profile as a JSON value."""
        columns = {name: column.body() for name, column in self._columns.items()}
        return {"format": FORMAT, "rows": self._rows, "columns": columns}

    def write(self, folder: Path) -> None:
        """Writes `profile.json`."""
        text = json.dumps(self.body(), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / FILE).write_text(text + "\n", "utf-8")


class _Column:
    def __init__(self, kind: Any, rng: np.random.Generator, exact: int, room: float) -> None:
        import pyarrow.types as pt

        self._kind = kind
        self._numeric = pt.is_integer(kind) or pt.is_floating(kind)
        self._floating = pt.is_floating(kind)
        self._count = self._nulls = self._nonfinite = 0
        self._low: Any = None
        self._high: Any = None
        self._moments = Moments()
        self._sample = Sample(rng, max(256, int(SAMPLE * room)))
        self._distinct = Distinct(
            max(50, int(exact * room)), max(50, int(1000 * room)), max(256, int(SMALLEST * room))
        )

    def add(self, column: Any) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._count += len(column)
        self._nulls += column.null_count
        values = column.drop_null()
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        if not len(values):
            return
        counted = values.value_counts()
        self._distinct.add(_short(counted.field("values")), counted.field("counts"))
        if self._floating:
            finite = pc.is_finite(values)
            self._nonfinite += len(values) - pc.sum(finite).as_py()
            values = values.filter(finite)
        span = pc.min_max(values).as_py()
        if span["min"] is not None:
            self._low = span["min"] if self._low is None else min(self._low, span["min"])
            self._high = span["max"] if self._high is None else max(self._high, span["max"])
        if self._numeric:
            floats = values.to_numpy(zero_copy_only=False).astype(np.float64)
            self._moments.add(floats)
            self._sample.add(floats)

    def _exactness(self) -> str:
        if self._distinct.exact:
            return "exact"
        return f"estimate, standard error {self._distinct.error:.1%}"

    def body(self) -> dict[str, Any]:
        distinct = self._distinct
        found: dict[str, Any] = {
            "type": type_name(self._kind), "count": self._count, "nulls": self._nulls,
            "distinct": distinct.number(), "distinct_is": self._exactness(),
            "min": _json(self._low), "max": _json(self._high),
        }  # fmt: skip
        if self._floating:
            found["nonfinite"] = self._nonfinite
        if self._numeric:
            found["mean"] = _json(self._moments.mean if self._moments.n else None)
            found["std"] = _json(self._moments.std)
            quantiles = self._sample.quantiles(_SHARES)
            found["quantiles"] = {
                f"{s:g}": _json(q) for s, q in zip(_SHARES, quantiles, strict=False)
            }
            whole = self._sample.seen <= len(self._sample.values)
            found["quantiles_are"] = "exact" if whole else f"of {len(self._sample.values)} values"
        found["top"] = [[_json(v), c] for v, c in distinct.top(_TOP).items()]
        found["top_is"] = "exact" if distinct.exact else f"too low by at most {distinct.lost}"
        return found


def _short(values: Any) -> Any:
    """Returns different texts with long ones cut, and told apart by a hash: they are held."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import xxhash

    if values.type != pa.string() or (pc.max(pc.binary_length(values)).as_py() or 0) <= 4 * _CLIP:
        return values
    texts = values.to_pylist()
    short = (
        t if len(t) <= _CLIP else f"{t[:_CLIP]}… {xxhash.xxh3_64_hexdigest(t.encode())}"
        for t in texts
    )
    return pa.array(list(short), pa.string())


def type_name(kind: Any) -> str:
    """Returns the name of a column's Arrow type, as it is declared."""
    names = {"double": "float64", "date32[day]": "date", "timestamp[us, tz=UTC]": "timestamp"}
    return names.get(str(kind), str(kind))


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value[:_CLIP] if isinstance(value, str) else as_text(value)

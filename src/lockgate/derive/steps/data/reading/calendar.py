"""Dates and times that a calendar has: Arrow can hold others, Python and most databases can't."""

from __future__ import annotations

from typing import Any

WHY = "it is outside of the years 1 to 9999"
_DAYS = (-719_162, 2_932_896)  # 0001-01-01 and 9999-12-31, from 1970-01-01
_DAY = 86_400
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def strays(array: Any) -> list[int]:
    """Returns the indexes of dates and times before the year 1 or after 9999; none for others."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as pt

    kind = array.type
    if pt.is_date32(kind):
        low, high = _DAYS
        whole = pc.cast(pc.cast(array, pa.int32()), pa.int64())
    elif pt.is_timestamp(kind):
        tick = _TICKS[kind.unit]
        low, high = _DAYS[0] * _DAY * tick, (_DAYS[1] + 1) * _DAY * tick - 1
        whole = pc.cast(array, pa.int64())
    else:
        return []
    most = 2**63 - 1  # every time in nanoseconds is within a calendar
    ends = pa.scalar(max(low, -most), pa.int64()), pa.scalar(min(high, most), pa.int64())
    stray = pc.or_(pc.less(whole, ends[0]), pc.greater(whole, ends[1]))
    if not pc.any(stray).as_py():
        return []
    found: list[int] = pc.indices_nonzero(stray).to_pylist()
    return found

"""Quantities as people write them: `10m`, `2.5s`, `10%`, `4.2 MB`."""

from __future__ import annotations

import re

from lockgate.core.errors import UsageError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b)", re.IGNORECASE)
_SCALES = {"b": 1.0} | {
    f"{letter}{two}b": float(base**power)
    for power, letter in enumerate("kmgt", 1)
    for two, base in (("", 1000), ("i", 1024))
}
_LONGEST_S = 100 * 365 * 86_400.0
_BYTES = (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3))


def parse_duration(text: str | float) -> float:
    """Returns seconds from `90s`, `10m`, `1h30m`, `250ms` or a plain number of seconds.

    Raises UsageError for anything else.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        if not 0 <= text <= _LONGEST_S:
            raise UsageError("a duration is not below zero and not above a hundred years")
        return float(text)
    parts = _DURATION.findall(str(text).replace(" ", ""))
    if not parts or "".join(n + u for n, u in parts) != str(text).replace(" ", ""):
        raise UsageError(f"{text!r} is not a duration", hint="write it like 90s, 10m or 1h30m")
    return parse_duration(sum(float(number) * _SECONDS[unit] for number, unit in parts))


def parse_size(text: str | float) -> int:
    """Returns bytes from `500 MB`, `4GB`, `2 GiB` or a plain number of bytes.

    Raises UsageError for anything else.
    """
    if isinstance(text, int | float) and not isinstance(text, bool) and 0 <= text < 2**63:
        return int(text)
    found = _SIZE.fullmatch(str(text).strip())
    if not found:
        raise UsageError(f"{text!r} is not a size", hint="write it like 500MB, 4GB or 2GiB")
    return parse_size(float(found[1]) * _SCALES[found[2].lower()])


def parse_ratio(text: str | float) -> float:
    """Returns 0.1 from `10%` or `0.1`; raises UsageError for anything else or below zero."""
    raw = str(text).strip()
    try:
        value = float(raw[:-1]) / 100 if raw.endswith("%") else float(raw)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UsageError(f"{text!r} is not a share", hint="write it like 10% or 0.1")
    return value


def duration(seconds: float) -> str:
    """Returns `seconds` for people: `80 ms`, `4.2 s`, `3m12s`, `2h05m`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m"


def size(count: float) -> str:
    """Returns a number of bytes for people, in decimal units: `4.2 MB`."""
    for unit, scale in _BYTES:
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"

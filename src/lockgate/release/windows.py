"""Time windows in which a release may go forward: `Mon-Fri 08:00-18:00 Europe/Berlin`. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from lockgate.core.errors import UsageError

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_FORM = re.compile(
    r"(?:(?P<first>[A-Z][a-z]{2})(?:-(?P<last>[A-Z][a-z]{2}))? )?"
    r"(?P<from>\d\d:\d\d)-(?P<to>\d\d:\d\d)(?: (?P<zone>[A-Za-z0-9_+/-]{1,64}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Days of the week (0: Monday) and minutes of the day, in a time zone; the end is outside.

    An end at or before the start is on the next day.
    """

    days: frozenset[int]
    start: int
    end: int
    zone: str

    def has(self, now: float) -> bool:
        """Says whether `now` (seconds since the epoch) lies in one of them."""
        local = datetime.fromtimestamp(now, ZoneInfo(self.zone))
        minute = 60 * local.hour + local.minute
        if self.start < self.end:
            return local.weekday() in self.days and self.start <= minute < self.end
        yesterday = (local.weekday() - 1) % 7
        tonight = local.weekday() in self.days and minute >= self.start
        return tonight or (yesterday in self.days and minute < self.end)


def parse_window(text: str) -> Times:
    """Reads `Mon-Fri 08:00-18:00 Europe/Berlin`; days and zone may be left out (all days, UTC).

    Raises UsageError for anything else.
    """
    match = _FORM.fullmatch(text)
    if not match:
        raise UsageError(
            f"{text!r} is not a window", hint="write it as 'Mon-Fri 08:00-18:00 Europe/Berlin'"
        )
    zone = match["zone"] or "UTC"
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise UsageError(f"{zone!r} is not a time zone that this machine knows") from error
    start, end = _minute(match["from"]), _minute(match["to"])
    return Times(days=_days(match["first"], match["last"]), start=start, end=end, zone=zone)


def _minute(text: str) -> int:
    hour, minute = int(text[:2]), int(text[3:])
    if hour > 24 or minute > 59 or 60 * hour + minute > 1440:
        raise UsageError(f"{text!r} is not a time of the day")
    return 60 * hour + minute


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    wrong = [day for day in (first, last) if day is not None and day not in _DAYS]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is not a day: {', '.join(_DAYS)}")
    start = _DAYS.index(first)
    many = (_DAYS.index(last or first) - start) % 7 + 1
    return frozenset((start + i) % 7 for i in range(many))


def closed_until(windows: Sequence[str], now: float) -> float | None:
    """Returns None when `now` is in one of `windows`, or there are none, else when one opens.

    Found by the minute within eight days; seconds since the epoch.
    """
    return _closed_until(tuple(windows), now // 60 * 60) if windows else None


@lru_cache(maxsize=256)
def _closed_until(windows: tuple[str, ...], now: float) -> float | None:
    """Returns None when `now` is in one of `windows` (or there are none), else when one opens.

    Found by the minute within eight days; seconds since the epoch.
    """
    times = [parse_window(text) for text in windows]
    if not times or any(window.has(now) for window in times):
        return None
    minute = datetime.fromtimestamp(now, UTC).replace(second=0, microsecond=0)
    for step in range(1, 8 * 1440):
        moment = (minute + timedelta(minutes=step)).timestamp()
        if any(window.has(moment) for window in times):
            return moment
    return now + 8 * 86_400

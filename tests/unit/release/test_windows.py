"""When a release may go forward: windows over days, midnights and time zones."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import UsageError
from lockgate.release.windows import closed_until, parse_window

OFFICE = "Mon-Fri 08:00-18:00 Europe/Berlin"


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("window", "moment", "is_open"),
    [
        (OFFICE, "2026-11-20T08:00:00+01:00", True),  # a Friday
        (OFFICE, "2026-11-20T17:59:59+01:00", True),
        (OFFICE, "2026-11-20T18:00:00+01:00", False),
        (OFFICE, "2026-11-21T12:00:00+01:00", False),  # a Saturday
        (OFFICE, "2026-07-20T06:30:00+00:00", True),  # 08:30 in summer
        (OFFICE, "2026-11-20T07:30:00+00:00", True),  # 08:30 in winter
        (OFFICE, "2026-11-20T06:30:00+00:00", False),
        ("22:00-02:00", "2026-11-20T23:00:00+00:00", True),
        ("22:00-02:00", "2026-11-20T01:59:00+00:00", True),
        ("22:00-02:00", "2026-11-20T02:00:00+00:00", False),
        ("Fri 22:00-02:00", "2026-11-21T01:00:00+00:00", True),  # Friday's night
        ("Fri 22:00-02:00", "2026-11-20T01:00:00+00:00", False),  # Thursday's
        ("Sat-Mon 00:00-24:00", "2026-11-22T13:00:00+00:00", True),
        ("Sat-Mon 00:00-24:00", "2026-11-24T13:00:00+00:00", False),
    ],
)
def test_a_window(window: str, moment: str, is_open: bool) -> None:
    assert parse_window(window).has(at(moment)) is is_open


def test_a_closed_window_says_when_it_opens() -> None:
    friday_evening = at("2026-11-20T19:30:00+01:00")
    assert closed_until([OFFICE], friday_evening) == at("2026-11-23T08:00:00+01:00")
    assert closed_until([OFFICE, "Sat 10:00-12:00 Europe/Berlin"], friday_evening) == at(
        "2026-11-21T10:00:00+01:00"
    )
    assert closed_until([], friday_evening) is None
    assert closed_until([OFFICE], at("2026-11-20T09:00:00+01:00")) is None


@pytest.mark.parametrize(
    "text",
    ["", "always", "Mon", "8-18", "Mon-Fri", "Foo 08:00-18:00", "25:00-26:00", "08:00-18:61",
     "08:00-18:00 Mars/Crater", "08:00-18:00 ../../etc/passwd", "24:01-02:00"],
)  # fmt: skip
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_window(text)


@given(st.text(max_size=40))
def test_any_text_is_a_window_or_a_usage_error(text: str) -> None:
    with suppress(UsageError):
        parse_window(text)


@given(st.floats(0, 4e9), st.sampled_from([OFFICE, "22:00-02:00", "Sun 03:00-03:01"]))
def test_the_opening_that_is_promised_is_open(now: float, window: str) -> None:
    opens = closed_until([window], now)
    moment = now if opens is None else opens
    assert parse_window(window).has(moment)
    assert opens is None or opens > datetime.fromtimestamp(now, UTC).timestamp() - 60

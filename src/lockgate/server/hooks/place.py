"""How far a hook has come in the ledger: a small file, whole or not there, beside no other truth.

It is written after a delivery was acknowledged, never before: whoever kills the server between the
two makes the same message, with the same id, come twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from lockgate.core.codec import from_json, to_json
from lockgate.core.errors import IntegrityError
from lockgate.store.durable import write_durably


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Every event up to `position` is delivered, not wanted, or given up.

    `delivered`: the position delivered last, at `delivered_at`. `attempts` failed since the last
    success, from `failing_since` on, the last at `tried_at`, with `error`. `given_up` counts the
    events that will never be sent, `given_up_last` is the last one's position. Times are seconds
    since the epoch.
    """

    position: int
    delivered: int | None = None
    delivered_at: float | None = None
    attempts: int = 0
    failing_since: float | None = None
    tried_at: float | None = None
    error: str = ""
    given_up: int = 0
    given_up_last: int | None = None

    def succeeded(self, position: int, now: float) -> Place:
        """Returns the place after the delivery of the event at `position`."""
        return replace(
            self, position=position, delivered=position, delivered_at=now, attempts=0,
            failing_since=None, tried_at=now, error="",
        )  # fmt: skip

    def failed(self, error: str, now: float) -> Place:
        """Returns the place after a try that failed."""
        since = now if self.failing_since is None else self.failing_since
        return replace(
            self, attempts=self.attempts + 1, failing_since=since, tried_at=now, error=error
        )

    def gave_up(self, position: int) -> Place:
        """Returns the place after the event at `position` was given up."""
        return replace(
            self, position=position, given_up=self.given_up + 1, given_up_last=position, attempts=1
        )

    def resumed(self, now: float) -> Place:
        """Returns the place at a start: time in which nobody tried is no time of failing."""
        if self.failing_since is None or self.tried_at is None:
            return self
        idle = max(0.0, now - self.tried_at)
        return replace(self, failing_since=self.failing_since + idle, tried_at=now)

    def lost(self, age_s: float, limit_s: float, now: float) -> bool:
        """Says whether an event of that age is given up: it is old, and has failed for as long."""
        failing = 0.0 if self.failing_since is None else now - self.failing_since
        return min(age_s, failing) >= limit_s


def read_place(path: Path) -> Place | None:
    """Returns what is in `path`, None when there is no such file; raises IntegrityError."""
    try:
        return from_json(Place, json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, IntegrityError) as error:
        raise IntegrityError(
            f"{path} can't be read: {error}", hint="delete it: the hook begins with the next event"
        ) from error


def write_place(path: Path, place: Place) -> None:
    """Makes `path` hold `place`, durably. Raises OSError."""
    write_durably(path, json.dumps(to_json(place)).encode(), path.parent)

"""The hash chain over the ledger's rows: pure functions.

    hash(row) = BLAKE3(canonical JSON of
        [previous, position, stream, version, at, actor, kind, body])

with `previous` the hash of the row before, and 64 zeros before the first. An edited row no longer
has its hash; a deleted one leaves a hole; a moved one names a predecessor that is not before it.
Whoever can rewrite the whole file can rewrite the whole chain: keep a head elsewhere against that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from blake3 import blake3

from lockgate.core import canonical
from lockgate.core.errors import IntegrityError
from lockgate.core.events import Event, body_of, kind_of, parse_event
from lockgate.ledger.api import Head, Recorded, Row

ORIGIN = "0" * 64

Damage = Literal["edited", "deleted", "moved", "truncated", "replaced"]


def empty_head() -> Head:
    """Returns the head of a ledger with no rows."""
    return Head(position=0, hash=ORIGIN)


def row_hash(row: Row) -> str:
    """Returns the hash that `row` must have, from its other fields."""
    parts = [
        row.previous,
        row.position,
        row.stream,
        row.version,
        row.at,
        row.actor,
        row.kind,
        row.body,
    ]
    return blake3(canonical.encode(parts)).hexdigest()


def make_row(head: Head, event: Event, *, stream: str, version: int, at: float, actor: str) -> Row:
    """Returns the row that follows `head`."""
    draft = Row(
        position=head.position + 1,
        stream=stream,
        version=version,
        at=float(at),
        actor=actor,
        kind=kind_of(event),
        body=canonical.dumps(body_of(event)),
        previous=head.hash,
        hash="",
    )
    values = {name: getattr(draft, name) for name in Row.__slots__}
    return Row(**{**values, "hash": row_hash(draft)})


def recorded(row: Row) -> Recorded:
    """Returns the event of `row`; raises IntegrityError, naming the row, if it can't be read."""
    try:
        event = parse_event(row.kind, json.loads(row.body))
    except (ValueError, IntegrityError) as error:
        raise IntegrityError(
            f"row {row.position} of the ledger ({row.stream}, {row.kind}) can't be read: {error}",
            hint="run 'lockgate audit --verify'",
        ) from error
    return Recorded(
        position=row.position,
        stream=row.stream,
        version=row.version,
        at=row.at,
        actor=row.actor,
        event=event,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong with the chain: at which row, and what."""

    position: int
    damage: Damage
    message: str


def verify(rows: Iterable[Row], head: Head, anchor: Head | None = None) -> list[Finding]:
    """Returns every damage in the chain of `rows` (in position order), empty when it is whole.

    `head` is the end that the ledger recorded of itself, `anchor` an earlier head that was kept
    elsewhere.
    """
    findings: list[Finding] = []
    by_hash: dict[str, int] = {}
    last = empty_head()
    for row in rows:
        findings.extend(_check_row(row, last, by_hash))
        if anchor and row.position == anchor.position and row.hash != anchor.hash:
            findings.append(_replaced(row.position))
        by_hash[row.hash] = row.position
        last = Head(position=row.position, hash=row.hash)
    if last.position != head.position or last.hash != head.hash:
        findings.append(_truncated(last, head))
    if anchor and anchor.position > last.position:
        findings.append(_truncated(last, anchor))
    return findings


def _check_row(row: Row, last: Head, by_hash: dict[str, int]) -> Iterable[Finding]:
    name = f"row {row.position} ({row.stream} #{row.version}, {row.kind})"
    if row.position != last.position + 1:
        gone = (
            f"{last.position + 1}"
            if row.position == last.position + 2
            else (f"{last.position + 1} to {row.position - 1}")
        )
        yield Finding(
            position=last.position + 1, damage="deleted", message=f"row {gone} is missing"
        )
    elif row.previous != last.hash:
        after = by_hash.get(row.previous)
        where = (
            f"it was written after row {after}"
            if after is not None
            else ("the row before it is not the one it was written after")
        )
        yield Finding(position=row.position, damage="moved", message=f"{name} was moved: {where}")
    if row_hash(row) != row.hash:
        yield Finding(
            position=row.position, damage="edited", message=f"{name} was edited: its hash differs"
        )


def _truncated(last: Head, head: Head) -> Finding:
    return Finding(
        position=last.position,
        damage="truncated",
        message=f"the ledger ends at row {last.position}, but its end was recorded as row "
        f"{head.position} with hash {head.hash[:12]}…",
    )


def _replaced(position: int) -> Finding:
    return Finding(
        position=position,
        damage="replaced",
        message=f"row {position} is not the one that the anchor was taken from: "
        "the chain was rewritten",
    )

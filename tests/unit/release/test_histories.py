"""Recorded releases, folded by today's code: a running release survives an upgrade.

`python -m tests.unit.release.record` writes new ones; old ones are never rewritten.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lockgate.core.events import parse_event
from lockgate.ledger.api import Recorded
from lockgate.release.routes import Book, read

HISTORIES = Path(__file__).parents[2] / "histories"


@pytest.mark.parametrize("path", sorted(HISTORIES.glob("*.json")), ids=lambda p: p.stem)
def test_a_recorded_history_still_means_what_it_meant(path: Path) -> None:
    told = json.loads(path.read_text("utf-8"))
    book = Book()
    for row in told["events"]:
        envelope = {name: row[name] for name in ("position", "stream", "version", "at", "actor")}
        book = read(book, Recorded(**envelope, event=parse_event(row["kind"], row["body"])))
    assert {name: release.phase for name, release in book.releases.items()} == told["phases"]
    lines = {name: [s.version.number for s in r.line] for name, r in book.routes.items()}
    assert lines == told["lines"]


def test_there_are_histories() -> None:
    assert len(list(HISTORIES.glob("*.json"))) >= 3

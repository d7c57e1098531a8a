"""The contract of the ports Ledger and Leases, run on every adapter."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.core.errors import ConflictError, IntegrityError
from lockgate.core.events import AliasMoved, ReleasePromoted, UnknownEvent
from lockgate.ledger.chain import verify
from lockgate.ledger.memory import MemoryLedger
from lockgate.ledger.sqlite import SqliteLedger

AnyLedger = MemoryLedger | SqliteLedger


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyLedger]:
    made: AnyLedger = (
        MemoryLedger() if request.param == "memory" else SqliteLedger(tmp_path / "ledger.db")
    )
    yield made
    made.close()


def promoted(name: str) -> ReleasePromoted:
    return ReleasePromoted(release=name)


def test_events_come_back_in_order_with_their_envelope(ledger: AnyLedger) -> None:
    ledger.append("release/rel-1", 0, [promoted("rel-1")], actor="ann", at=10.0)
    moved = AliasMoved(model="a/b", alias="champion", number=2, digest="d", previous=None)
    ledger.append("model/a/b", 0, [moved, moved], actor="bob", at=11.5)
    read = ledger.read()
    assert [(r.position, r.stream, r.version, r.at, r.actor) for r in read] == [
        (1, "release/rel-1", 1, 10.0, "ann"),
        (2, "model/a/b", 1, 11.5, "bob"),
        (3, "model/a/b", 2, 11.5, "bob"),
    ]
    assert read[1].event == moved


def test_streams_are_read_alone_or_by_folder(ledger: AnyLedger) -> None:
    for name in ("release/rel-1", "release/rel-10", "model/a/b", "releasex/y"):
        ledger.append(name, 0, [promoted(name)], actor="ann", at=1.0)
    assert [r.stream for r in ledger.read(stream="release/rel-1")] == ["release/rel-1"]
    assert [r.stream for r in ledger.read(stream="release/")] == ["release/rel-1", "release/rel-10"]
    assert [r.position for r in ledger.read(after=2, limit=1)] == [3]


def test_whoever_expects_another_version_appends_nothing(ledger: AnyLedger) -> None:
    ledger.append("release/rel-1", 0, [promoted("rel-1")], actor="ann", at=1.0)
    with pytest.raises(ConflictError, match="1 events, not 0"):
        ledger.append("release/rel-1", 0, [promoted("x"), promoted("y")], actor="bob", at=2.0)
    assert len(ledger.read()) == 1


def test_of_many_writers_exactly_one_wins_each_version(ledger: AnyLedger) -> None:
    wins: list[int] = []

    def write(writer: int) -> None:
        for version in range(10):
            try:
                ledger.append("release/r", version, [promoted("r")], actor=str(writer), at=1.0)
                wins.append(version)
            except ConflictError:
                continue

    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(set(wins)) == sorted(wins)
    assert verify(ledger.rows(), ledger.head()) == []


def test_an_event_of_a_newer_lockgate_is_kept_as_it_is(ledger: AnyLedger) -> None:
    strange = UnknownEvent(kind="ModelSang", body={"song": "la", "bars": 3})
    ledger.append("model/a/b", 0, [strange], actor="ann", at=1.0)
    assert ledger.read()[0].event == strange


def test_an_untouched_ledger_verifies(ledger: AnyLedger) -> None:
    assert verify(ledger.rows(), ledger.head()) == []
    for i in range(20):
        ledger.append("release/r", i, [promoted("r")], actor="ann", at=float(i))
    assert verify(ledger.rows(), ledger.head()) == []
    assert ledger.head().position == 20


def test_a_lease_has_one_holder_until_it_expires(ledger: AnyLedger) -> None:
    first = ledger.acquire("loop", "one", ttl=10, now=100)
    assert first is not None
    assert ledger.acquire("loop", "two", ttl=10, now=109) is None
    renewed = ledger.acquire("loop", "one", ttl=10, now=109)
    assert renewed is not None
    assert renewed.generation == first.generation
    taken = ledger.acquire("loop", "two", ttl=10, now=120)
    assert taken is not None
    assert taken.generation == first.generation + 1


def test_a_lost_lease_can_no_longer_write(ledger: AnyLedger) -> None:
    mine = ledger.acquire("loop", "one", ttl=10, now=100)
    assert mine is not None
    ledger.append("release/r", 0, [promoted("r")], actor="one", at=1.0, fence=mine)
    ledger.acquire("loop", "two", ttl=10, now=200)
    with pytest.raises(ConflictError, match="taken over"):
        ledger.append("release/r", 1, [promoted("r")], actor="one", at=2.0, fence=mine)
    assert len(ledger.read()) == 1


def test_a_lease_given_back_is_free_at_once(ledger: AnyLedger) -> None:
    mine = ledger.acquire("loop", "one", ttl=1000, now=100)
    assert mine is not None
    ledger.give_back(mine)
    other = ledger.acquire("loop", "two", ttl=10, now=101)
    assert other is not None
    ledger.give_back(mine)  # an old holder gives back nothing of the new one's
    assert ledger.acquire("loop", "three", ttl=10, now=102) is None


def damaged(tmp_path: Path, *statements: str) -> list[str]:
    """Returns what verify says of a ten-row SQLite ledger after `statements` were run on it."""
    path = tmp_path / "ledger.db"
    ledger = SqliteLedger(path)
    for i in range(10):
        ledger.append("release/r", i, [promoted(f"r{i}")], actor="ann", at=float(i))
    ledger.close()
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
    db.close()
    ledger = SqliteLedger(path)
    try:
        findings = verify(ledger.rows(), ledger.head())
        return [f"{finding.position} {finding.damage}" for finding in findings]
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("body", "'{}'"),
        ("actor", "'eve'"),
        ("at", "4.5"),
        ("stream", "'release/x'"),
        ("kind", "'ReleaseFailed'"),
        ("version", "77"),
    ],
)
def test_an_edited_row_is_named(tmp_path: Path, column: str, value: str) -> None:
    said = damaged(tmp_path, f"UPDATE event SET {column} = {value} WHERE position = 5")
    assert said == ["5 edited"]


def test_an_edit_with_a_new_hash_is_found_at_the_next_row(tmp_path: Path) -> None:
    said = damaged(tmp_path, "UPDATE event SET hash = 'ab' WHERE position = 5")
    assert said == ["5 edited", "6 moved"]


def test_a_deleted_row_is_named(tmp_path: Path) -> None:
    assert "4 deleted" in damaged(tmp_path, "DELETE FROM event WHERE position IN (4, 5)")


def test_rows_cut_off_the_end_are_found(tmp_path: Path) -> None:
    assert damaged(tmp_path, "DELETE FROM event WHERE position > 8") == ["8 truncated"]


def test_two_rows_that_changed_places_are_named(tmp_path: Path) -> None:
    said = damaged(
        tmp_path,
        "UPDATE event SET position = 99 WHERE position = 4",
        "UPDATE event SET position = 4 WHERE position = 7",
        "UPDATE event SET position = 7 WHERE position = 99",
    )
    assert {"4 moved", "4 edited", "7 moved", "7 edited"} <= set(said)


def test_a_chain_rewritten_from_the_start_does_not_meet_an_anchor(tmp_path: Path) -> None:
    old = SqliteLedger(tmp_path / "old.db")
    new = SqliteLedger(tmp_path / "new.db")
    for i in range(5):
        old.append("release/r", i, [promoted("true")], actor="ann", at=1.0)
        new.append("release/r", i, [promoted("lie")], actor="ann", at=1.0)
    anchor = old.head()
    assert verify(new.rows(), new.head()) == []
    assert [f.damage for f in verify(new.rows(), new.head(), anchor)] == ["replaced"]
    old.close()
    new.close()


def test_a_row_that_is_not_json_is_named_when_read(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "ledger.db")
    ledger.append("release/r", 0, [promoted("r")], actor="ann", at=1.0)
    ledger.close()
    with sqlite3.connect(tmp_path / "ledger.db") as db:
        db.execute("UPDATE event SET body = '{'")
    db.close()
    ledger = SqliteLedger(tmp_path / "ledger.db")
    with pytest.raises(IntegrityError, match="row 1 of the ledger"):
        ledger.read()
    ledger.close()


def test_a_file_that_is_no_database_is_a_damaged_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, " * 1000)
    with pytest.raises(IntegrityError, match="damaged"):
        SqliteLedger(tmp_path / "ledger.db")

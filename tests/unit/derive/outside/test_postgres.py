"""Rows of a real PostgreSQL: exact types, one moment, nothing written, nothing told."""

from __future__ import annotations

import datetime as dt
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.services import PASSWORD, WRITTEN
from tests.unit.derive.data.bench import WHY, rows_of

from lockgate.core.errors import (
    DeniedError,
    IntegrityError,
    LockgateError,
    TemporaryError,
    UsageError,
)
from lockgate.derive.steps.data.outside import columns

from .taking import Taking, about

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
pa = pytest.importorskip("pyarrow", reason=WHY)


@pytest.fixture
def taking(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Taking:
    return Taking(tmp_path, postgres, monkeypatch)


@pytest.fixture
def sql(postgres: str) -> Iterator[Any]:
    """A connection that writes; its tables are gone afterwards."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        yield connection
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def refused(taking: Taking, kind: type[LockgateError] = UsageError, **of: Any) -> str:
    with pytest.raises(kind) as caught:
        taking.take("postgres", **of)
    return f"{caught.value.message} ({caught.value.hint})"


def test_rows_have_the_types_of_the_server(taking: Taking, sql: Any) -> None:
    sql.execute("""
        CREATE TYPE mood AS ENUM ('sad', 'happy');
        CREATE TABLE t (ok bool, a int2, b int4, c int8, f float4, g float8, n numeric(10, 2),
            free numeric, s text, v varchar(9), ch char(3), by bytea, d date, ts timestamp,
            tz timestamptz, clock time, span interval, u uuid, j jsonb, m mood, xs int[], ip inet);
        INSERT INTO t VALUES (true, 1, -2, 9223372036854775807, 0.1, 0.1, 12345678.90,
            123456789012345678901234567890.123456789, 'ä', 'v', 'x', '\\x00ff', '2031-01-02',
            '2031-01-02 03:04:05.25', '2031-01-02 03:04:05+02', '03:04', '1 day 2 hours',
            'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"a": 1}', 'happy', '{1,2}', '10.0.0.1');
        INSERT INTO t DEFAULT VALUES;
    """)
    folder = taking.take("postgres", query="SELECT * FROM t ORDER BY a")
    first, second = rows_of(folder)
    assert first == {
        "ok": True, "a": 1, "b": -2, "c": 9223372036854775807, "f": pytest.approx(0.1, 1e-7),
        "g": 0.1, "n": Decimal("12345678.90"), "free": "123456789012345678901234567890.123456789",
        "s": "ä", "v": "v", "ch": "x  ", "by": b"\0\xff", "d": dt.date(2031, 1, 2),
        "ts": dt.datetime(2031, 1, 2, 3, 4, 5, 250_000),  # noqa: DTZ001 - it has none
        "tz": dt.datetime(2031, 1, 2, 1, 4, 5, tzinfo=dt.UTC), "clock": "03:04:00",
        "span": "P1DT2H", "u": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "j": '{"a": 1}',
        "m": "happy", "xs": "{1,2}", "ip": "10.0.0.1",
    }  # fmt: skip
    assert set(second.values()) == {None}
    said = about(folder)
    assert said["columns"]["n"] == {"server": "numeric(10,2)", "type": "decimal128(10, 2)"}
    assert (said["rows"], said["kind"], said["connection"]) == (2, "postgres", "there")
    assert said["from"].startswith("postgresql://127.0.0.1:")
    assert taking.metrics["rows"] == 2


def test_the_digest_is_of_the_rows_and_not_of_the_file(taking: Taking, sql: Any) -> None:
    sql.execute("CREATE TABLE t AS SELECT n, n::text AS s FROM generate_series(1, 50000) AS n")
    query = "SELECT * FROM t ORDER BY n"
    digest = about(taking.take("postgres", query=query))["digest"]
    again = taking.take("postgres", query="SELECT n, s FROM t ORDER BY n ASC", digest=digest)
    assert about(again)["digest"] == digest
    sql.execute("UPDATE t SET s = 'x' WHERE n = 40000")
    said = refused(taking, IntegrityError, query=query, digest=digest)
    assert f"not {digest}" in said
    assert "it has changed" in said
    assert about(taking.take("postgres", query=query))["digest"] != digest


@pytest.mark.parametrize(("value", "kind", "column"), [
    ("infinity", "timestamptz", "timestamp[us, tz=UTC]"),
    ("0044-03-15 BC", "date", "date32[day]"), ("NaN", "numeric(5, 2)", "decimal128(5, 2)"),
])  # fmt: skip
def test_a_value_without_a_place_is_named_by_row_and_column(
    taking: Taking, sql: Any, value: str, kind: str, column: str
) -> None:
    query = f"SELECT n, (CASE n WHEN 301 THEN '{value}' END)::{kind} AS v "
    query += "FROM generate_series(1, 500) AS n"
    said = refused(taking, query=query)
    assert "row 301, column 'v'" in said
    assert column in said


@pytest.mark.parametrize("query", [
    "DELETE FROM t", "SELECT 1; DROP TABLE t", "WITH x AS (DELETE FROM t RETURNING 1) TABLE x",
    "SELECT 1; COMMIT; DROP TABLE t", "SELECT setval('numbers', 7)", "SELECT spoil()", "COMMIT",
    "SELECT set_config('transaction_read_only', 'off', true), spoil()", "COPY t TO STDOUT", ";", "",
    "CREATE TABLE x (a int)", "LOCK t",
])  # fmt: skip
def test_a_query_that_writes_is_refused(taking: Taking, sql: Any, query: str) -> None:
    sql.execute("""
        CREATE SEQUENCE numbers; CREATE TABLE t (a int); INSERT INTO t VALUES (1);
        CREATE FUNCTION spoil() RETURNS int LANGUAGE sql AS 'DELETE FROM t RETURNING a';
    """)
    with pytest.raises((UsageError, ValueError)):
        taking.take("postgres", query=query)
    assert sql.execute("SELECT count(*) FROM t").fetchone() == (1,)
    assert sql.execute("SELECT last_value FROM numbers").fetchone() == (1,)


def test_what_a_function_did_nevertheless_is_undone(taking: Taking, sql: Any) -> None:
    taking.take("postgres", query="SELECT lo_create(7)")  # PostgreSQL 15 lets it
    assert sql.execute("SELECT count(*) FROM pg_largeobject_metadata").fetchone() == (0,)


def test_rows_are_of_one_moment(taking: Taking, sql: Any) -> None:
    sql.execute("CREATE TABLE t AS SELECT n, repeat('x', 2000) AS s "
                "FROM generate_series(1, 20000) AS n")  # fmt: skip
    changed = threading.Event()

    def change(advance: Any) -> None:
        if not changed.is_set():
            changed.set()
            sql.execute("UPDATE t SET s = 'changed'; INSERT INTO t VALUES (0, 'new')")

    taking.reports = Hook(change)  # type: ignore[assignment]
    rows = rows_of(taking.take("postgres", query="SELECT * FROM t ORDER BY n"))
    assert changed.is_set()
    assert len(rows) == 20000
    assert {row["s"] for row in rows} == {"x" * 2000}


class Hook:
    """Stands where reports are collected."""

    def __init__(self, hear: Any) -> None:
        self.append = hear


def test_a_query_has_its_time(taking: Taking, sql: Any) -> None:
    said = refused(taking, query="SELECT pg_sleep(60)", seconds=0.3)
    assert "more than 0.3 s, after 0 rows" in said
    slow = "SELECT n, pg_sleep(0.01)::text FROM generate_series(1, 100000) AS n"
    assert "more than 0.5 s, after " in refused(taking, query=slow, seconds=0.5)


@pytest.mark.parametrize(("query", "word"), [
    ("SELECT * FROM nowhere", "nowhere"), ("SELEC 1", "SELEC"), ("SELECT 1 AS a, 2 AS a", "both"),
    ("SELECT 1 WHERE false", "no rows"), ("SELECT", "no header"),
    ("SELECT 1 / (n - 400) FROM generate_series(1, 500) AS n", "after"),
])  # fmt: skip
def test_what_can_not_be_taken_is_a_sentence(
    taking: Taking, sql: Any, query: str, word: str
) -> None:
    assert word in refused(taking, query=query)


def test_percent_signs_are_the_query_s_own(taking: Taking, sql: Any) -> None:
    rows = rows_of(taking.take("postgres", query="SELECT 'a%sb' AS v WHERE 'abc' LIKE 'a%'"))
    assert rows == [{"v": "a%sb"}]


def test_no_error_has_the_password(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Taking(tmp_path, postgres.replace(WRITTEN, "wr0ng-word"), monkeypatch)
    said = refused(wrong, DeniedError, query="SELECT 1")
    assert "refuses this user" in said
    assert "wr0ng" not in said
    right = Taking(tmp_path, postgres, monkeypatch)
    for query in (f"SELECT '{PASSWORD}'::int", f"SELECT {WRITTEN}"):
        said = refused(right, query=query)
        assert PASSWORD not in said
        assert WRITTEN not in said
    gone = Taking(tmp_path, f"postgresql://u:{WRITTEN}@127.0.0.1:1/x", monkeypatch)
    assert "can't be reached" in refused(gone, TemporaryError, query="SELECT 1")
    odd = Taking(tmp_path, f"{postgres}?nonsense={WRITTEN}", monkeypatch)
    with pytest.raises(LockgateError) as caught:
        odd.take("postgres", query="SELECT 1")
    assert PASSWORD not in str(caught.value)
    assert WRITTEN not in str(caught.value)
    other = Taking(tmp_path, f"nats://u:{WRITTEN}@127.0.0.1:1", monkeypatch)
    assert "begins with postgresql://" in refused(other, query="SELECT 1")


def test_a_server_that_goes_away_is_said(taking: Taking, sql: Any) -> None:
    def end(advance: Any) -> None:
        sql.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE pid <> pg_backend_pid() AND usename IS NOT NULL")  # fmt: skip

    taking.reports = Hook(end)  # type: ignore[assignment]
    query = "SELECT n, repeat('x', 5000) FROM generate_series(1, 5000) AS n"
    assert "ended the connection" in refused(taking, TemporaryError, query=query)


def test_memory_does_not_grow_with_the_rows(postgres: str, tmp_path: Path) -> None:
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from lockgate.derive.api import Work\n"
        "from lockgate.derive.steps.data.snapshot import *\n"
        "out, rows, wide = Path(sys.argv[1]), *map(int, sys.argv[2:4])\n"
        'query = f"SELECT n, md5(n::text), repeat(md5(n::text), {wide}) AS s "\n'
        'query += f"FROM generate_series(1, {rows}) AS n"\n'
        "of = {'kind': 'postgres', 'connection': 'there', 'query': query}\n"
        "out.mkdir(); asked = SnapshotParameters.model_validate({'of': of})\n"
        "Snapshot().run(Work(inputs={}, out=out, scratch=out, seed=0, report=lambda _: 0,\n"
        "                    log=lambda _: 0, parameters=asked))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )

    def mebibytes(name: str, rows: int, wide: int) -> int:
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name), str(rows), str(wide)],
            env={**os.environ, "LOCKGATE_CONNECTION_THERE": postgres}, check=True, text=True,
            capture_output=True,
        )  # fmt: skip
        return int(done.stdout)

    assert resource.getpagesize()  # Linux: ru_maxrss is in KiB
    small = mebibytes("small", 1000, 1)
    assert mebibytes("large", 400_000, 10) < small + 200  # 140 MB of texts
    assert mebibytes("wide", 200, 30_000) < small + 250  # rows of 1 MB


def test_the_digest_does_not_depend_on_how_rows_come() -> None:
    kinds = {"s": pa.string(), "b": pa.bool_(), "n": pa.decimal128(9, 2), "t": pa.timestamp("us"),
             "x": pa.float64(), "y": pa.binary()}  # fmt: skip
    told = [columns.Column(name=k, server="", type=v) for k, v in kinds.items()]
    rows = [("ä" * (n % 3), n % 2 == 0, f"{n}.25", f"2031-01-02 03:04:{n % 60:02}", n / 7, b"\0")
            for n in range(100)]  # fmt: skip
    rows[7] = rows[50] = (None,) * 6  # type: ignore[assignment]

    def digest(*cuts: int, shift: int = 0) -> str:
        hashed = columns.RowsDigest(told)
        for begin, end in zip((0, *cuts), (*cuts, 100), strict=True):
            whole = columns.table_of(told, rows, 1)
            hashed.add(whole.slice(begin, end - begin))
        return hashed.digest()

    assert digest() == digest(3, 8, 50, 51) == digest(99)
    base = digest()
    for place, value in (((7, 0), ""), ((7, 1), False), ((7, 5), b""), ((8, 0), "äää")):
        kept = rows[place[0]]
        changed = list(kept)
        changed[place[1]] = value
        rows[place[0]] = tuple(changed)  # type: ignore[assignment]
        assert digest() != base
        rows[place[0]] = kept
    rows[1], rows[2] = rows[2], rows[1]
    assert digest() != base

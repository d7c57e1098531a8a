"""What lies outside becomes a version and then rows, through the CLI; killed and taken again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.services import PASSWORD, WRITTEN, nats_server, postgres_server

from .conftest import Site

pytestmark = pytest.mark.e2e
psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")


@pytest.fixture
def warehouse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A database with a table of orders, known as the connection `warehouse`."""
    with postgres_server() as address, psycopg.connect(address, autocommit=True) as sql:
        sql.execute("CREATE TABLE orders AS SELECT n AS id, (n * 1.5)::numeric(9, 2) AS price, "
                    "'2031-01-02'::timestamptz + n * interval '1 min' AS at "
                    "FROM generate_series(1, 3000) AS n")  # fmt: skip
        monkeypatch.setenv("LOCKGATE_CONNECTION_WAREHOUSE", address)
        yield sql


def of(**what: Any) -> str:
    return f"of={json.dumps(what)}"


ORDERS = of(kind="postgres", connection="warehouse", query="SELECT * FROM orders ORDER BY id")


def test_a_query_becomes_rows(site: Site, warehouse: Any) -> None:
    made = site.json("derive", "snapshot", "--with", ORDERS, "--to", "acme/raw")
    assert (made["version"], made["metrics"]["rows"]) == ("v1", 3000)
    site.run("derive", "ingest", "--from", "source=acme/raw:v1", "--to", "acme/orders")
    site.run("restore", "acme/orders", "v1", "rows")
    profile = json.loads((site.folder / "rows" / "profile.json").read_text())
    assert profile["rows"] == 3000
    site.run("restore", "acme/raw", "v1", "raw")
    digest = json.loads((site.folder / "raw" / "snapshot.json").read_text())["digest"]

    warehouse.execute("INSERT INTO orders VALUES (3001, 1, now())")
    plan = site.json("derive", "snapshot", "--with", ORDERS, "--to", "acme/raw", "--plan-only")
    assert plan["version"] is None
    assert site.json("derive", "snapshot", "--with", ORDERS, "--to", "acme/raw")["version"] == "v2"
    site.run("derive", "snapshot", "--with", ORDERS, "--with", f"digest={digest}", "--to",
             "acme/raw", code=6)  # fmt: skip
    assert "it has changed" in site.said
    bad = of(kind="postgres", connection="warehouse", query=f"SELECT '{PASSWORD}'::int")
    site.run("derive", "snapshot", "--with", bad, "--to", "acme/raw", code=2)
    assert "the query fails" in site.said
    assert PASSWORD not in site.said
    site.run("derive", "snapshot", "--with", ORDERS.replace("warehouse", "lake"), "--to",
             "acme/raw", code=2)  # fmt: skip
    assert "LOCKGATE_CONNECTION_LAKE" in site.said
    for path in site.folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert WRITTEN.encode() not in path.read_bytes(), path


def test_a_killed_snapshot_is_taken_again(site: Site, warehouse: Any) -> None:
    slow = of(kind="postgres", connection="warehouse",
              query="SELECT id, pg_sleep(0.002)::text FROM orders ORDER BY id")  # fmt: skip
    command = [sys.executable, "-m", "lockgate.cli", "derive", "snapshot", "--with", slow, "--to",
               "acme/raw"]  # fmt: skip
    with subprocess.Popen(command, cwd=site.folder, stderr=subprocess.DEVNULL) as running:
        asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'FETCH%'"
        until = time.monotonic() + 60
        while warehouse.execute(asked).fetchone() == (0,):
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while warehouse.execute(asked).fetchone() != (0,):  # the warden ended the step with it
        assert time.monotonic() < until
        time.sleep(0.05)
    warehouse.execute("DELETE FROM orders WHERE id > 100")
    made = site.json("derive", "snapshot", "--with", slow, "--to", "acme/raw")
    assert (made["version"], made["metrics"]["rows"]) == ("v1", 100)
    assert list((site.home / "derive").glob("*/job.json")) == []


def test_a_window_of_a_stream_is_known_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    nats = pytest.importorskip("nats", reason="nats-py is not installed")
    import asyncio

    with nats_server() as address:
        monkeypatch.setenv("LOCKGATE_CONNECTION_BUS", address)

        async def fill() -> None:
            client = await nats.connect(
                address.replace(WRITTEN + "@", "@"), password=PASSWORD, user="reader"
            )
            stream = client.jetstream()
            await stream.add_stream(name="clicks", subjects=["clicks.>"])
            for n in range(50):
                await stream.publish("clicks.web", json.dumps({"n": n}).encode())
            await client.close()

        asyncio.run(fill())
        window = of(kind="nats", connection="bus", stream="clicks", since=11, until=41)
        made = site.json("derive", "snapshot", "--with", window, "--to", "acme/clicks")
        assert made["metrics"]["messages"] == 30
        beyond = window.replace("41", "52")
        site.run("derive", "snapshot", "--with", beyond, "--to", "acme/clicks", code=2)
        assert "goes to message 51, and clicks has 50 until now" in site.said
        assert site.json("rerun", "acme/clicks", "v1")["same"] is True
    again = site.json("derive", "snapshot", "--with", window, "--to", "acme/clicks")
    assert (again["reused"], again["version"]) == (True, "v1")  # the server is gone
    rows = site.json("derive", "ingest", "--from", "source=acme/clicks:v1", "--with",
                     "columns={time: timestamp}", "--to", "acme/rows")  # fmt: skip
    assert rows["metrics"]["rows"] == 30

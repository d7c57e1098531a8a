"""Windows of a real JetStream stream: whole and the same again, or refused."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.services import PASSWORD, USER, WRITTEN
from tests.unit.derive.data.bench import WHY, Room, rows_of

from lockgate.core.errors import (
    DeniedError,
    IntegrityError,
    LockgateError,
    TemporaryError,
    UsageError,
)
from lockgate.derive.connections import shown
from lockgate.derive.steps.data.ingest import Ingest
from lockgate.derive.steps.data.outside import messages, stream
from lockgate.derive.steps.data.outside.messages import Message
from lockgate.derive.steps.data.snapshot import SnapshotParameters

from .taking import Taking, about

nats = pytest.importorskip("nats", reason="nats-py is not installed")
STREAM = "orders"


@pytest.fixture
def taking(nats_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Taking:
    return Taking(tmp_path, nats_address, monkeypatch)


class Server:
    """The streams of a server; each call has a connection of its own."""

    def __init__(self, address: str) -> None:
        self._address = address

    def do(self, what: Callable[[Any], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            client = await nats.connect(
                shown(self._address), user=USER, password=PASSWORD, allow_reconnect=False
            )
            try:
                return await what(client.jetstream())
            finally:
                await client.close()

        return asyncio.run(run())

    def make(self, **config: Any) -> None:
        self.do(lambda js: js.add_stream(name=STREAM, subjects=[f"{STREAM}.>"], **config))

    def send(self, *payloads: bytes, subject: str = f"{STREAM}.eu.new", **more: Any) -> None:
        async def run(js: Any) -> None:
            for payload in payloads:
                await js.publish(subject, payload, **more)

        self.do(run)

    def remove(self) -> None:
        async def run(js: Any) -> None:
            for info in await js.streams_info():
                await js.delete_stream(info.config.name)

        self.do(run)


@pytest.fixture
def server(nats_address: str) -> Iterator[Server]:
    found = Server(nats_address)
    yield found
    found.remove()


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "messages.jsonl").read_text().splitlines()]


def refused(taking: Taking, kind: type[LockgateError] = UsageError, **of: Any) -> str:
    with pytest.raises(kind) as caught:
        taking.take("nats", **{"stream": STREAM, **of})
    return f"{caught.value.message} ({caught.value.hint})"


def test_a_window_by_numbers_is_lines_of_json(taking: Taking, server: Server) -> None:
    server.make()
    server.send(b"zero")
    server.send("één".encode(), b"\xff\x00", headers={"b": "2", "a": "1"})
    server.send(b"", subject=f"{STREAM}.us")
    server.send(b"later")
    folder = taking.take("nats", stream=STREAM, since=2, until=5)
    first, second, third = lines(folder)
    at = dt.datetime.fromisoformat(first.pop("time"))
    assert abs(at.timestamp() - time.time()) < 60
    assert first == {"sequence": 2, "subject": "orders.eu.new", "data": "één", "base64": None,
                     "headers": '{"a": "1", "b": "2"}'}  # fmt: skip
    assert (second["data"], second["base64"]) == (None, "/wA=")
    assert (third["data"], third["subject"], third["headers"]) == ("", "orders.us", None)
    assert taking.metrics == {"messages": 3, "bytes": 7, "binary": 1, "missing": 0}
    said = about(folder)
    assert said["sequences"] == {"first": 2, "end": 5}
    assert said["from"].startswith("nats://127.0.0.1:")
    assert PASSWORD not in json.dumps(said)
    again = taking.take("nats", stream=STREAM, since=2, until=5, digest=said["digest"])
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    with pytest.raises(IntegrityError):
        taking.take("nats", stream=STREAM, since=1, until=5, digest=said["digest"])


def test_a_window_by_time_and_subject(
    taking: Taking, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make()
    server.send(*[b"before"] * 3)
    since = dt.datetime.now(dt.UTC)
    server.send(*[b"in"] * 3)
    server.send(b"other", subject=f"{STREAM}.us.new")
    until = dt.datetime.now(dt.UTC)
    asked = {"since": since.isoformat(), "until": until.isoformat(), "stream": STREAM}
    said = refused(taking, **asked)
    assert "the window is not over" in said
    server.send(b"after")  # a later message is as good as time that went by
    folder = taking.take("nats", subject=f"{STREAM}.eu.>", **asked)
    assert [line["sequence"] for line in lines(folder)] == [4, 5, 6]
    assert [line["sequence"] for line in lines(taking.take("nats", **asked))] == [4, 5, 6, 7]
    monkeypatch.setattr(stream, "_SETTLED_S", 0.0)
    asked |= {"until": dt.datetime.now(dt.UTC).isoformat()}
    assert [line["sequence"] for line in lines(taking.take("nats", **asked))] == [4, 5, 6, 7, 8]
    assert "no messages" in refused(taking, **(asked | {"subject": f"{STREAM}.jp.>"}))
    empty = {"since": asked["until"], "until": dt.datetime.now(dt.UTC).isoformat()}
    assert "no messages" in refused(taking, **empty)


def test_a_window_in_the_future_is_refused(taking: Taking, server: Server) -> None:
    server.make()
    server.send(b"1", b"2", b"3")
    assert "goes to message 4, and orders has 3 until now" in refused(taking, since=1, until=5)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    now = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=30)
    said = refused(taking, since=now.isoformat(), until=later.isoformat())
    assert "the window is not over" in said


def test_messages_that_the_stream_has_dropped_are_said(taking: Taking, server: Server) -> None:
    server.make(max_msgs=3)
    start = dt.datetime.now(dt.UTC).isoformat()
    server.send(*[str(n).encode() for n in range(1, 6)])
    assert "begins at message 3 and has dropped those before" in refused(taking, since=1, until=6)
    server.send(b"6")
    middle = dt.datetime.now(dt.UTC).isoformat()
    server.send(b"7")
    said = refused(taking, since=start, until=middle)
    assert "dropped its messages before 5" in said
    assert len(lines(taking.take("nats", stream=STREAM, since=5, until=8))) == 3


def test_gaps_are_refused_or_counted(taking: Taking, server: Server) -> None:
    server.make()
    begun = dt.datetime.now(dt.UTC).isoformat()
    server.send(*[b"x"] * 9)
    ended = dt.datetime.now(dt.UTC).isoformat()
    server.send(b"y")
    server.do(lambda js: js.delete_msg(STREAM, 4))
    server.do(lambda js: js.delete_msg(STREAM, 9))
    for window in ({"since": 3, "until": 6}, {"since": 3, "until": 5, "subject": f"{STREAM}.us"},
                   {"since": begun, "until": ended}):  # fmt: skip
        assert "of the window are gone, the first is 4" in refused(taking, **window)
    assert len(lines(taking.take("nats", stream=STREAM, since=5, until=9))) == 4
    folder = taking.take("nats", stream=STREAM, since=3, until=6, gaps="allow")
    assert [line["sequence"] for line in lines(folder)] == [3, 5]
    assert about(folder)["missing"] == 1


def test_what_is_removed_while_it_is_read_is_noticed(
    taking: Taking, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.make()
    server.send(*[b"x"] * 20)
    monkeypatch.setattr(messages, "_PART_MESSAGES", 2)
    real, count = messages.Stream.state, 0

    async def state(self: Any) -> Any:
        nonlocal count
        count += 1
        if count == 2:
            await self._ask("STREAM.PURGE", {"seq": 11})
        return await real(self)

    monkeypatch.setattr(messages.Stream, "state", state)
    assert "has dropped those before" in refused(taking, since=1, until=21)


def test_a_work_queue_is_no_source(taking: Taking, server: Server) -> None:
    server.make(retention="workqueue")
    server.send(b"1")
    assert "they go when they are read" in refused(taking, since=1, until=2)


def test_limits_name_the_message(taking: Taking, server: Server) -> None:
    server.make()
    server.send(*[b"12345"] * 10)
    assert "at message 5" in refused(taking, since=1, until=11, most_messages=4)
    assert "at message 3" in refused(taking, since=1, until=11, most_bytes=14)


def test_many_and_large_messages_come_in_parts(taking: Taking, server: Server) -> None:
    server.make()

    async def fill(js: Any) -> None:
        for _ in range(0, 10_000, 500):
            for n in range(500):
                await js._nc.publish(f"{STREAM}.a", str(n).encode())
            await js._nc.flush()
        for _ in range(30):
            await js.publish(f"{STREAM}.b", b"x" * 1_000_000)

    server.do(fill)
    folder = taking.take("nats", stream=STREAM, since=1, until=10_031)
    assert [line["sequence"] for line in lines(folder)] == list(range(1, 10_031))
    assert taking.metrics["bytes"] > 30_000_000
    assert taking.reports[-1].done == taking.reports[-1].total == 10_030
    left = server.do(lambda js: js.consumers_info(STREAM))
    assert left == []


def test_messages_are_ingested(taking: Taking, server: Server, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason=WHY)
    server.make()
    server.send(b"one", b"\xff", b"three")
    room = Room(tmp_path)
    source = taking.take("nats", stream=STREAM, since=1, until=4)
    asked = {"columns": {"time": "timestamp"}, "files": ["*.jsonl"]}
    rows = rows_of(room.run(Ingest(), {"source": source}, **asked))
    assert [row["data"] for row in rows] == ["one", None, "three"]
    assert rows[0]["time"] <= rows[2]["time"] <= dt.datetime.now(dt.UTC)


def test_a_server_that_says_no(
    taking: Taking, server: Server, nats_address: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert "stream not found" in refused(taking, since=1, until=2)
    server.make()
    server.send(b"1")
    assert "subject" in refused(taking, since=1, until=2, subject="elsewhere.>")
    wrong = Taking(tmp_path, nats_address.replace(WRITTEN, "wr0ng-word"), monkeypatch)
    said = refused(wrong, DeniedError, since=1, until=2)
    assert "wr0ng" not in said
    gone = Taking(tmp_path, f"nats://u:{WRITTEN}@127.0.0.1:1", monkeypatch)
    assert "can't be reached" in refused(gone, TemporaryError, since=1, until=2)


@pytest.mark.parametrize("window", [
    {"since": 5, "until": 5}, {"since": 0, "until": 5}, {"since": 1, "until": "2031-01-02"},
    {"since": 1, "until": "2031-01-02T00:00:00Z"}, {"since": "5", "until": "6"},
    {"since": "2031-01-02T00:00:00", "until": "2031-01-03T00:00:00"}, {"since": 1},
    {"since": "2031-01-02T00:00:00Z", "until": "2031-01-01T00:00:00Z"},
    {"since": True, "until": 5}, {"since": 1, "until": 2, "stream": "a.b"},
    {"since": 1, "until": 2, "stream": "a b"}, {"since": 1, "until": 2, "subject": "a b"},
])  # fmt: skip
def test_windows_that_make_no_sense(window: dict[str, Any]) -> None:
    of = {"kind": "nats", "connection": "there", "stream": STREAM, **window}
    with pytest.raises(ValidationError):
        SnapshotParameters.model_validate({"of": of})


def test_times_and_lines_are_exact() -> None:
    assert messages.when(1_925_000_000_123_456_789) == "2031-01-01T02:13:20.123456Z"
    line = Message(sequence=1, time_ns=0, subject="a", headers=None, data=b'"\n\x00').line()
    assert line.count(b"\n") == 1
    assert json.loads(line)["data"] == '"\n\x00'

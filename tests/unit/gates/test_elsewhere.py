"""Versions that are served at an address: streamed answers with known delays, and hostile ones."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import lockgate.client.caller as caller_module
from lockgate.client.caller import Caller
from lockgate.client.elsewhere import Elsewhere, check_address
from lockgate.core.errors import TemporaryError, UsageError
from lockgate.gates.admit import Admission, admit, choose, question

from .world import BASELINE, CANDIDATE, Room

FIRST_S, NEXT_S, TOKENS = 0.12, 0.04, 6


class Handler(BaseHTTPRequestHandler):
    """Streams six tokens after known delays; `how` of the server says what is wrong with it."""

    server: Site

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        how = self.server.how
        if how == "redirect":
            self.send_response(302)
            self.send_header("location", f"http://127.0.0.1:{self.server.server_port}/else")
            self.end_headers()
        elif self.path == "/v1/models" and how != "inference":
            self.reply({"data": [{"id": "acme/y" if how == "other" else "acme/x"}, 7]})
        elif self.path == "/v2/models/acme/x" and how == "inference":
            self.reply({"name": "acme/x"})
        elif self.path == "/else":
            self.server.followed = True
            self.reply({"data": [{"id": "acme/x"}]})
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append(body)
        if not body.get("stream"):
            time.sleep(FIRST_S)
            self.reply({"choices": [{"message": {"content": "hi"}}],
                        "usage": {"completion_tokens": 2}})  # fmt: skip
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        with self.server.lock if self.server.how == "one at a time" else threading.Lock():
            self.tokens(usage=bool(body.get("stream_options")))

    def tokens(self, *, usage: bool) -> None:
        time.sleep(FIRST_S)
        for number in range(TOKENS):
            if number:
                time.sleep(NEXT_S)
            self.event({"choices": [{"delta": {"content": f"{number}"}}]})
            if self.server.how == "broken" and number == 2:
                self.event({"error": {"message": "out of memory"}})
                return
            if self.server.how == "cut" and number == 2:
                return
        if usage:
            self.event({"choices": [], "usage": {"completion_tokens": TOKENS}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value: Any) -> None:
        data = f": beat\r\ndata: {json.dumps(value)}\r\n\r\n".encode()
        for part in (data[:11], data[11:]):
            self.wfile.write(part)
            self.wfile.flush()

    def reply(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Site(ThreadingHTTPServer):
    """A server of one model, sound or not."""

    daemon_threads = True

    def __init__(self, how: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.how, self.lock, self.followed = how, threading.Lock(), False
        self.bodies: list[Any] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def site(how: str = "sound") -> Iterator[Site]:
    server = Site(how)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    room = Room(tmp_path)
    body = {"messages": [{"role": "user", "content": "hi"}]}
    room.lines("load.jsonl", [{"body": body}])
    return room


def judge(room: Room, server: Site, **settings: Any) -> Admission:
    served = Elsewhere(server.url, CANDIDATE, lambda: room.folder)
    wanted = {"requests": "load.jsonl", "rate": 20, "last": "1s", "warm_up": 1, **settings}
    candidate = replace(CANDIDATE, at=server.url)
    asked = replace(room.asked(candidate=candidate, baseline=None), serve=lambda _: served)
    try:
        return admit(choose([{"performance": wanted}]), asked, room.recorded.append)
    finally:
        served.close()


def test_tokens_are_timed_as_they_come(room: Room) -> None:
    seconds = {name: {"at_most": 5} for name in ("ttft_p50", "tpot_p50", "tpot_p99", "latency_p50")}
    with site() as server:
        found = judge(room, server, stream=True, seconds=seconds, tokens_per_second={"at_least": 1})
    assert found.outcome == "pass", found.reasons
    verdict = found.answers[0].verdict
    assert verdict.reason.endswith(f"(asked at {server.url})")
    checks = {check.signal: check for check in verdict.checks}
    value = {name: check.value or 0.0 for name, check in checks.items()}
    whole = FIRST_S + (TOKENS - 1) * NEXT_S
    assert FIRST_S <= value["ttft_p50"] < FIRST_S + 0.1
    assert NEXT_S * 0.9 <= value["tpot_p50"] < NEXT_S * 1.8
    assert whole <= value["latency_p50"] < whole + 0.2
    assert value["ttft_p50"] + (TOKENS - 1) * value["tpot_p50"] < value["latency_p50"] + 0.1
    assert (checks["ttft_p50"].unit, checks["ttft_p50"].n) == ("s", 20)
    assert server.bodies[0]["stream_options"] == {"include_usage": True}


def test_waiting_in_line_is_part_of_the_time_to_the_first_token(room: Room) -> None:
    with site("one at a time") as server:
        found = judge(room, server, rate=12, stream=True, seconds={"ttft_p95": {"at_most": 0.3}})
    assert found.outcome == "refused"
    check = found.answers[0].verdict.checks[0]
    assert (check.value or 0.0) > 0.6  # three arrive at once for each that is served meanwhile


@pytest.mark.parametrize("how", ["broken", "cut"])
def test_a_stream_that_breaks_off_is_an_error(room: Room, how: str) -> None:
    body = {"stream": True}
    room.lines("load.jsonl", [{"path": "/v1/chat/completions", "body": body}])
    with site(how) as server:
        found = judge(room, server, seconds={"ttft_p50": {"at_most": 5}})
    checks = {check.signal: check for check in found.answers[0].verdict.checks}
    assert (checks["errors"].outcome, checks["errors"].value) == ("fail", 1.0)
    assert checks["ttft_p50"].outcome == "hold"


def test_memory_elsewhere_is_not_ours_to_see(room: Room) -> None:
    with site() as server:
        found = judge(room, server, memory="1GB")
    assert found.outcome == "held"
    assert "memory was not measured: its processes are not ours to see" in found.reasons[0]


def test_times_of_tokens_need_streams(room: Room) -> None:
    with site() as server, pytest.raises(UsageError, match="no request streams"):
        judge(room, server, seconds={"ttft_p50": {"at_most": 5}})
    room.lines("load.jsonl", [{"path": "v1", "body": {}}])
    with site() as server, pytest.raises(UsageError, match="row 1 is no request"):
        judge(room, server)


def test_what_cannot_be_compared_holds(room: Room) -> None:
    """A baseline that streams nothing has no time between tokens to be worse than."""
    with site() as server, site("cut") as other:
        served = {
            subject.digest: Elsewhere(where.url, subject, lambda: room.folder)
            for subject, where in ((CANDIDATE, server), (BASELINE, other))
        }
        wanted = {"requests": "load.jsonl", "rate": 20, "last": "1s", "warm_up": 0, "stream": True,
                  "seconds": {"tpot_p50": {"worse_by_at_most": "10%"}}}  # fmt: skip
        asked = replace(room.asked(), serve=lambda subject: served[subject.digest])
        found = admit(choose([{"performance": wanted}]), asked, room.recorded.append)
        for one in served.values():
            one.close()
    assert "tpot_p50 of what serves was not measured" in found.reasons[0]


def test_the_address_is_part_of_the_question(room: Room) -> None:
    (one,) = choose([{"budget": {"size": "1kB"}}])
    here = room.asked()
    there = replace(here, candidate=replace(CANDIDATE, at="http://127.0.0.1:1"))
    baseline = replace(here, baseline=replace(BASELINE, at="http://127.0.0.1:1"))
    assert len({question(one, asked) for asked in (here, there, baseline)}) == 3


@pytest.mark.parametrize("how", ["other", "redirect"])
def test_a_server_without_the_model_is_refused(how: str) -> None:
    with site(how) as server:
        with pytest.raises(UsageError, match="does not serve acme/x"):
            Elsewhere(server.url, CANDIDATE, Path)
        assert not server.followed


def test_nobody_there_is_said() -> None:
    with pytest.raises(UsageError, match="does not serve acme/x: no answer"):
        Elsewhere("http://127.0.0.1:9", CANDIDATE, Path)


def test_a_predictive_model_is_found_by_its_own_protocol() -> None:
    with site("inference") as server:
        Elsewhere(server.url, CANDIDATE, Path).close()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host:1", "file:///etc/passwd", "http://user:secret@host", "http://host/path",
        "http://host:80?token=1", "http://ho st", "host:80", "http://", "http://host:80#x",
        "http://host\n.example",
    ],
)  # fmt: skip
def test_an_address_is_nothing_but_an_address(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_address(url)
    assert "secret" not in str(caught.value)


def test_sound_addresses() -> None:
    assert check_address("https://gpu-1.example:8443/") == "https://gpu-1.example:8443"
    assert check_address("http://[::1]:80") == "http://[::1]:80"


def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_module, "_MOST", 40)
    with site() as server:
        caller = Caller(server.url)
        with pytest.raises(TemporaryError, match="without an end"):
            caller.post("/v1/chat/completions", {})
        caller.close()

"""Strangers at the API's door: whatever is sent, the answer is a sentence and the server lives.

`ONCE_A_500` are requests that once got a bare 500.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from lockgate.analysis.judge import SequentialJudge
from lockgate.core.clock import ManualClock
from lockgate.core.digests import digest_of
from lockgate.fleet.memory import MemoryFleet
from lockgate.gateway.memory import MemoryGateway
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.observe.docket import Docket
from lockgate.observe.memory import MemorySamples
from lockgate.registry import manifest as manifests
from lockgate.registry.service import Registry
from lockgate.release.act import Ports
from lockgate.release.commands import Commands
from lockgate.release.loop import Engine, Tools
from lockgate.server.app import create_app
from lockgate.server.hooks.messenger import Messenger
from lockgate.store.api import Artifact, Object, Piece
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.frames import pack
from lockgate.store.packs import PackStore

TOKEN = "t" * 40
MODEL = "acme/chat"
EMPTY = manifests.encode(manifests.Manifest(artifacts=())).decode()
NOBODY = "blake3:" + "0" * 64
SPEC: dict[str, Any] = {"model": MODEL, "version": "v1", "strategy": {"canary": [10, 100]}}
BIG = 10**400


class Door:
    """A real HTTP server over a control plane with a memory fleet and gateway."""

    def __init__(self, folder: Path) -> None:
        clock, ledger = ManualClock(), SqliteLedger(folder / "ledger.db")
        self.registry = Registry(ledger, PackStore(LocalBlobs(folder / "store")), clock)
        fleet, gateway, samples = MemoryFleet(clock.now), MemoryGateway(), MemorySamples()
        docket = Docket(samples, samples, SequentialJudge())
        tools = Tools(ledger=ledger, leases=ledger, registry=self.registry, docket=docket,
                      clock=clock)  # fmt: skip
        engine = Engine(tools, Ports(fleet=fleet, gateway=gateway), holder="one")
        control = SimpleNamespace(
            home=folder, token=TOKEN, clock=clock, ledger=ledger, samples=samples, fleet=fleet,
            registry=self.registry, gateway=gateway, engine=engine, docket=docket,
            commands=Commands(ledger, self.registry, engine.book, clock),
            hooks=Messenger(folder, ledger, self.registry, clock),
        )  # fmt: skip
        self.ledger = ledger
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        app = create_app(control)  # type: ignore[arg-type]
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.listener]))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()
        self.ledger.close()

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        given = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        wire = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            wire.request(method, f"/api/v1{path}", body=data, headers=given)
            answer = wire.getresponse()
            text = answer.read()
        finally:
            wire.close()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, text


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    made = Door(tmp_path_factory.mktemp("door"))
    status, _ = made.ask("POST", f"/models/{MODEL}/versions", {"manifest": EMPTY})
    assert status == 200
    yield made
    made.close()


def spec(**more: object) -> dict[str, object]:
    return {"spec": SPEC | more}


def yaml(text: str) -> dict[str, str]:
    return {"yaml": text}


def deep(levels: int) -> dict[str, Any]:
    top: dict[str, Any] = {}
    here = top
    for _ in range(levels):
        here["a"] = {}
        here = here["a"]
    return top


PLANS = [
    b"{", b"null", b"[]", b"", b"\xff\xfe", yaml("\ud800"), yaml("a: \x00"), yaml("[" * 5000),
    yaml("a: &x [*x]"), yaml("a: &x 1\nb: *x"), yaml("? {a: b}\n: c"), yaml("<<: 5\nmodel: a/b"),
    yaml("a: !!python/object/apply:os.system [ls]"), yaml("a: 2001-99-99"),
    yaml("a: " + "9" * 5000),
    yaml('1: 2\n"1": 3'), yaml("a: 1\n---\nb: 2"), yaml(""), yaml("a: !!int x"), yaml("!!set {a}"),
    yaml("2001-01-01: 3"), yaml("~: 3"), yaml("x" * 1_000_001), yaml("a: !!omap x"),
    b'{"spec":{"model":"acme/chat","version":"v1","alpha":NaN,"strategy":{"canary":[NaN,100]}}}',
    b'{"spec":{"model":"acme/chat","version":"v1","bucket":Infinity,"strategy":{"canary":[100]}}}',
    spec(strategy={"canary": [100], "bake": "9" * 400 + "d"}), spec(strategy={"canary": [BIG]}),
    spec(strategy={"canary": [100], "min_requests": 10**30}), spec(replicas=BIG), spec(model=5),
    spec(version=None), spec(to=5), spec(alias="v3"), spec(checks=[{"signal": ["x"]}]),
    spec(checks=[{"signal": "tokens_per_second", "at_least": BIG}]), spec(sticky="\ud800"),
    spec(model="\ud800"), spec(runtime={"name": "\ud800"}),
    spec(runtime={"options": {"\ud800": 1}}),
    spec(runtime={"memory_mb": -1}), spec(approve={"before": [3]}), {"model": MODEL}, {},
    {"model": "\ud800", "version": "v1"}, {"model": MODEL, "version": "\u0663"},
    {"model": MODEL, "version": "v999999999"}, {"model": MODEL, "version": "v1", "spec": {}},
    {"model": MODEL, "version": "v1", "target": "../x"}, {"zzz": 1},
]  # fmt: skip
READS = [
    "/releases/%00", "/releases/%ff%fe", "/releases/rel-01", "/audit?after=-1", "/audit?after=x",
    "/audit?limit=999999999999", "/audit/verify?anchor=x", "/audit/verify?anchor=1:zz",
    "/series/acme/chat/local?since=x", "/series/acme/chat/local?slot=nan", "/models/ACME/x",
    "/models/acme/chat/versions/%00", "/models/acme/chat/versions/v0", "/models/acme/none",
    "/models/acme/chat/diff", "/models/acme/chat/diff?before=v1&after=%F0%9F%98%80",
    "/objects/%00", "/objects/token", f"/objects/{NOBODY}", "/objects/blake3:%2e%2e",
]  # fmt: skip
WRITES = [
    ("/objects", b"x"), ("/objects", b"\0" * 32 + b"\xff" * 8),
    ("/objects/missing", {"sizes": {"x": 1}}), ("/objects/missing", {"sizes": {NOBODY: -1}}),
    ("/objects/missing", {"sizes": []}), ("/objects/flush", {"digests": ["\ud800"]}),
    ("/objects/discard", {"digests": ["../token"]}), ("/releases/rel-9/hold", {"reason": "x"}),
    ("/releases/rel-9/hold", {"reason": ""}), ("/releases/%00/approve", {"reason": "x"}),
    ("/releases", spec(reason="x") | {"reason": "\ud800"}), ("/releases", {"plan": 5}),
    (f"/models/{MODEL}/rollback", {"reason": "x"}), (f"/models/{MODEL}/rollback", {}),
    (f"/models/{MODEL}/rollback", {"reason": "x", "to": "\ud800"}),
    ("/models/A/B/versions", {"manifest": EMPTY}),
    (f"/models/{MODEL}/versions", {"manifest": EMPTY, "details": {"labels": {"a": "b"} | {
        str(i): "x" for i in range(65)}}}),
    (f"/models/{MODEL}/versions", {"manifest": EMPTY, "details": {"lineage": [
        {"relation": "trained-from", "model": MODEL, "digest": "z"}]}}),
]  # fmt: skip
ONCE_A_500 = [
    ("POST", "/plan", yaml("a: !!float ''")), ("POST", "/plan", yaml("a: !!bool x")),
    ("POST", "/plan", yaml("a: !!timestamp x")), ("POST", "/plan", spec(bucket=BIG)),
    ("POST", "/plan", spec(checks=[{"signal": "latency_p95", "at_most": BIG}])),
    ("POST", "/plan", spec(runtime={"options": deep(400)})),
    ("POST", f"/models/{MODEL}/rollback", {"reason": "x", "target": "\ud800"}),
    ("GET", "/audit?after=99999999999999999999", None),
    ("GET", "/audit/verify?anchor=%C2%B2:" + "0" * 64, None),
    ("GET", "/audit/verify?anchor=" + "9" * 5000 + ":" + "0" * 64, None),
    ("POST", f"/models/{MODEL}/versions", b"{"), ("POST", f"/models/{MODEL}/versions", b"{}"),
    ("POST", f"/models/{MODEL}/versions", b"\xff"),
    ("POST", f"/models/{MODEL}/versions", {"manifest": "\ud800"}),
    ("POST", f"/models/{MODEL}/versions", {"manifest": "x"}),
    ("POST", f"/models/{MODEL}/versions", {"manifest": EMPTY, "details": {"labels": 5}}),
    ("POST", "/objects", b"\0" * 32 + b"\1" + b"\0" * 7 + b"z"),
    ("POST", "/objects/flush", {"digests": [NOBODY]}),
    ("GET", "/nope", None), ("DELETE", "/models", None),
    ("POST", "/plan", b"[" * 100_000), ("GET", "/models/..%2f..%2fetc/passwd", None),
]  # fmt: skip


def is_a_sentence(answer: tuple[int, Any]) -> None:
    status, body = answer
    assert 400 <= status < 500, answer
    assert body["error"]["code"], answer
    assert body["error"]["message"], answer


@pytest.mark.parametrize("body", PLANS, ids=range(len(PLANS)))
def test_no_spec_gets_more_than_a_sentence(door: Door, body: object) -> None:
    is_a_sentence(door.ask("POST", "/plan", body))


@pytest.mark.parametrize("path", READS, ids=range(len(READS)))
def test_no_path_gets_more_than_a_sentence(door: Door, path: str) -> None:
    is_a_sentence(door.ask("GET", path))


@pytest.mark.parametrize(("path", "body"), WRITES, ids=range(len(WRITES)))
def test_no_body_gets_more_than_a_sentence(door: Door, path: str, body: object) -> None:
    before = door.ledger.head()
    is_a_sentence(door.ask("POST", path, body))
    assert door.ledger.head() == before


@pytest.mark.parametrize(("method", "path", "body"), ONCE_A_500, ids=range(len(ONCE_A_500)))
def test_these_too(door: Door, method: str, path: str, body: object) -> None:
    is_a_sentence(door.ask(method, path, body))


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer x", "Basic dDp0", "Bearer \xff"])
def test_nobody_gets_in_without_the_token(door: Door, given: str) -> None:
    status, body = door.ask("GET", "/status", authorization=given)
    assert (status, body["error"]["code"]) == (403, "denied")


def test_bodies_of_another_kind_cut_and_slow(door: Door) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        is_a_sentence(door.ask("POST", "/plan", b"a=b", content_type=kind))
    cut = socket.create_connection(("127.0.0.1", door.port))
    head = f"POST /api/v1/objects HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n"
    cut.sendall(head.encode() + b"content-length: 1000\r\n\r\nabc")
    assert door.ask("GET", "/status")[0] == 200  # a slow one holds up nobody
    cut.close()
    chunked = socket.create_connection(("127.0.0.1", door.port))
    chunked.sendall(head.encode() + b"transfer-encoding: chunked\r\n\r\nZZ\r\n")
    assert b" 400 " in chunked.recv(200)
    chunked.close()
    assert door.ask("GET", "/status")[0] == 200


def whole(data: bytes) -> str:
    """A manifest of one file in two pieces."""
    halves = (data[: len(data) // 2], data[len(data) // 2 :])
    pieces = tuple(Piece(digest=digest_of(half), size=len(half)) for half in halves)
    file = Artifact(path="w", size=len(data), pieces=pieces)
    return manifests.encode(manifests.Manifest(artifacts=(file,))).decode()


def send(door: Door, *objects: bytes) -> None:
    frames = b"".join(pack(Object(digest=digest_of(data), data=data) for data in objects))
    assert door.ask("POST", "/objects", frames)[0] == 200


def test_many_publish_the_same_and_another_content_at_once(door: Door) -> None:
    send(door, b"aa", b"bb", b"cc")
    texts = [whole(b"aabb"), whole(b"aacc")]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(
            lambda i: door.ask("POST", "/models/acme/race/versions", {"manifest": texts[i % 2]}),
            range(24)))  # fmt: skip
    assert {status for status, _ in answers} == {200}
    assert sum(body["created"] for _, body in answers) == 2
    assert sorted({body["number"] for _, body in answers}) == [1, 2]


def test_objects_that_somebody_discarded_are_missed_at_commit(door: Door) -> None:
    send(door, b"dd", b"ee")
    digests = [digest_of(b"dd"), digest_of(b"ee")]
    assert door.ask("POST", "/objects/discard", {"digests": digests}) == (200, {"discarded": 2})
    _, body = door.ask("POST", "/models/acme/gone/versions", {"manifest": whole(b"ddee")})
    assert "not in the store" in body["error"]["message"]
    assert door.ask("GET", "/models/acme/gone")[0] == 404


def test_a_lie_about_a_file_is_refused_and_what_a_version_names_stays(door: Door) -> None:
    send(door, b"ff", b"gg")
    lie = whole(b"ffgg").replace('"sizes":[2,2]', '"sizes":[3,1]')
    status, told = door.ask("POST", "/models/acme/lie/versions", {"manifest": lie})
    assert status == 422
    assert "not in the store" in told["error"]["message"]
    status, made = door.ask("POST", "/models/acme/lie/versions", {"manifest": whole(b"ffgg")})
    assert status == 200
    names = [made["digest"], digest_of(b"ff"), digest_of(b"gg")]
    assert door.ask("POST", "/objects/discard", {"digests": names}) == (200, {"discarded": 0})
    assert door.ask("GET", f"/objects/{names[1]}")[0] == 200

"""Reports at a server's real door: who may, once, and what is kept."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn

from lockgate.core.clock import SystemClock
from lockgate.core.events import TrainingReported
from lockgate.ledger.audit import say
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.registry import manifest as manifests
from lockgate.registry.service import Details, Registry
from lockgate.server.app import create_app
from lockgate.server.hooks.messenger import Messenger
from lockgate.server.hooks.report import MAX_BODY
from lockgate.server.hooks.signature import headers, parse_secret
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.packs import PackStore

TEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SECRET = parse_secret(TEXT)
MODEL = "acme/chat"
HOOKS = """\
in:
  training: {secret: [{file: old.secret}, {file: new.secret}], models: acme/*}
"""
GOOD: dict[str, Any] = {
    "model": MODEL, "version": 1, "status": "succeeded", "run": "nightly-112",
    "url": "https://runs.example/112", "metrics": {"loss": 0.41, "steps": 900},
}  # fmt: skip


class Door:
    """A real HTTP server over a registry with one version."""

    def __init__(self, home: Path) -> None:
        (home / "hooks.yaml").write_text(HOOKS)
        for name, text in (("old", "whsec_" + "QUFB" * 10), ("new", TEXT)):
            (home / f"{name}.secret").write_text(text)
            (home / f"{name}.secret").chmod(0o600)
        self.ledger = SqliteLedger(home / "ledger.db")
        self.registry = Registry(self.ledger, PackStore(LocalBlobs(home / "store")), SystemClock())
        empty = manifests.encode(manifests.Manifest(artifacts=()))
        for model in (MODEL, "other/chat"):
            self.registry.commit(model, empty, Details(), actor="tester")
        control: Any = SimpleNamespace(
            token="t" * 40, registry=self.registry, commands=None, keeper=None,
            hooks=Messenger(home, self.ledger, self.registry, SystemClock()),
        )  # fmt: skip
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(
            uvicorn.Config(create_app(control), log_config=None, access_log=False)
        )
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self.listener]))
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()
        self.ledger.close()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self.listener.getsockname(), timeout=20)

    def send(self, body: bytes, signed: dict[str, str], name: str = "training") -> tuple[int, Any]:
        connection = self.connect()
        connection.request("POST", f"/v1/hooks/{name}", body, signed)
        answer = connection.getresponse()
        found = json.loads(answer.read())
        connection.close()
        return answer.status, found

    def report(
        self,
        message: str = "run-1",
        *,
        at: float | None = None,
        name: str = "training",
        **values: Any,
    ) -> tuple[int, Any]:
        body = json.dumps(GOOD | values).encode()
        now = time.time() if at is None else at
        return self.send(body, headers([SECRET], message, int(now), body), name)

    def reported(self) -> list[TrainingReported]:
        found = self.ledger.read(limit=1000)
        return [r.event for r in found if isinstance(r.event, TrainingReported)]


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path)
    yield made
    made.close()


def test_a_report_is_kept_once_and_has_the_same_answer_each_time(door: Door) -> None:
    answers = [door.report() for _ in range(3)]
    answers.append(door.report(at=time.time() - 200))  # signed anew is the same message
    digest = door.registry.version(MODEL, "v1").digest
    wanted = {"model": MODEL, "version": "v1", "digest": digest, "status": "succeeded",
              "message": "run-1"}  # fmt: skip
    assert answers == [(200, wanted)] * 4
    (event,) = door.reported()
    assert (event.hook, event.run, event.metrics) == (
        "training", "nightly-112", {"loss": 0.41, "steps": 900.0},
    )  # fmt: skip
    assert say(event) == "v1 of acme/chat: run nightly-112 succeeded (loss 0.41, steps 900)"
    assert door.registry.version(MODEL, "v1").reported == (event,)
    (recorded,) = [r for r in door.ledger.read() if r.event == event]
    assert recorded.actor == "hook/training"


def test_a_version_may_be_named_by_number_or_digest(door: Door) -> None:
    digest = door.registry.version(MODEL, "v1").digest
    for index, version in enumerate((1, "1", "v1", digest)):
        assert door.report(f"run-{index}", version=version)[0] == 200
    assert len(door.reported()) == 4


def test_a_message_says_one_thing(door: Door) -> None:
    door.report()
    status, found = door.report(status="failed")
    assert (status, found["error"]["code"]) == (409, "conflict")
    assert len(door.reported()) == 1


def test_what_was_refused_may_be_said_again(door: Door) -> None:
    assert door.report(version=2)[0] == 404
    assert door.reported() == []
    assert door.report(version=1)[0] == 200


@pytest.mark.parametrize("seconds", [-301, 301, -86_400])
def test_a_recorded_message_can_not_be_played_later(door: Door, seconds: int) -> None:
    status, found = door.report(at=time.time() + seconds)
    assert (status, found["error"]["code"]) == (403, "denied")
    assert door.reported() == []


def test_who_can_not_sign_is_told_nothing(door: Door) -> None:
    body = json.dumps(GOOD).encode()
    stranger = parse_secret("whsec_" + "QkJC" * 10)
    wrong = headers([stranger], "run-1", int(time.time()), body)
    right = headers([SECRET], "run-1", int(time.time()), body)
    said = [
        door.send(body, wrong), door.send(body, wrong, "nobody"), door.send(body + b" ", right),
        door.send(body, right, "nobody"), door.send(b"\xff", wrong),
        door.send(body, {**right, "webhook-id": "run-2"}),
        door.send(body, {**right, "webhook-timestamp": str(int(time.time()) + 1)}),
    ]  # fmt: skip
    assert {status for status, _ in said} == {403}
    assert len({json.dumps(found) for _, found in said}) == 1
    assert door.send(body, {})[0] == 403
    assert door.send(body, {"authorization": "Bearer " + "t" * 40})[0] == 403
    assert door.reported() == []


def test_either_secret_is_good_while_they_change(door: Door) -> None:
    old = parse_secret("whsec_" + "QUFB" * 10)
    body = json.dumps(GOOD).encode()
    assert door.send(body, headers([old], "a", int(time.time()), body))[0] == 200


def test_a_hook_reports_of_its_models_alone(door: Door) -> None:
    status, found = door.report(model="other/chat")
    assert (status, found["error"]["code"]) == (403, "denied")


@pytest.mark.parametrize(
    "values",
    [
        {"status": "done"}, {"run": ""}, {"run": "x" * 201}, {"run": "a\nb"}, {"run": None},
        {"url": "javascript:alert(1)"}, {"url": "https://x y"}, {"metrics": {"a": "b"}},
        {"metrics": {"a" * 65: 1}}, {"metrics": {"a\n": 1}},
        {"metrics": {str(i): 1 for i in range(101)}},
        {"metrics": {"a": float("nan")}}, {"metrics": {"a": 10**400}}, {"version": "champion"},
        {"version": 0}, {"version": -1}, {"version": 1.5}, {"version": True}, {"version": None},
        {"version": "x" * 300}, {"model": "../x"}, {"model": ["acme/chat"]}, {"extra": 1},
        {"run": "\ud800"},
    ],
)  # fmt: skip
def test_what_is_no_report_is_a_sentence_and_not_kept(door: Door, values: Any) -> None:
    status, found = door.report(**values)
    assert 400 <= status < 500, found
    assert found["error"]["message"]
    assert door.reported() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"[" * 60_000, b"\xff\xfe"])
def test_bodies_that_are_no_json(door: Door, body: bytes) -> None:
    assert door.send(body, headers([SECRET], "run-1", int(time.time()), body))[0] == 422


def test_a_body_without_end_is_not_read(door: Door) -> None:
    body = b"x" * (MAX_BODY + 1)
    status, _ = door.send(body, headers([SECRET], "run-1", int(time.time()), body))
    assert status == 422
    connection = door.connect()
    connection.putrequest("POST", "/v1/hooks/training")
    connection.putheader("content-length", str(1 << 40))
    connection.endheaders()
    answer = connection.getresponse()  # without a claim the body is not waited for
    assert answer.status == 403
    connection.close()


def test_one_version_has_no_end_of_reports(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lockgate.registry.service._MAX_REPORTS", 3)
    said = [door.report(f"run-{index}")[0] for index in range(5)]
    assert said == [200, 200, 200, 422, 422]
    assert door.report("run-0")[0] == 200

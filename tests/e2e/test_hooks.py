"""Signed messages of a real server: kills between deliveries, receivers that are down, reports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.hooks.receiver import Handler, Receiver

from lockgate.core.errors import LockgateError
from lockgate.server.hooks.signature import parse_secret

from .calls import MODELS
from .conftest import CREDIT, Site, end, wait

pytestmark = pytest.mark.e2e

TEXT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAGE = Path(__file__).parents[2] / "docs/ci.md"


def configure(site: Site, *receivers: Receiver, **settings: Any) -> None:
    """Writes a `hooks.yaml` with a hook for each receiver, and one for reports."""
    site.home.mkdir(mode=0o700, exist_ok=True)
    secret = site.home / "the.secret"
    secret.write_text(TEXT)
    secret.chmod(0o600)
    named = {"secret": {"file": secret.name}}
    out = {f"out-{i}": {"url": r.url, **named, **settings} for i, r in enumerate(receivers)}
    hooks = {"out": out, "in": {"training": named}}
    (site.home / "hooks.yaml").write_text(json.dumps(hooks))  # JSON is YAML


@pytest.fixture
def cold(tmp_path: Path) -> Iterator[Site]:
    """A site whose server is not started yet."""
    made = Site(tmp_path)
    yield made
    if made.process is not None:
        end(made)


def ledger(site: Site) -> list[Any]:
    """Returns every event that there is, from the server."""
    with site.client() as client:
        found: list[Any] = client.get("/audit", limit=10_000)
        return found


def move(site: Site, count: int) -> None:
    """Moves an alias so many times: the cheapest events there are."""
    with site.client() as client:
        for index in range(count):
            body = {"version": f"v{1 + index % 2}", "reason": str(index)}
            client.request("PUT", f"/models/{CREDIT}/aliases/champion", body=body)


def publish(site: Site) -> None:
    for version in (1, 2):
        site.run("publish", str(MODELS / f"credit-v{version}"), CREDIT)


def test_the_server_is_killed_before_and_after_answers_and_nothing_is_left_out(cold: Site) -> None:
    """kill -9 while a message is on its way, and at once after it was taken."""
    kills = 0

    def deadly(handler: Handler) -> None:
        nonlocal kills
        last = receiver.got[-1]
        again = [got.id for got in receiver.got].count(last.id) > 1
        moment = last.json["position"] % 4
        if last.json["type"] != "AliasMoved" or again or moment > 1:
            handler.answer(204)
            return
        if moment:
            handler.answer(204)
        assert cold.process is not None
        cold.process.kill()
        kills += 1

    with Receiver(deadly) as receiver:
        configure(cold, receiver, events=["VersionPublished", "AliasMoved"])
        cold.start()
        publish(cold)
        wait(lambda: len(receiver.got) == 2)
        cold.stop()  # the moves are made by a server that tells nobody
        (cold.home / "hooks.yaml").rename(cold.home / "aside")
        cold.start()
        move(cold, 14)
        cold.stop()
        (cold.home / "aside").rename(cold.home / "hooks.yaml")
        deadline = time.monotonic() + 150
        while len({got.id for got in receiver.got}) < 16:
            assert time.monotonic() < deadline
            if cold.process is None or cold.process.poll() is not None:
                cold.launch()
            time.sleep(0.05)
        time.sleep(0.5)
        if cold.process is None or cold.process.poll() is not None:
            cold.launch()
        wait(cold._answers, 40)
        wait(lambda: cold.json("hooks")["out"][0]["waiting"] == 0)
        receiver.check(parse_secret(TEXT))
    assert kills >= 6
    events = [
        e["position"] for e in ledger(cold) if e["kind"] in ("VersionPublished", "AliasMoved")
    ]
    first = list(dict.fromkeys(got.json["position"] for got in receiver.got))
    assert first == events  # in order, none left out
    assert len(receiver.got) > len(events)  # some came twice, with the same id
    bodies: dict[str, set[bytes]] = {}
    for got in receiver.got:
        bodies.setdefault(got.id, set()).add(got.body)
    assert len(bodies) == len(events)
    assert all(len(each) == 1 for each in bodies.values())
    cold.run("audit", "--verify")


def test_a_receiver_that_is_down_is_shown_and_gets_all_of_it_when_it_is_up(cold: Site) -> None:
    receiver = Receiver()
    with receiver:
        configure(cold, receiver)
    cold.start()
    publish(cold)
    wait(lambda: cold.json("hooks")["out"][0]["attempts"] >= 2)
    (shown,) = cold.json("hooks")["out"]
    assert (shown["waiting"], shown["delivered"], shown["given_up"]) == (2, None, 0)
    assert "no answer" in shown["error"]
    cold.run("hooks", "test", "out-0", code=20)
    assert "out-0 did not take it" in cold.said
    cold.run("hooks", "test", "nobody", code=3)
    assert {"check": "hook out-0", "ok": False, "detail": shown["error"]} in cold.json(
        "doctor", code=1
    )
    with cold.client() as client:
        page = client.request("GET", "/metrics").text
    assert re.search(r'^lockgate_hook_failing_seconds{hook="out-0"} [1-9]', page, re.MULTILINE)
    assert 'lockgate_hook_given_up_total{hook="out-0"} 0.0' in page
    with receiver:
        cold.run("hooks", "test", "out-0")
        wait(lambda: len(receiver.got) == 3)
        receiver.check(parse_secret(TEXT))
        assert [got.json["type"] for got in receiver.got] == ["Test"] + ["VersionPublished"] * 2
        wait(lambda: cold.json("hooks")["out"][0]["failing_since"] is None)
    told = cold.run("hooks")
    assert "#2" in told
    for text in (told, (cold.home / "server.log").read_text(), json.dumps(ledger(cold))):
        assert "not-shown" not in text  # a path may be secret
        assert TEXT[6:] not in text


def test_slow_and_bad_receivers_delay_no_release(cold: Site) -> None:
    def silent(_: Handler) -> None:
        time.sleep(30)

    def flood(handler: Handler) -> None:
        handler.send_response(500)
        handler.send_header("content-length", str(1 << 30))
        handler.end_headers()
        while True:
            handler.connection.sendall(b"x" * 65_536)

    with (
        Receiver(silent) as slow, Receiver(flood) as huge, Receiver() as fast,
        Receiver(lambda handler: handler.answer(307, location=fast.url)) as elsewhere,
    ):  # fmt: skip
        configure(cold, slow, huge, elsewhere, fast)
        cold.start()
        cold.serve_first(CREDIT, "credit")
        done = time.monotonic()
        kinds = [event["kind"] for event in ledger(cold)]
        assert kinds[-1] == "ReleasePromoted"
        wait(lambda: len(fast.got) == len(kinds), 5)
        assert time.monotonic() - done < 5
        assert [got.json["type"] for got in fast.got] == kinds
        assert {got.json["model"] for got in fast.got} == {CREDIT}
        errors = [row["error"] for row in cold.json("hooks")["out"]]
        assert "answered 500: xxx" in errors[1]
        assert "redirects are not followed" in errors[2]
        assert errors[3] == ""


def block(kind: str, word: str) -> str:
    """Returns the one fenced block of docs/ci.md that has `word` in it."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (wanted,) = [text for text in found if word in text]
    return str(wanted)


def test_a_training_job_reports_as_the_page_shows_and_ci_is_told(cold: Site) -> None:
    """The page's shell signs, the page's Python verifies what comes out."""
    if shutil.which("curl") is None or shutil.which("openssl") is None:
        pytest.skip("curl or openssl is not installed")
    said: dict[str, Any] = {}
    exec(block("python", "def verify"), said)  # noqa: S102 - our own page
    verify: Callable[[str, dict[str, str], bytes], None] = said["verify"]
    script = block("sh", "webhook-signature").replace("acme/chat", CREDIT).replace('"v7"', '"v2"')
    with Receiver() as receiver:
        configure(cold, receiver, events="TrainingReported", models=CREDIT)
        cold.start()
        publish(cold)
        env = {**os.environ, "LOCKGATE": f"http://127.0.0.1:{cold.port}", "SECRET": TEXT}
        answers = [
            subprocess.run(["sh", "-ec", script], env=env, capture_output=True, text=True)
            for _ in range(2)
        ]
        assert [done.returncode for done in answers] == [0, 0], answers
        assert answers[0].stdout == answers[1].stdout
        assert json.loads(answers[0].stdout)["version"] == "v2"
        wait(lambda: len(receiver.got) == 1)
        (got,) = receiver.got
        verify(TEXT, got.headers, got.body)
        with pytest.raises(ValueError, match="not from lockgate"):
            verify(TEXT, got.headers, got.body + b" ")
        assert got.json["data"]["metrics"] == {"loss": 0.41}
        wrong = subprocess.run(["sh", "-ec", script], env={**env, "SECRET": "whsec_" + "QkJC" * 10},
                               capture_output=True, text=True)  # fmt: skip
        assert wrong.returncode == 22
        assert "denied" in wrong.stdout
    shown = cold.run("show", CREDIT, "v2")
    assert "nightly-112 succeeded  loss=0.41  by training" in shown
    assert len([e for e in ledger(cold) if e["kind"] == "TrainingReported"]) == 1
    assert cold.json("hooks")["in"] == [{"name": "training", "models": ["*"], "reports": 1}]
    cold.kill()
    cold.start()  # what was reported is remembered over a kill
    env["LOCKGATE"] = f"http://127.0.0.1:{cold.port}"
    again = subprocess.run(["sh", "-ec", script], env=env, capture_output=True, text=True)
    assert again.stdout == answers[0].stdout
    assert len([e for e in ledger(cold) if e["kind"] == "TrainingReported"]) == 1


def test_a_server_does_not_start_with_mistakes_in_its_hooks(cold: Site) -> None:
    with Receiver() as receiver:
        configure(cold, receiver, colour="blue")
    done = subprocess.run(
        [sys.executable, "-m", "lockgate.cli", "serve", "--port", "0", "--gateway-port", "0"],
        cwd=cold.folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "out.out-0.colour: there is no such setting" in done.stderr
    assert "hooks.yaml" in done.stderr
    with pytest.raises(LockgateError):
        cold.client()

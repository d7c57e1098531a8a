"""The whole circle by hand, as the README tells it: CLI in, answers through Envoy out."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from .calls import MODELS, Callers, chat_callers, credit_callers
from .conftest import CHAT, CREDIT, Site, end

pytestmark = pytest.mark.e2e

SPEC = """\
model: acme/chat
version: v2
to: local
strategy: {canary: [20, 100], bake: 2s, min_requests: 20}
bucket: 1s
checks:
  - {signal: error_rate, worse_by_at_most: 25%, floor: 1%}
alias: champion
"""


def post(site: Site, path: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        site.address + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def question(model: str = CHAT) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "What is 49 - 19?"}]}


def test_the_circle_by_hand(site: Site) -> None:
    said = site.run("publish", str(MODELS / "chat-v1"), CHAT)
    assert "acme/chat v1" in said
    assert "lockgate release acme/chat v1 --to local" in site.said
    assert "v1 serves" in site.run("release", CHAT, "v1", "--to", "local")

    status, answer = post(site, "/v1/chat/completions", question())
    assert status == 200
    assert answer["system_fingerprint"] == site.json("show", CHAT, "v1")["digest"]
    assert post(site, f"/{CHAT}/v1/chat/completions", question())[0] == 200
    assert post(site, "/v1/chat/completions", question("acme/nobody"))[0] == 404

    site.run("publish", str(MODELS / "chat-v2"), CHAT)
    assert "v1 is this content already" in site.run("publish", str(MODELS / "chat-v1"), CHAT)
    (site.folder / "release.yaml").write_text(SPEC)
    plan = site.json("plan", "release.yaml")
    assert [step["weight"] for step in plan["steps"]] == [2000, 10_000]
    site.run("plan", "release.yaml", "--exit-code", code=9)

    with Callers(site.address, chat_callers(4), pause_s=0.02) as callers:
        callers.wait_for(20)
        site.run("release", "release.yaml", "--plan", plan["digest"], "--watch")
        callers.wait_for(len(callers.calls) + 20)
    assert callers.failed == []
    assert site.json("models", CHAT)["aliases"] == {"champion": 2}
    assert "serves already" in site.run("release", "release.yaml")
    site.run("release", "release.yaml", "--plan", plan["digest"], code=4)

    view = site.json("explain", "rel-2")
    assert view["phase"] == "promoted"
    assert [check["outcome"] for check in view["verdict"]["checks"]] == ["pass"]
    assert "step 2 passed" in site.run("explain", "rel-2")
    assert "v2" in site.run("status")

    started = time.monotonic()
    site.run("rollback", CHAT, "--reason", "support says so")
    assert time.monotonic() - started < 10
    assert (
        post(site, "/v1/chat/completions", question())[1]["system_fingerprint"]
        == site.json("show", CHAT, "v1")["digest"]
    )

    audit = site.run("audit")
    assert "support says so" in audit
    assert "tester" in audit
    assert "events, each chained" in site.run("audit", "--verify")
    assert site.stop() == 0


def test_a_release_by_hand_that_fails_tells_ci_why(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    site.run("publish", str(MODELS / "credit-v3"), CREDIT)
    (site.folder / "bad.yaml").write_text(
        SPEC.replace(CHAT, CREDIT).replace("alias: champion\n", "")
        .replace("error_rate, worse_by_at_most: 25%, floor: 1%",
                 "latency_p50, worse_by_at_most: 5%")
    )  # fmt: skip
    with Callers(site.address, credit_callers(4), pause_s=0.01) as callers:
        callers.wait_for(50)
        site.run("release", "bad.yaml", "--wait", code=11)
        assert "latency_p50 is worse" in site.said
        callers.wait_for(len(callers.calls) + 50)
    assert callers.failed == []
    assert [r["phase"] for r in site.json("releases")] == ["reverted", "promoted"]


def test_a_release_without_traffic_is_held_and_says_so(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    site.run("publish", str(MODELS / "credit-v2"), CREDIT)
    (site.folder / "r.yaml").write_text(SPEC.replace(CHAT, CREDIT) + "approve: {before: [100]}\n")
    site.run("release", "r.yaml", "--wait", code=12)
    assert "0 of 20 requests" in site.said
    site.run("release", "r.yaml", code=4)
    site.run("watch", "rel-2", "--ok-when", "held")
    with Callers(site.address, credit_callers(2), pause_s=0.01):
        held = site.json("watch", "rel-2", "--timeout", "1s", "--ok-when", "held")
        for _ in range(100):
            held = site.json("explain", "rel-2")
            if held["held"] and held["held"]["because"] == "approval":
                break
            time.sleep(0.2)
        assert held["held"]["because"] == "approval"
        site.run("approve", "rel-2", "--reason", "numbers are good")
        assert site.ended("rel-2")["phase"] == "promoted"


def test_blue_green_with_absolute_checks(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    site.run("publish", str(MODELS / "credit-v2"), CREDIT)
    name_checks = [{"signal": "error_rate", "at_most": "5%"}]
    with Callers(site.address, credit_callers(2), pause_s=0.01) as callers:
        name = site.open(
            CREDIT, 2, strategy={"blue-green": True, "bake": "1s", "min_requests": 20},
            checks=name_checks,
        )  # fmt: skip
        assert site.ended(name)["phase"] == "promoted"
    assert callers.failed == []


def test_mistakes_have_sentences_and_exit_codes(site: Site) -> None:
    site.run("show", "acme/nothing", "v1", code=3)
    assert "there is no model acme/nothing" in site.said
    site.run("publish", "nowhere", CHAT, code=3)
    site.run("publish", str(MODELS / "chat-v1"), "Bad Name", code=2)
    (site.folder / "bad.yaml").write_text("model: X\nversion: v1\nstrategy: {canary: [5]}\nx: 1\n")
    site.run("plan", "bad.yaml", code=2)
    assert "line 1, model" in site.said
    assert "line 4, x: there is no such setting" in site.said
    site.run("rollback", CHAT, "--reason", "x", code=3)
    site.run("publish", str(MODELS / "chat-v1"), CHAT)
    site.run("release", CHAT, "v9", code=3)
    site.run("audit", "--anchor", "nonsense", code=2)


def test_a_version_that_no_runtime_serves_fails_and_is_explained(site: Site) -> None:
    folder = site.folder / "notes"
    folder.mkdir()
    (folder / "readme.txt").write_text("no weights here")
    site.run("publish", str(folder), "acme/notes")
    site.run("release", "acme/notes", "v1", code=1)
    assert "no runtime serves" in site.said
    assert site.json("fleet") == []


def test_another_model_server_by_command(site: Site) -> None:
    """Any command can be a runtime: here the light runtime itself, spelled out."""
    site.run("publish", str(MODELS / "credit-v1"), CREDIT)
    import sys

    argv = [sys.executable, "-m", "lockgate.fleet.runtimes.serve", "--kind=predictive",
            "--folder={folder}", "--model={model}", "--version={version}", "--host={host}",
            "--port={port}", "--threads=1", "--slots=1", "--queue=8"]  # fmt: skip
    name = site.open(CREDIT, 1, runtime={"name": "command", "options": {"argv": argv}})
    assert site.ended(name)["phase"] == "promoted"
    assert site.json("fleet")[0]["runtime"] == "command"


def test_verify_names_what_is_hurt_and_restore_is_bit_exact(site: Site) -> None:
    site.run("publish", str(MODELS / "chat-v1"), CHAT)
    site.run("restore", CHAT, "v1", str(site.folder / "out"))
    original = {p.name: p.read_bytes() for p in (MODELS / "chat-v1").iterdir()}
    assert {p.name: p.read_bytes() for p in (site.folder / "out").iterdir()} == original
    site.run("restore", CHAT, "v1", str(site.folder / "out"), code=4)
    site.run("verify", CHAT, "v1")
    pack = max((site.home / "store/packs").glob("*/*"), key=lambda p: p.stat().st_size)
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.write_bytes(raw)
    site.run("verify", CHAT, "v1", code=6)
    assert "hurt in 1 files" in site.said
    site.run("publish", str(MODELS / "chat-v1"), CHAT)
    site.run("verify", CHAT, "v1")


def test_an_edited_ledger_is_found(site: Site) -> None:
    site.run("publish", str(MODELS / "credit-v1"), CREDIT)
    site.run("alias", CREDIT, "champion", "v1")
    site.stop()
    with sqlite3.connect(site.home / "ledger.db") as db:
        db.execute("UPDATE event SET actor = 'nobody' WHERE position = 1")
    db.close()
    site.start()
    site.run("audit", "--verify", code=6)
    assert "row 1 (model/acme/credit #1, VersionPublished) was edited" in site.said


def test_the_api_wants_its_token(site: Site) -> None:
    for path in ("/api/v1/status", "/api/v1/models", "/api/v1/audit"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://127.0.0.1:{site.port}{path}", timeout=10)
        assert caught.value.code == 403
        caught.value.close()
    token = site.home / "token"
    assert token.stat().st_mode & 0o077 == 0


def test_a_second_server_over_the_same_home_is_refused(site: Site) -> None:
    site.run("serve", "--port", "0", "--gateway-port", "0", code=4)
    assert "another lockgate serves from" in site.said
    site.run("--home", "other", "serve", "--port", str(site.port), code=2)
    assert "can't be used" in site.said


def test_it_works_from_a_relative_home_too(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "credit-v1", tmp_path / "model")
    made = Site(tmp_path)
    made.home = tmp_path / "state"
    import subprocess
    import sys

    process = subprocess.Popen(
        [sys.executable, "-m", "lockgate.cli", "--home", "state", "serve", "--port", "0",
         "--gateway-port", "0"],
        cwd=tmp_path, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    made.process = process
    try:
        from .conftest import wait

        wait(made._answers, 40)
        made.run("--home", "state", "publish", "model", CREDIT)
        made.run("--home", "state", "release", CREDIT, "v1")
    finally:
        assert made.stop() == 0


def test_the_mode_without_xds_server_does_the_same(tmp_path: Path) -> None:
    """Envoy configured by files, rows from a file: a canary is promoted, nobody notices."""
    made = Site(tmp_path)
    made.home.mkdir()
    (made.home / "config.toml").write_text('xds = "files"\n')
    try:
        made.start()
        made.serve_first(CREDIT, "credit")
        made.run("publish", str(MODELS / "credit-v2"), CREDIT)
        with Callers(made.address, credit_callers(2), pause_s=0.01) as callers:
            callers.wait_for(50)
            assert made.ended(made.open(CREDIT, 2))["phase"] == "promoted"
        assert callers.failed == []
    finally:
        end(made)


def test_settings_that_are_none_are_refused(tmp_path: Path) -> None:
    made = Site(tmp_path)
    made.home.mkdir()
    for text, said in (("colour = 1", "no setting 'colour'"), ("tick_s = -1", "tick_s is -1"),
                       ("port = 99999", "port is 99999"), ("port =", "can't be read")):  # fmt: skip
        (made.home / "config.toml").write_text(text)
        made.run("serve", code=2)
        assert said in made.said

"""Releases behind a real Envoy: each strategy, and candidates that are bad in six ways.

LOCKGATE_TIMES repeats each story (10 for the table in docs/benchmarks.md; 1 otherwise).
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .calls import Callers
from .conftest import Site, end

pytestmark = pytest.mark.e2e

MODEL = "acme/sums"
REPLICA = Path(__file__).with_name("replica.py")
TIMES = int(os.environ.get("LOCKGATE_TIMES", "1"))
RUNTIME = {
    "name": "command", "drain": "5s", "start_timeout": "20s",
    "options": {"argv": [sys.executable, str(REPLICA), "{folder}", "{port}"]},
}  # fmt: skip
CHECKS = [
    {"signal": "error_rate", "worse_by_at_most": "100%", "floor": "3%"},
    {"signal": "latency_mean", "worse_by_at_most": "25%", "tolerate": "10%"},
    {"signal": "latency_p95", "worse_by_at_most": "50%", "tolerate": "20%"},
]
FAST = {"bake": "1s", "min_requests": 30, "give_up_after": "120s"}
QUESTIONS = {f"What is {a} + {b}?": f"It is {a + b}." for a in range(20) for b in range(20)}


def sums(draw: random.Random) -> tuple[str, bytes, bool]:
    messages = [{"role": "user", "content": draw.choice(sorted(QUESTIONS))}]
    body = {"model": MODEL, "messages": messages}
    return "/v1/chat/completions", json.dumps(body).encode(), False


def publish(site: Site, name: str, **behaviour: Any) -> None:
    folder = site.folder / name
    folder.mkdir()
    (folder / "behaviour.json").write_text(json.dumps({"name": name, **behaviour}))
    site.run("publish", str(folder), MODEL)


def serve(site: Site, replicas: int = 1) -> None:
    publish(site, "good")
    name = site.open(MODEL, 1, runtime=RUNTIME, replicas=replicas)
    assert site.ended(name)["phase"] == "promoted"


@pytest.fixture
def callers(site: Site) -> Iterator[Callers]:
    serve(site)
    with Callers(site.address, [sums] * 6, pause_s=0.004) as made:
        made.wait_for(50)
        yield made


def release(site: Site, version: int, **settings: Any) -> Any:
    wanted = {"strategy": {"canary": [10, 50, 100], **FAST}, "checks": CHECKS, **settings}
    return site.ended(site.open(MODEL, version, **wanted), 150)


BAD: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "errors": ({"errors": 0.2}, ("error_rate",)),
    "crash loop": ({"crash_after": 25}, ("replica", "error_rate")),
    "slow tail": ({"tail": [0.12, 8.0]}, ("latency",)),
    "slow mean": ({"slower": 1.5}, ("latency",)),
    "worse answers": ({"wrong": 0.3}, ("quality",)),
    "memory leak": ({"leak_kb": 1024, "limit_mb": 150}, ("replica", "error_rate", "latency")),
}


@pytest.mark.parametrize("turn", range(TIMES))
@pytest.mark.parametrize("how", sorted(BAD))
def test_a_bad_candidate_is_caught(site: Site, callers: Callers, how: str, turn: int) -> None:
    behaviour, blamed = BAD[how]
    publish(site, "bad", **behaviour)
    more: dict[str, Any] = {}
    if how == "worse answers":
        scorer = {"kind": "known", "answers": QUESTIONS}
        quality = {"signal": "quality", "worse_by_at_most": "5%"}
        more = {"scorers": {"quality": scorer}, "score": "30%", "checks": [*CHECKS, quality]}
    view = release(site, 2, **more)
    assert view["phase"] == "reverted", view["verdict"]
    why = view["rollback"]["reason"]
    assert any(word in why for word in blamed), why
    print(f"{how}: after {view['elapsed_s']:.1f} s: {why}")
    callers.wait_for(len(callers.calls) + 50)
    before = [call for call in callers.failed if call.at > time.time() - 0.3]
    assert not before
    if how not in ("errors", "crash loop", "memory leak"):  # those are the version's own
        assert callers.failed == [], callers.failed[:3]


@pytest.mark.parametrize("turn", range(TIMES))
def test_a_good_candidate_is_promoted(site: Site, callers: Callers, turn: int) -> None:
    publish(site, "as good", salt=1)
    view = release(site, 2)
    assert view["phase"] == "promoted", view["verdict"]
    callers.wait_for(len(callers.calls) + 50)
    assert callers.failed == []
    print(f"good: promoted after {view['elapsed_s']:.1f} s")


STRATEGIES: dict[str, dict[str, Any]] = {
    "rolling": {"strategy": {"rolling": {"batch": 1, "surge": 1}, **FAST}, "replicas": 3},
    "in place": {"strategy": {"rolling": {"batch": 1, "surge": 0}, **FAST}, "replicas": 3},
    "blue-green": {"strategy": {"blue-green": True, **FAST},
                   "checks": [{"signal": "error_rate", "at_most": "5%"}]},
    "shadow": {"strategy": {"shadow": {"share": 50, "last": "2s", "min_requests": 20},
                            "canary": [50, 100], **FAST}},
    "twin": {"strategy": {"canary": [20, 50, 100], "compare": "twin", **FAST}},
    "ab": {"strategy": {"ab": {"share": 50, "last": "2s"}, **FAST}},
}  # fmt: skip


@pytest.mark.parametrize("turn", range(TIMES))
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_each_strategy_moves_everybody_and_loses_nobody(
    tmp_path: Path, strategy: str, turn: int
) -> None:
    settings = STRATEGIES[strategy]
    site = Site(tmp_path)
    try:
        site.start()
        serve(site, settings.get("replicas", 1))
        publish(site, "as good", salt=1)
        with Callers(site.address, [sums] * 6, pause_s=0.004) as callers:
            callers.wait_for(50)
            view = release(site, 2, runtime=RUNTIME, **settings)
            assert view["phase"] == "promoted", (view["verdict"], view["rollback"])
            callers.wait_for(len(callers.calls) + 200)
        assert callers.failed == [], (len(callers.failed), callers.failed[:3])
        print(f"{strategy}: promoted after {view['elapsed_s']:.1f} s, {len(callers.calls)} calls")
    finally:
        end(site)


def test_a_rolling_release_goes_back_replica_by_replica(tmp_path: Path) -> None:
    site = Site(tmp_path)
    try:
        site.start()
        serve(site, 3)
        publish(site, "bad", slower=2.0)
        with Callers(site.address, [sums] * 6, pause_s=0.004) as callers:
            callers.wait_for(50)
            view = release(site, 2, replicas=3,
                           strategy={"rolling": {"batch": 1, "surge": 0}, **FAST})  # fmt: skip
            assert view["phase"] == "reverted"
            callers.wait_for(len(callers.calls) + 200)
        assert callers.failed == []
        fleet = site.json("fleet")
        assert len({row["version"] for row in fleet if row["state"] != "draining"}) == 1
    finally:
        end(site)


def test_senders_of_a_header_get_the_variant_and_sessions_stay(site: Site) -> None:
    import urllib.request

    serve(site)
    publish(site, "other", salt=2)
    name = site.open(
        MODEL, 2, checks=[], sticky="x-user",
        strategy={"ab": {"share": 50, "last": "60s", "header": "x-in", "value": "yes"}, **FAST},
    )  # fmt: skip
    for _ in range(100):
        if site.json("explain", name)["phase"] == "baking":
            break
        time.sleep(0.1)

    def ask(**headers: str) -> None:
        request = urllib.request.Request(
            f"{site.address}/v1/chat/completions", sums(random.Random(1))[1],
            {"content-type": "application/json", **{k.replace("_", "-"): v
                                                    for k, v in headers.items()}},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200

    for user in range(20):
        for _ in range(3):
            ask(x_user=f"u{user}")
    for _ in range(5):
        ask(x_in="yes", x_user="insider")
    time.sleep(1.0)
    import sqlite3

    with sqlite3.connect(site.home / "samples.db") as db:
        rows = db.execute("SELECT unit, version, propensity FROM sample").fetchall()
    db.close()
    new = site.json("show", MODEL, "v2")["digest"]
    by_unit: dict[int, set[str]] = {}
    for unit, version, share in rows:
        if unit is not None and share < 1:
            by_unit.setdefault(unit, set()).add(version)
    assert len(by_unit) == 20
    assert all(len(versions) == 1 for versions in by_unit.values())
    assert sum(version == new and share == 1 for _, version, share in rows) == 5
    site.run("rollback", MODEL, "--reason", "test over")


def test_replay_says_whether_other_checks_would_have_caught_it(
    site: Site, callers: Callers
) -> None:
    publish(site, "slow", slower=1.6)
    lax = [{"signal": "latency_mean", "worse_by_at_most": "300%"}]
    view = release(site, 2, checks=lax)
    assert view["phase"] == "promoted"
    strict = "checks: [{signal: latency_mean, worse_by_at_most: 10%}]"
    (site.folder / "strict.yaml").write_text(
        f"model: {MODEL}\nversion: v2\nstrategy: {{canary: [50, 100]}}\nbucket: 1s\n{strict}\n"
    )
    own = site.json("replay", view["id"])
    other = site.json("replay", view["id"], "--spec", "strict.yaml")
    assert own["verdict"]["outcome"] != "fail"
    assert other["verdict"]["outcome"] == "fail"
    assert other["turns"][-1]["requests"] < own["requests"]
    assert "latency_mean is worse" in site.run("replay", view["id"], "--spec", "strict.yaml")


def test_a_block_holds_a_real_release_until_it_is_lifted(site: Site, callers: Callers) -> None:
    publish(site, "as good", salt=3)
    site.run("block", MODEL, "--for", "1h", "--reason", "incident 7")
    name = site.open(MODEL, 2, strategy={"canary": [50, 100], **FAST}, checks=[])
    for _ in range(100):
        held = site.json("explain", name)["held"]
        if held:
            break
        time.sleep(0.1)
    assert held["because"] == "blocked"
    assert "incident 7" in site.run("audit")
    site.run("unblock", MODEL, "--reason", "over")
    assert site.ended(name)["phase"] == "promoted"
    assert callers.failed == []


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_server_is_killed_after_every_event_of_each_strategy(
    tmp_path: Path, strategy: str
) -> None:
    """Callers notice nothing, everybody is moved, the ledger is whole."""
    settings = STRATEGIES[strategy]
    site = Site(tmp_path)
    try:
        site.start()
        serve(site, settings.get("replicas", 1))
        publish(site, "as good", salt=1)
        with Callers(site.address, [sums] * 4, pause_s=0.004) as callers:
            callers.wait_for(50)
            wanted = {"strategy": {"canary": [50, 100], **FAST}, "checks": CHECKS, **settings}
            name = site.open(MODEL, 2, runtime=RUNTIME, **wanted)
            kills = site.kill_at_each_event(name, lambda: callers.more(20))
            callers.more(50)
        assert kills >= 3  # blue-green writes its events in four moments, the others in more
        assert callers.failed == [], callers.failed[:3]
        view = site.ended(name)
        assert view["phase"] == "promoted", (view["rollback"], view["verdict"])
        told = [event["kind"] for event in view["timeline"]]
        assert told.count("StepStarted") == told.count("TrafficShifted") == len(view["steps"])
        site.run("audit", "--verify")
        new = site.json("show", MODEL, "v2")["digest"]
        mine = [row for row in site.json("fleet") if row["version"] == new]
        assert len(mine) == settings.get("replicas", 1)
    finally:
        end(site)

"""kill -9 in the middle of a release: of the server, of Envoy, of a replica. Nothing is lost."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from lockgate.core.errors import LockgateError

from .calls import MODELS, Callers, chat_callers, credit_callers
from .conftest import CHAT, CREDIT, Site, wait

pytestmark = pytest.mark.e2e


def kinds(site: Site, release: str) -> list[str]:
    try:
        with site.client() as client:
            return [event["kind"] for event in client.explain(release)["timeline"]]
    except LockgateError:
        return []


def test_the_server_is_killed_after_every_event_of_a_release(site: Site) -> None:
    """Callers notice nothing, the release is promoted, the ledger is whole."""
    site.serve_first(CREDIT, "credit")
    site.run("publish", str(MODELS / "credit-v2"), CREDIT)
    with Callers(site.address, credit_callers(3), pause_s=0.01) as callers:
        callers.wait_for(50)
        name = site.open(CREDIT, 2)
        kills = site.kill_at_each_event(name, lambda: callers.more(20))
    assert kills >= 5
    assert callers.failed == [], callers.failed[:5]
    view = site.ended(name)
    assert view["phase"] == "promoted"
    told = [event["kind"] for event in view["timeline"]]
    assert told.count("StepStarted") == told.count("TrafficShifted") == 3
    assert told.count("ReleasePromoted") == 1
    site.run("audit", "--verify")
    assert len(site.json("fleet")) == 2  # v2 serves, v1 is kept ready: no orphan, no twin


def test_a_server_killed_while_it_rolls_back_finishes_the_rollback(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    site.run("publish", str(MODELS / "credit-v3"), CREDIT)
    slow = [{"signal": "latency_p50", "worse_by_at_most": "5%"}]
    with Callers(site.address, credit_callers(3), pause_s=0.01) as callers:
        callers.wait_for(50)
        name = site.open(CREDIT, 2, checks=slow)
        wait(lambda: "RollbackStarted" in kinds(site, name), 60)
        site.kill()
        site.start()
        assert site.ended(name)["phase"] == "reverted"
        callers.wait_for(len(callers.calls) + 50)
    assert callers.failed == []


def test_envoy_is_killed_in_the_middle_of_a_release(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    site.run("publish", str(MODELS / "credit-v2"), CREDIT)
    with Callers(site.address, credit_callers(3), pause_s=0.01) as callers:
        callers.wait_for(50)
        name = site.open(CREDIT, 2)
        wait(lambda: "TrafficShifted" in kinds(site, name), 30)
        (pid,) = site.pids("envoy")
        os.kill(pid, signal.SIGKILL)
        wait(lambda: site.pids("envoy") not in ([], [pid]), 20)
        killed = time.time()
        assert site.ended(name)["phase"] == "promoted"
        callers.wait_for(len(callers.calls) + 100)
    late = [call for call in callers.failed if call.at > killed + 5]
    assert late == []  # what failed was on the wire when the proxy died, or before the new one
    assert len(callers.failed) < 0.5 * len(callers.calls)


def test_a_replica_is_killed_in_the_middle_of_a_release(site: Site) -> None:
    """One of two candidates dies under traffic: callers see nothing, and it comes back."""
    site.serve_first(CREDIT, "credit", "--replicas", "2")
    site.run("publish", str(MODELS / "credit-v2"), CREDIT)
    with Callers(site.address, credit_callers(3), pause_s=0.01) as callers:
        callers.wait_for(50)
        name = site.open(CREDIT, 2, replicas=2)
        wait(lambda: "TrafficShifted" in kinds(site, name), 30)
        with site.client() as client:
            digest = client.explain(name)["candidate"]["digest"]
        short = digest.removeprefix("blake3:")[:16]
        victim = next(site.home.glob(f"fleet/*{short}.0/lock"))
        os.kill(int(victim.read_text()), signal.SIGKILL)
        assert site.ended(name)["phase"] == "promoted"
        wait(lambda: all(r["state"] == "ready" for r in site.json("fleet")), 30)
        callers.wait_for(len(callers.calls) + 50)
    assert callers.failed == []
    assert any(r["restarts"] == 1 for r in site.json("fleet"))


def test_a_candidate_that_keeps_dying_is_taken_out(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    site.run("publish", str(MODELS / "credit-v2"), CREDIT)
    with Callers(site.address, credit_callers(2), pause_s=0.01) as callers:
        callers.wait_for(50)
        name = site.open(
            CREDIT, 2,
            strategy={"canary": [10, 100], "bake": "60s", "min_requests": 20},
        )  # fmt: skip
        wait(lambda: "TrafficShifted" in kinds(site, name), 30)
        with site.client() as client:
            short = client.explain(name)["candidate"]["digest"].removeprefix("blake3:")[:16]
        deadline = time.monotonic() + 60
        while "RollbackStarted" not in kinds(site, name):
            assert time.monotonic() < deadline
            for lock in site.home.glob(f"fleet/*{short}.0/lock"):
                kill(lock)
            time.sleep(0.2)
        assert site.ended(name)["phase"] == "reverted"
        before = len(callers.calls)
        callers.wait_for(before + 100)
    assert [c for c in callers.calls[before:] if c.status != 200] == []


def kill(lock: Path) -> None:
    try:
        text = lock.read_text()
        if text.isdigit():
            os.kill(int(text), signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass


def test_streams_in_flight_outlive_the_server_and_a_rollback(site: Site) -> None:
    site.serve_first(CHAT, "chat")
    site.run("publish", str(MODELS / "chat-v2"), CHAT)
    with Callers(site.address, chat_callers(4), pause_s=0.01) as callers:
        callers.wait_for(30)
        name = site.open(CHAT, 2, strategy={"canary": [50, 100], "bake": "60s"})
        wait(lambda: "TrafficShifted" in kinds(site, name), 30)
        site.kill()
        callers.wait_for(len(callers.calls) + 30)
        site.start()
        site.run("rollback", CHAT, "--reason", "enough seen")
        callers.wait_for(len(callers.calls) + 30)
    assert callers.failed == []
    assert sum(call.stream for call in callers.calls) > 20

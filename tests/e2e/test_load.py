"""Twenty thousand requests, streams among them; one release is promoted, one rolls back."""

from __future__ import annotations

import math

import pytest

from lockgate.core.events import TrafficShifted
from lockgate.ledger.sqlite import SqliteLedger
from lockgate.observe.sqlite import SqliteSamples

from .calls import MODELS, Callers, chat_callers, credit_callers
from .conftest import CHAT, CREDIT, Site

pytestmark = [pytest.mark.e2e, pytest.mark.serial]

REQUESTS = 20_000


def test_no_request_is_lost_and_the_split_is_what_was_asked_for(site: Site) -> None:
    for model, name in ((CHAT, "chat"), (CREDIT, "credit")):
        site.serve_first(model, name, "--replicas", "2" if model == CREDIT else "1")
        site.run("publish", str(MODELS / f"{name}-v2"), model)
        site.run("publish", str(MODELS / f"{name}-v3"), model)
    kinds = [*credit_callers(8), *chat_callers(4)]
    with Callers(site.address, kinds) as callers:
        callers.wait_for(500)
        strategy = {"canary": [10, 50, 100], "bake": "4s", "min_requests": 300}
        slow = [{"signal": "latency_p50", "worse_by_at_most": "20%"}]
        good = site.open(CREDIT, 2, strategy=strategy, replicas=2)
        bad = site.open(CHAT, 3, strategy=strategy, checks=slow)
        assert site.ended(good, 180)["phase"] == "promoted"
        assert site.ended(bad, 180)["phase"] == "reverted"
        callers.wait_for(REQUESTS, 240)
    calls = callers.calls
    assert len(calls) >= REQUESTS
    assert sum(call.stream for call in calls) >= 500
    assert callers.failed == [], callers.failed[:5]
    assert site.stop() == 0
    check_split(site, len(calls))


def check_split(site: Site, calls: int) -> None:
    """Every request left a row; the shares at Envoy are the weights, step by step and together."""
    samples = SqliteSamples(site.home / "samples.db")
    rows = [s for model in (CHAT, CREDIT) for s in samples.window(f"{model}@local", since=0)]
    samples.close()
    assert len(rows) == calls  # none lost, none twice
    assert not any(row.failed for row in rows)
    ledger = SqliteLedger(site.home / "ledger.db")
    shifts = [r.event for r in ledger.read() if isinstance(r.event, TrafficShifted)]
    ledger.close()
    checked, off, total = 0, 0.0, 0
    for shift in shifts:
        mine = [r for r in rows if r.revision == shift.revision]
        candidate = [v for v, w in shift.weights.items() if 0 < w < 10_000][-1:]
        if not candidate or len(mine) < 500:
            continue
        share = shift.weights[candidate[0]] / 10_000
        got = sum(r.version == candidate[0] for r in mine)
        sigma = math.sqrt(len(mine) * share * (1 - share))
        assert abs(got - share * len(mine)) <= 4.5 * sigma, (share, got, len(mine))
        logged = {(r.version == candidate[0], round(r.propensity, 9)) for r in mine}
        assert logged == {(True, round(share, 9)), (False, round(1 - share, 9))}
        checked += 1
        off += got - share * len(mine)
        total += len(mine)
    assert checked >= 2
    assert total >= 3000
    assert abs(off) / total <= 0.01

"""What each strategy makes of a spec: steps whose replicas can carry their traffic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import UsageError
from lockgate.core.events import VersionId
from lockgate.core.traffic import WHOLE
from lockgate.release.plan import Plan, Serving
from lockgate.release.planner import make_plan
from lockgate.release.routes import Route, Served
from lockgate.release.spec import check_spec

NOW = Route(
    name="acme/chat@local", model="acme/chat",
    line=(Served(release="rel-1", version=VersionId(number=1, digest="old"),
                 serving=Serving(), since=0.0),),
)  # fmt: skip


def plan(strategy: object, replicas: int = 1, **more: object) -> Plan:
    spec = check_spec({"model": "acme/chat", "version": "v2", "strategy": strategy,
                       "replicas": replicas, **more})  # fmt: skip
    return make_plan(spec, NOW, VersionId(number=2, digest="new"), bytes_to_move=1)


def shares(found: Plan) -> list[float]:
    return [step.weight / 100 for step in found.steps]


def test_a_canary_rules_out_disasters_first_and_proves_itself_before_everybody() -> None:
    found = plan({"canary": [1, 10, 50, 100]})
    assert shares(found) == [1, 10, 50, 100]
    assert [step.need for step in found.steps] == ["sane", "sane", "safe", "seen"]


def test_a_step_may_say_what_it_needs() -> None:
    steps = [{"share": 5, "until": "seen", "bake": "1m", "max": "2h", "min_requests": 7}, 50, 100]
    found = plan({"canary": steps, "bake": "5m", "min_requests": 100})
    first, second, _ = found.steps
    assert (first.need, first.bake_s, first.max_s, first.min_requests) == ("seen", 60, 7200, 7)
    assert (second.need, second.bake_s, second.max_s, second.min_requests) == (
        "safe", 300, None, 100,
    )  # fmt: skip


def test_blue_green_is_one_step_on_fixed_limits() -> None:
    found = plan({"blue-green": True})
    assert shares(found) == [100]
    assert found.steps[0].need == "safe"


def test_rolling_with_surge_adds_before_it_takes() -> None:
    found = plan({"rolling": {"batch": 2, "surge": 2}}, replicas=4)
    assert found.strategy == "rolling"
    assert [(s.weight, s.replicas, s.baseline_replicas) for s in found.steps] == [
        (5_000, 2, 2), (10_000, 4, 0),
    ]  # fmt: skip
    assert found.limit == 6


def test_in_place_makes_room_before_it_fills_it() -> None:
    found = plan({"rolling": {"batch": 1, "surge": 0}}, replicas=3)
    assert found.strategy == "in-place"
    assert [(s.weight, s.replicas, s.baseline_replicas) for s in found.steps] == [
        (0, 0, 2), (3_333, 1, 2), (5_000, 1, 1), (6_667, 2, 1), (10_000, 2, 0), (10_000, 3, 0),
    ]  # fmt: skip
    assert found.limit == 3


def test_the_only_replica_can_not_be_replaced_without_a_spare_one() -> None:
    with pytest.raises(UsageError, match="nothing would serve"):
        plan({"rolling": {"batch": 1, "surge": 0}}, replicas=1)


@given(replicas=st.integers(1, 40), batch=st.integers(1, 40), surge=st.integers(0, 40))
def test_traffic_never_exceeds_what_is_there(replicas: int, batch: int, surge: int) -> None:
    """At each step, and between any two: every version has replicas for its share."""
    try:
        found = plan({"rolling": {"batch": batch, "surge": surge}}, replicas=replicas)
    except UsageError:
        assert (batch >= replicas, surge) == (True, 0)
        return
    assert found.limit is not None
    mine, theirs = 0, replicas
    for index, step in enumerate(found.steps):
        grown = max(found.replicas(index)[0], mine)
        assert grown + theirs <= found.limit  # the candidate grows before the baseline shrinks
        mine, theirs = found.replicas(index)
        serving = mine + theirs
        assert serving >= min(replicas, replicas - min(batch, replicas) + min(surge, batch))
        fair = WHOLE * mine / serving
        assert abs(step.weight - fair) <= 1 or step.weight == WHOLE
        assert step.weight == 0 or mine
        assert step.weight == WHOLE or theirs
    assert (mine, theirs, found.steps[-1].weight) == (replicas, 0, WHOLE)


def test_an_ab_test_keeps_its_share_for_its_time() -> None:
    ab = {"share": 30, "last": "12h", "header": "x-group", "value": "b"}
    found = plan({"ab": ab, "bake": "1m"})
    assert shares(found) == [30, 100]
    assert [(s.bake_s, s.need) for s in found.steps] == [(43_200, "safe"), (60, "seen")]
    assert found.variant == ("x-group", "b")


def test_a_shadow_comes_before_its_canary() -> None:
    found = plan({"shadow": {"share": 20, "last": "5m", "min_requests": 9}, "canary": [10, 100]})
    assert [(s.weight, s.mirror, s.bake_s) for s in found.steps] == [
        (0, 2_000, 300), (1_000, 0, 600), (10_000, 0, 600),
    ]  # fmt: skip
    assert shares(plan({"shadow": {}})) == [0, 100]


def test_approvals_find_their_step() -> None:
    found = plan({"rolling": {"batch": 1, "surge": 1}}, replicas=2,
                 approve={"before": [100], "count": 2, "expires": "1h"})  # fmt: skip
    assert [step.approval for step in found.steps] == [False, True]
    assert (found.approvers, found.approval_expires_s) == (2, 3600)

"""Whole releases in the memory world, told as stories."""

from __future__ import annotations

import pytest

from lockgate.core.codec import to_json
from lockgate.core.errors import (
    ConflictError,
    NotFoundError,
    PermanentError,
    TemporaryError,
    UsageError,
)
from lockgate.core.events import ReleaseOpened
from lockgate.release.planner import default_spec

from .world import MODEL, ROUTE, World


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_release_opens_the_route(world: World) -> None:
    name = world.open(1)
    assert world.split() == {}
    world.engine.tick()
    assert world.release(name).phase == "promoted"
    assert world.split() == {1: 100}
    assert world.story(name) == [
        "ReleaseOpened", "ReleaseAdmitted", "CapacityReady", "StepStarted", "TrafficShifted",
        "StepPassed", "ReleasePromoted",
    ]  # fmt: skip


def test_replicas_come_before_traffic() -> None:
    world = World(start_s=20)
    name = world.open(1)
    world.ticks(15)
    assert world.release(name).phase == "deploying"
    assert world.split() == {}
    world.ticks(10)
    assert world.split() == {1: 100}


def test_a_good_candidate_walks_every_step_and_is_promoted(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    seen = []
    for _ in range(60):
        world.traffic(10)
        if not seen or seen[-1] != world.split():
            seen.append(world.split())
        if world.release(name).final:
            break
    assert seen == [{1: 90, 2: 10}, {1: 50, 2: 50}, {2: 100}]
    assert world.release(name).phase == "promoted"
    assert world.running() == {1, 2}  # the old one is kept ready
    world.ticks(320)
    assert world.running() == {2}
    assert world.story(name)[-1] == "VersionRetired"


@pytest.mark.parametrize("how", ["errors", "slow"])
def test_a_bad_candidate_is_caught_and_traffic_goes_back_first(world: World, how: str) -> None:
    world.serve(1)
    name = world.open(2)
    world.traffic(60, bad={2: how})
    found = world.release(name)
    assert found.phase == "reverted"
    assert found.verdict is not None
    assert found.verdict.outcome == "fail"
    assert found.verdict.blame[0].signal == ("error_rate" if how == "errors" else "latency_p95")
    assert world.split() == {1: 100}
    assert world.running() == {1}
    calls = world.gateway.calls
    back = max(i for i, c in enumerate(calls) if c.startswith("set_route"))
    assert back < calls.index(f"remove_pool {ROUTE} {world.d(2)}")


def test_a_failing_candidate_is_held_where_the_spec_says_so(world: World) -> None:
    world.serve(1)
    name = world.open(2, on_fail="hold")
    world.traffic(90, bad={2: "errors"})
    held = world.release(name).held
    assert held is not None
    assert held.because == "person"
    assert world.split() == {1: 90, 2: 10}


def test_silence_is_a_hold_and_in_the_end_a_rollback_never_a_pass(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.ticks(100)
    held = world.release(name).held
    assert held is not None
    assert (held.because, world.split()) == ("evidence", {1: 90, 2: 10})
    world.ticks(80, every=60)
    assert world.release(name).phase == "reverted"
    rollback = world.release(name).rollback
    assert rollback is not None
    assert rollback.cause == "deadline"


def test_traffic_that_comes_late_resumes_a_held_release(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.ticks(100)
    world.traffic(500)
    assert world.release(name).phase == "promoted"


def test_a_step_waits_for_its_approval(world: World) -> None:
    world.serve(1)
    name = world.open(2, approve={"before": [100]})
    world.traffic(400)
    held = world.release(name).held
    assert held is not None
    assert (held.because, held.step, world.split()) == ("approval", 2, {1: 50, 2: 50})
    with pytest.raises(ConflictError):
        world.commands.resume(name, actor="bob", reason="please")
    world.commands.approve(name, actor="bob", reason="numbers are good")
    world.traffic(100)
    assert world.release(name).phase == "promoted"
    approvals = [r for r in world.ledger.read(stream=f"release/{name}") if "Approved" in str(r)]
    assert [a.actor for a in approvals] == ["bob"]


def test_a_candidate_that_turns_bad_while_it_waits_for_approval_goes_back(world: World) -> None:
    world.serve(1)
    name = world.open(2, approve={"before": [100]})
    world.traffic(400)
    world.traffic(60, bad={2: "errors"})
    assert world.release(name).phase == "reverted"


def test_a_persons_hold_is_ended_by_a_person_only(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.engine.tick()
    world.commands.hold(name, actor="bob", reason="fire drill")
    world.commands.hold(name, actor="bob", reason="twice is once")
    world.traffic(300)
    assert world.split() == {1: 90, 2: 10}
    world.commands.resume(name, actor="bob", reason="over")
    world.traffic(400)
    assert world.release(name).phase == "promoted"
    assert world.story(name).count("ReleaseHeld") == 1


def test_a_held_release_still_goes_back_when_it_fails(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.engine.tick()
    world.commands.hold(name, actor="bob", reason="drill")
    world.traffic(60, bad={2: "errors"})
    assert world.release(name).phase == "reverted"


def test_promote_skips_the_rest(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.traffic(5)
    world.commands.promote(name, actor="bob", reason="hotfix")
    world.traffic(2)
    assert world.release(name).phase == "promoted"
    assert world.split() == {2: 100}


def test_rollback_of_a_release_under_way_needs_no_metrics(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.ticks(5)
    assert world.commands.rollback(MODEL, "local", actor="bob", reason="gut") == name
    assert world.commands.rollback(MODEL, "local", actor="bob", reason="again") == name
    world.ticks(2)
    assert world.release(name).phase == "reverted"
    assert world.split() == {1: 100}
    assert world.running() == {1}


def test_rollback_after_promotion_flips_back_while_the_old_one_is_warm(world: World) -> None:
    world.serve(1)
    world.serve(2)
    calls = len(world.gateway.calls)
    name = world.commands.rollback(MODEL, "local", actor="bob", reason="support is on fire")
    world.engine.tick()  # one look is enough: nothing has to start
    assert world.split() == {1: 100}
    assert [c.split()[0] for c in world.gateway.calls[calls:]] == ["set_route"]
    assert world.release(name).phase == "promoted"
    with pytest.raises(ConflictError, match="nothing served"):
        world.commands.rollback(MODEL, "local", actor="bob", reason="further?")


def test_rollback_after_the_old_one_was_retired_starts_it_again() -> None:
    world = World(start_s=5)
    for number in (1, 2):
        world.open(
            number, strategy={"blue-green": True, "bake": "0s", "min_requests": 0}, checks=[]
        )
        world.ticks(10)
    world.ticks(320)
    assert world.running() == {2}
    world.commands.rollback(MODEL, "local", actor="bob", reason="late regret")
    world.ticks(3)
    assert world.split() == {2: 100}  # capacity before traffic
    world.ticks(10)
    assert world.split() == {1: 100}


def test_rollback_to_a_version_of_choice(world: World) -> None:
    for number in (1, 2, 3):
        world.serve(number)
    with pytest.raises(UsageError, match="v4 is not among the versions"):
        world.commands.rollback(MODEL, "local", actor="bob", reason="x", to="v4")
    world.commands.rollback(MODEL, "local", actor="bob", reason="x", to="v1")
    world.ticks(2)
    assert world.split() == {1: 100}
    with pytest.raises(ConflictError, match="nothing served"):
        world.commands.rollback(MODEL, "local", actor="bob", reason="x")


def test_the_first_release_can_be_stopped_before_traffic_and_not_after() -> None:
    world = World(start_s=30)
    name = world.open(1)
    world.ticks(5)
    world.commands.rollback(MODEL, "local", actor="bob", reason="wrong model")
    world.ticks(2)
    assert world.release(name).phase == "failed"
    assert world.running() == set()
    with pytest.raises(NotFoundError):
        world.commands.rollback("acme/other", "local", actor="bob", reason="x")


def test_one_release_at_a_time_on_a_route(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    with pytest.raises(ConflictError, match=name):
        world.open(3)


def test_two_releases_opened_at_the_same_moment_become_one(world: World) -> None:
    world.serve(1)
    first = world.open(2)
    opened = world.ledger.read(stream=f"release/{first}")[0].event
    body = {**{f: getattr(opened, f) for f in opened.__slots__}, "release": "rel-9"}
    world.ledger.append("release/rel-9", 0, [type(opened)(**body)], actor="eve", at=1.0)
    world.ticks(2)
    assert world.release(first).phase == "baking"
    assert world.release("rel-9").phase == "failed"


def test_the_version_that_serves_needs_no_release(world: World) -> None:
    world.serve(1)
    opened = world.commands.open(default_spec(MODEL, "v1", "local"), actor="ann")
    assert opened.release is None


def test_a_plan_that_became_stale_is_refused(world: World) -> None:
    world.serve(1)
    spec = default_spec(MODEL, "v3", "local")
    digest = world.commands.plan(spec).digest
    assert world.commands.plan(spec).digest == digest
    world.serve(2)
    with pytest.raises(ConflictError, match="plan has changed"):
        world.commands.open(spec, actor="ann", plan_digest=digest)
    fresh = world.commands.plan(spec).digest
    assert world.commands.open(spec, actor="ann", plan_digest=fresh).release


def test_replicas_that_give_up_fail_the_release_and_touch_nothing(world: World) -> None:
    world.serve(1)
    world.fleet.broken.add(world.d(2))
    name = world.open(2)
    world.ticks(3)
    assert world.release(name).phase == "failed"
    assert "it will not start" in world.release(name).note
    assert (world.split(), world.running()) == ({1: 100}, {1})


def test_replicas_that_never_become_ready_fail_the_release() -> None:
    world = World(start_s=10_000)
    name = world.open(1)
    world.ticks(200)
    assert world.release(name).phase == "failed"
    assert "0 of 1 replicas were ready" in world.release(name).note


def test_a_version_that_no_runtime_can_serve_fails_the_release(world: World) -> None:
    world.serve(1)
    world.fleet.impossible.add(world.d(2))
    name = world.open(2)
    world.ticks(5)
    assert world.release(name).phase == "failed"
    assert world.story(name).count("ActionFailed") == 3


def test_a_crash_loop_under_traffic_goes_back(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.traffic(5)
    world.fleet.crash(world.d(2), restarts=1)
    world.traffic(2)
    assert world.release(name).phase == "baking"
    world.fleet.crash(world.d(2), restarts=2)
    world.traffic(2)
    assert world.release(name).phase == "reverted"
    rollback = world.release(name).rollback
    assert rollback is not None
    assert rollback.cause == "replicas"


def test_a_gateway_that_refuses_turns_the_release_back(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    for _ in range(4):
        world.gateway.fail_next(PermanentError("NACK: route is not valid"))
    world.ticks(12)
    assert world.release(name).phase in ("failed", "reverted")
    assert world.split() == {1: 100}


def test_a_gateway_that_is_away_for_a_while_delays_and_nothing_more(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    for _ in range(6):
        world.gateway.fail_next(TemporaryError("no proxy answered"))
    world.ticks(3)
    assert "no proxy answered" in world.engine.trouble[ROUTE]
    world.traffic(400)
    assert world.release(name).phase == "promoted"
    assert world.engine.trouble == {}
    assert "ActionFailed" not in world.story(name)


def test_requests_in_flight_are_waited_for_before_a_pool_goes(world: World) -> None:
    world.serve(1)
    name = world.open(2, runtime={"drain": "30s"})
    world.ticks(3)
    world.gateway.set_in_flight(ROUTE, world.d(2), 2)
    world.commands.rollback(MODEL, "local", actor="bob", reason="x")
    world.ticks(10)
    assert world.split() == {1: 100}
    assert world.running() == {1, 2}
    assert world.release(name).phase == "reverting"
    world.gateway.set_in_flight(ROUTE, world.d(2), 0)
    world.ticks(2)
    assert world.running() == {1}
    assert world.release(name).phase == "reverted"


def test_a_request_that_never_ends_is_waited_for_no_longer_than_the_drain_time(
    world: World,
) -> None:
    world.serve(1)
    world.open(2, runtime={"drain": "30s"})
    world.ticks(3)
    world.gateway.set_in_flight(ROUTE, world.d(2), 1)
    world.commands.rollback(MODEL, "local", actor="bob", reason="x")
    world.ticks(35)
    assert world.running() == {1}


def test_a_second_engine_waits_and_takes_over_when_the_first_is_gone(world: World) -> None:
    world.serve(1)
    first, second = world.engine, world.new_engine("two")
    name = world.open(2)
    assert first.tick()
    assert not second.tick()
    world.engine = second
    world.clock.sleep(20)
    world.traffic(500)
    assert world.release(name).phase == "promoted"
    events = world.ledger.head().position
    assert not first.tick()
    assert world.ledger.head().position == events


def test_an_engine_that_lost_its_lease_unawares_writes_nothing(world: World) -> None:
    world.serve(1)
    first = world.engine
    second = world.new_engine("two")
    world.open(2)
    first.tick()
    lease = first._lease
    world.clock.sleep(16)
    assert second.tick()
    first._lease = lease
    object.__setattr__(lease, "expires", world.clock.now() + 99)  # a clock that stood still
    events = world.ledger.head().position
    world.commands.hold("rel-2", actor="bob", reason="x")
    first.tick()
    assert world.ledger.head().position == events + 1  # the hold, and nothing of the first engine


def test_an_alias_follows_the_promotion(world: World) -> None:
    world.serve(1)
    name = world.open(2, alias="champion")
    world.traffic(300)
    assert world.release(name).phase == "promoted"
    assert world.registry.model(MODEL).aliases == {"champion": 2}


def test_blue_green_flips_once_and_is_judged_alone(world: World) -> None:
    world.serve(1)
    strategy = {"blue-green": True, "bake": "30s", "min_requests": 50}
    checks = [{"signal": "error_rate", "at_most": "5%"}]
    good = world.open(2, strategy=strategy, checks=checks)
    world.engine.tick()
    assert world.split() == {2: 100}
    world.traffic(60)
    assert world.release(good).phase == "promoted"
    bad = world.open(3, strategy=strategy, checks=checks)
    world.traffic(30, bad={3: "errors"})
    assert world.release(bad).phase == "reverted"
    assert world.split() == {2: 100}


def test_promotion_by_a_person_still_asks_for_the_approval(world: World) -> None:
    world.serve(1)
    name = world.open(2, approve={"before": [100]})
    world.traffic(5)
    world.commands.promote(name, actor="bob", reason="hotfix")
    world.traffic(5)
    held = world.release(name).held
    assert held is not None
    assert (held.because, world.split()) == ("approval", {1: 90, 2: 10})
    world.commands.approve(name, actor="ann", reason="four eyes")
    world.traffic(5)
    assert world.release(name).phase == "promoted"


def test_a_step_that_waits_for_approval_passes_once(world: World) -> None:
    world.serve(1)
    name = world.open(2, approve={"before": [50]})
    world.traffic(120)
    world.commands.approve(name, actor="ann", reason="fine")
    world.traffic(300)
    assert world.story(name).count("StepPassed") == 3


def test_an_alias_goes_back_with_a_rollback(world: World) -> None:
    for number in (1, 2):
        world.open(number, strategy={"blue-green": True, "bake": "0s", "min_requests": 0},
                   checks=[], alias="champion")  # fmt: skip
        world.engine.tick()
    assert world.registry.model(MODEL).aliases == {"champion": 2}
    world.commands.rollback(MODEL, "local", actor="bob", reason="x")
    world.engine.tick()
    assert world.registry.model(MODEL).aliases == {"champion": 1}


def test_old_crashes_do_not_undo_a_rollback(world: World) -> None:
    world.serve(1)
    world.fleet.crash(world.d(1), 3)
    world.ticks(3)
    world.serve(2)
    world.commands.rollback(MODEL, "local", actor="bob", reason="x")
    world.ticks(3)
    assert world.split() == {1: 100}


def test_traffic_goes_back_even_when_the_fleet_refuses_the_baseline(world: World) -> None:
    world.serve(1)
    name = world.open(2)
    world.traffic(5)
    world.fleet.impossible.add(world.d(1))
    world.commands.rollback(MODEL, "local", actor="bob", reason="x")
    world.ticks(3)
    assert world.split() == {1: 100}
    assert world.release(name).phase == "reverted"


def test_a_first_release_that_crashes_once_it_serves_locks_nothing(world: World) -> None:
    name = world.open(1)
    world.gateway.fail_next(TemporaryError("late"))
    world.engine.tick()
    world.fleet.crash(world.d(1), 3)
    world.ticks(5)
    assert world.release(name).phase == "promoted"
    world.serve(2)


def test_rolling_back_to_what_serves_is_refused(world: World) -> None:
    for number in (1, 2, 1):
        world.serve(number)
    with pytest.raises(ConflictError, match="v1 serves already"):
        world.commands.rollback(MODEL, "local", actor="bob", reason="x", to="v1")


def test_a_second_rollback_does_not_undo_the_first() -> None:
    world = World(start_s=5)
    quick = {"strategy": {"blue-green": True, "bake": "0s", "min_requests": 0}, "checks": []}
    for number in (1, 2):
        world.open(number, **quick)
        world.ticks(10)
    world.ticks(320)
    name = world.commands.rollback(MODEL, "local", actor="bob", reason="now")
    world.ticks(1)
    assert world.commands.rollback(MODEL, "local", actor="eve", reason="NOW") == name
    world.ticks(10)
    assert world.split() == {1: 100}


def test_a_plan_made_before_another_promotion_never_takes_traffic(world: World) -> None:
    world.serve(1)
    stale = world.commands.plan(default_spec(MODEL, "v3", "local"))
    world.serve(2)
    opened = ReleaseOpened(
        release="rel-7", model=MODEL, target="local", route=ROUTE, candidate=stale.candidate,
        baseline=stale.baseline, plan=to_json(stale), plan_digest=stale.digest,
    )  # fmt: skip
    world.ledger.append("release/rel-7", 0, [opened], actor="eve", at=world.clock.now())
    world.ticks(3)
    assert world.release("rel-7").phase == "failed"
    assert world.split() == {2: 100}


def test_a_kept_version_released_again_and_stopped_does_not_block_the_route(world: World) -> None:
    world.serve(1)
    world.serve(2)
    name = world.open(1)
    world.ticks(3)
    world.commands.rollback(MODEL, "local", actor="bob", reason="x")
    world.ticks(3)
    assert world.release(name).phase == "reverted"
    world.serve(3)


def test_rollbacks_walk_down_the_line(world: World) -> None:
    for number in (1, 2, 1, 3):
        world.serve(number)
    for expected in (1, 2, 1):
        world.commands.rollback(MODEL, "local", actor="bob", reason="x")
        world.ticks(2)
        assert world.split() == {expected: 100}


def test_a_wavering_verdict_does_not_fill_the_ledger(world: World) -> None:
    world.serve(1)
    name = world.open(2, strategy={"canary": [10, 100], "bake": "1h", "min_requests": 30})
    world.traffic(60)
    assert world.story(name).count("Judged") <= 1 + 60 // 5


def test_waiting_for_an_approval_has_no_deadline(world: World) -> None:
    world.serve(1)
    name = world.open(2, approve={"before": [50]})
    world.traffic(120)
    world.ticks(100, every=120)
    held = world.release(name).held
    assert held is not None
    assert held.because == "approval"


def test_a_gateway_that_forgot_everything_gets_the_baseline_back_first(world: World) -> None:
    world.serve(1)
    world.open(2, replicas=2)
    world.traffic(5)
    world.gateway._routes.clear()
    world.gateway._pools.clear()
    world.fleet.crash(world.d(2))
    world.fleet._start_s = 1000
    world.ticks(2)
    assert world.split() == {1: 100}

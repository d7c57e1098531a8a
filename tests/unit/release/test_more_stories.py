"""Strategies, approvals, windows, blocks and successors, told in the memory world."""

from __future__ import annotations

import pytest

from lockgate.core.digests import digest_of
from lockgate.core.errors import ConflictError
from lockgate.core.events import VersionJudged
from lockgate.core.traffic import WHOLE, twin_of
from lockgate.core.verdict import Verdict

from .world import MODEL, ROUTE, World

ERRORS = [{"signal": "error_rate", "worse_by_at_most": "100%", "floor": "5%"}]
FAST = {"bake": "5s", "min_requests": 20, "give_up_after": "1h"}


@pytest.fixture
def world() -> World:
    return World()


def serve(world: World, replicas: int) -> None:
    world.open(1, replicas=replicas)
    world.ticks(3)
    assert world.split() == {1: 100}


def counts(world: World) -> tuple[int, int]:
    """How many replicas of versions 1 and 2 exist."""
    have = [replica.version for replica in world.fleet.replicas()]
    return have.count(world.d(1)), have.count(world.d(2))


def follow(world: World, name: str, seconds: int = 400, **how: object) -> list[tuple[int, ...]]:
    """Runs until the release ends; returns each new (replicas 1, replicas 2, share of 2)."""
    seen: list[tuple[int, ...]] = []
    for _ in range(seconds):
        world.traffic(1, rate=40, **how)  # type: ignore[arg-type]
        now = (*counts(world), world.split().get(2, 0))
        if not seen or seen[-1] != now:
            seen.append(now)
        if world.release(name).final:
            break
    return seen


def test_rolling_replaces_replica_by_replica_and_capacity_never_drops(world: World) -> None:
    serve(world, 3)
    name = world.open(2, strategy={"rolling": {"batch": 1, "surge": 1}, **FAST}, checks=ERRORS)
    seen = follow(world, name)
    assert world.release(name).phase == "promoted"
    assert all(3 <= old + new <= 4 for old, new, _ in seen)
    assert [share for _, _, share in seen if share] == sorted(
        share for _, _, share in seen if share
    )
    world.ticks(3)
    assert counts(world) == (0, 3)


def test_in_place_never_has_more_replicas_than_there_were(world: World) -> None:
    serve(world, 3)
    name = world.open(2, strategy={"rolling": {"batch": 1, "surge": 0}, **FAST}, checks=ERRORS)
    seen = follow(world, name)
    assert world.release(name).phase == "promoted"
    assert max(old + new for old, new, _ in seen) == 3
    assert min(old + new for old, new, _ in seen) >= 2
    for old, new, share in seen:  # nobody gets more than what is there can carry
        assert share == 0 or new
        assert share == 100 or old
    world.ticks(3)
    assert counts(world) == (0, 3)


@pytest.mark.parametrize("surge", [0, 1])
def test_a_rolling_release_that_fails_comes_back_as_fast_as_replicas_do(surge: int) -> None:
    world = World(start_s=3)
    world.open(1, replicas=3)
    world.ticks(8)
    strategy = {"rolling": {"batch": 1, "surge": surge}, **FAST}
    name = world.open(2, strategy=strategy, checks=ERRORS)
    for _ in range(200):
        world.traffic(1, rate=40)
        if counts(world)[0] == 1 and world.split().get(2, 0) >= 50:
            break
    shares = []
    for _ in range(200):
        world.traffic(1, rate=40, bad={2: "errors"})
        old, new = counts(world)
        ready = sum(r.version == world.d(1) and r.state == "ready" for r in world.fleet.replicas())
        share = world.split().get(1, 0)
        if world.release(name).phase == "reverting":
            shares.append(share)
            assert share <= 100 * ready / 3 + 35  # never more than what is back can carry
            assert old + new <= 3 + surge
        if world.release(name).final:
            break
    assert world.release(name).phase == "reverted"
    assert shares == sorted(shares)
    assert world.split() == {1: 100}
    world.ticks(5)
    assert counts(world) == (3, 0)


def test_a_rolling_release_whose_candidate_serves_nobody_goes_back_at_once(world: World) -> None:
    serve(world, 3)
    name = world.open(2, strategy={"rolling": {"batch": 1, "surge": 1}, **FAST}, checks=[])
    for _ in range(100):
        world.traffic(1)
        if world.split().get(2, 0) > 50:
            break
    world.fleet.broken.add(world.d(2))
    world.ticks(2)
    assert world.release(name).phase in ("reverting", "reverted")
    assert world.split() == {1: 100}


def test_a_shadow_sends_copies_before_any_share(world: World) -> None:
    serve(world, 1)
    strategy = {"shadow": {"share": 50, "last": "10s", "min_requests": 5}, "canary": [50, 100],
                **FAST}  # fmt: skip
    name = world.open(2, strategy=strategy, checks=[])
    world.ticks(2)
    view = world.gateway.view().routes[ROUTE]
    assert (dict(view.mirror), dict(view.weights)) == ({world.d(2): 5_000}, {world.d(1): WHOLE})
    world.traffic(5)
    assert world.split() == {1: 100}
    follow(world, name)
    assert world.release(name).phase == "promoted"
    assert dict(world.gateway.view().routes[ROUTE].mirror) == {}


def test_a_shadow_without_copies_is_held_and_never_passes(world: World) -> None:
    serve(world, 1)
    name = world.open(2, strategy={"shadow": {"last": "5s", "min_requests": 5}, **FAST}, checks=[])
    world.ticks(60)  # no traffic: nothing to copy
    held = world.release(name).held
    assert held is not None
    assert held.because == "evidence"
    assert world.split() == {1: 100}


def test_a_rollback_ends_the_copies_too(world: World) -> None:
    serve(world, 1)
    name = world.open(2, strategy={"shadow": {"last": "1h"}, **FAST}, checks=[])
    world.ticks(3)
    world.commands.rollback(MODEL, "local", actor="ann", reason="no")
    world.ticks(3)
    assert world.release(name).phase == "reverted"
    assert dict(world.gateway.view().routes[ROUTE].mirror) == {}
    assert world.running() == {1}


def test_an_ab_test_gives_its_header_to_the_candidate(world: World) -> None:
    serve(world, 1)
    strategy = {"ab": {"share": 40, "last": "30s", "header": "x-in", "value": "1"}, **FAST}
    name = world.open(2, strategy=strategy, checks=[])
    world.traffic(10)
    view = world.gateway.view().routes[ROUTE]
    assert view.variant == ("x-in", "1", world.d(2))
    assert world.split() == {1: 60, 2: 40}
    follow(world, name)
    assert world.release(name).phase == "promoted"
    world.ticks(2)
    assert world.gateway.view().routes[ROUTE].variant == ()


def test_two_people_must_agree_and_one_is_not_enough(world: World) -> None:
    serve(world, 1)
    name = world.open(2, strategy={"canary": [50, 100], **FAST}, checks=[],
                      approve={"before": [100], "count": 2, "expires": "1h"})  # fmt: skip
    world.traffic(30)
    world.commands.approve(name, actor="ann", reason="fine")
    world.commands.approve(name, actor="ann", reason="fine, again")
    world.traffic(10)
    held = world.release(name).held
    assert held is not None
    assert held.because == "approval"
    world.commands.approve(name, actor="bob", reason="yes")
    world.traffic(30)
    assert world.release(name).phase == "promoted"


def test_a_word_given_in_advance_counts_and_an_old_one_does_not(world: World) -> None:
    serve(world, 1)
    name = world.open(2, strategy={"canary": [50, 100], **FAST}, checks=[],
                      approve={"before": [100], "expires": "60s"})  # fmt: skip
    world.ticks(2)
    world.commands.approve(name, actor="ann", reason="go ahead when it is due")
    world.commands.hold(name, actor="bob", reason="lunch")
    world.traffic(100)
    world.commands.resume(name, actor="bob", reason="back")
    world.traffic(20)
    held = world.release(name).held
    assert held is not None
    assert held.because == "approval"
    world.commands.approve(name, actor="ann", reason="still")
    world.traffic(20)
    assert world.release(name).phase == "promoted"


def test_nothing_goes_forward_outside_its_windows_but_back_it_goes(world: World) -> None:
    serve(world, 1)
    world.clock._now = 86_400.0 * 365 + 3600 * 7.9  # 07:54 UTC
    slow = {**FAST, "bake": "90s"}
    name = world.open(2, strategy={"canary": [50, 100], **slow}, checks=ERRORS,
                      windows=["08:00-08:01"])  # fmt: skip
    world.ticks(3)
    held = world.release(name).held
    assert held is not None
    assert (held.because, world.split()) == ("window", {1: 100})
    world.ticks(37, every=10)
    assert world.split() == {1: 50, 2: 50}
    world.traffic(120, rate=40)
    held = world.release(name).held
    assert held is not None
    assert held.because == "window"
    with pytest.raises(ConflictError, match="window"):
        world.commands.resume(name, actor="ann", reason="now")
    world.traffic(60, rate=40, bad={2: "errors"})
    assert world.release(name).phase == "reverted"


def test_a_blocked_route_keeps_everything_but_the_way_back(world: World) -> None:
    serve(world, 1)
    name = world.open(2, strategy={"canary": [50, 100], **FAST}, checks=ERRORS)
    world.traffic(3)
    world.commands.block(MODEL, "local", actor="ann", reason="incident 7", until=None)
    world.traffic(120, rate=40)
    held = world.release(name).held
    assert held is not None
    assert (held.because, world.split()) == ("blocked", {1: 50, 2: 50})
    assert "incident 7 (by ann)" in held.reason
    world.commands.unblock(MODEL, "local", actor="bob", reason="over")
    world.traffic(30)
    assert world.release(name).phase == "promoted"
    with pytest.raises(ConflictError, match="not blocked"):
        world.commands.unblock(MODEL, "local", actor="bob", reason="again")
    world.commands.block(MODEL, "local", actor="ann", reason="night", until=world.clock.now() + 60)
    back = world.commands.rollback(MODEL, "local", actor="ann", reason="bad answers")
    world.ticks(5)
    assert world.release(back).phase == "promoted"
    other = world.open(3, strategy={"canary": [50, 100], **FAST}, checks=[])
    world.ticks(5)
    assert world.split() == {1: 100}
    world.ticks(60)
    assert world.split() == {1: 50, 3: 50}
    assert world.release(other).phase == "baking"


def test_a_newer_candidate_follows_the_one_it_supersedes_and_starts_from_zero(
    world: World,
) -> None:
    serve(world, 1)
    first = world.open(2, strategy={"canary": [50, 100], **FAST}, checks=ERRORS)
    world.traffic(3, rate=40)
    second = world.open(3, supersede=True, strategy={"canary": [50, 100], **FAST}, checks=ERRORS)
    third = world.open(4, supersede=True, strategy={"canary": [50, 100], **FAST}, checks=ERRORS)
    world.ticks(3)
    rollback = world.release(first).rollback
    assert rollback is not None
    assert (world.release(first).phase, rollback.cause) == ("reverted", "superseded")
    assert world.release(second).phase == "failed"
    assert world.split() == {1: 50, 4: 50}
    assert world.release(third).samples_from > world.release(first).samples_from
    world.traffic(100, rate=40)
    assert world.release(third).phase == "promoted"
    told = world.story(second)
    assert told == ["ReleaseOpened", "ReleaseFailed"]


def test_a_deadline_may_wait_for_a_person(world: World) -> None:
    serve(world, 1)
    strategy = {"canary": [{"share": 50, "max": "30s"}, 100], **FAST}
    name = world.open(2, strategy=strategy, checks=ERRORS, on_deadline="hold")
    world.ticks(60)
    held = world.release(name).held
    assert held is not None
    assert held.because == "person"
    assert "still not judged" in held.reason
    assert world.split() == {1: 50, 2: 50}


def test_a_twin_gets_the_candidates_share_and_goes_with_the_comparison(world: World) -> None:
    serve(world, 2)
    strategy = {"canary": [10, 50, 100], "compare": "twin", **FAST}
    name = world.open(2, strategy=strategy, checks=ERRORS)
    twin = twin_of(world.d(1))
    seen = []
    for _ in range(300):
        world.traffic(1, rate=40)
        view = world.gateway.view().routes[ROUTE]
        now = (
            view.weights.get(world.d(1), 0), view.weights.get(twin, 0),
            view.weights.get(world.d(2), 0),
        )  # fmt: skip
        if not seen or seen[-1] != now:
            seen.append(now)
        if world.release(name).final:
            break
    assert seen == [(8_000, 1_000, 1_000), (0, 5_000, 5_000), (0, 0, 10_000)]
    assert world.release(name).phase == "promoted"
    verdict = world.release(name).verdict
    assert verdict is not None
    world.ticks(10)
    assert {r.version for r in world.fleet.replicas()} == {world.d(1), world.d(2)}


def test_a_candidate_that_is_worse_than_the_twin_goes_back_and_so_does_the_twin(
    world: World,
) -> None:
    serve(world, 1)
    strategy = {"canary": [10, 50, 100], "compare": "twin", **FAST}
    name = world.open(2, strategy=strategy, checks=ERRORS)
    world.traffic(60, rate=40, bad={2: "errors"})
    assert world.release(name).phase == "reverted"
    assert world.split() == {1: 100}
    assert counts(world) == (1, 0)
    assert len(world.fleet.replicas()) == 1


def test_two_that_open_at_once_do_not_end_each_other(world: World) -> None:
    """Only who says so supersedes: the other is told that somebody was first."""
    serve(world, 1)
    real, first = world.commands._check_free, []

    def late(route: str) -> None:
        real(route)
        if not first:
            first.append(None)
            first[0] = world.open(2, checks=[])  # somebody else, a moment before

    world.commands._check_free = late  # type: ignore[method-assign]
    with pytest.raises(ConflictError, match="under way"):
        world.open(3, checks=[])
    world.ticks(2)
    assert world.release(str(first[0])).phase == "baking"


def test_promote_skips_steps_and_never_an_approval(world: World) -> None:
    serve(world, 1)
    name = world.open(2, strategy={"canary": [10, 50, 100], **FAST}, checks=[],
                      approve={"before": [50], "count": 2})  # fmt: skip
    world.ticks(3)
    world.commands.promote(name, actor="ann", reason="hurry")
    world.ticks(3)
    held = world.release(name).held
    assert held is not None
    assert (held.because, held.step, world.split()) == ("approval", 1, {1: 90, 2: 10})
    for person in ("bob", "eve"):
        world.commands.approve(name, actor=person, reason="fine")
    world.ticks(3)
    assert world.release(name).phase == "promoted"


def test_a_rollback_stops_the_successor_too(world: World) -> None:
    serve(world, 1)
    world.open(2, strategy={"canary": [50, 100], **FAST}, checks=[])
    world.ticks(2)
    second = world.open(3, supersede=True, checks=[])
    world.commands.rollback(MODEL, "local", actor="ann", reason="stop everything")
    world.ticks(5)
    assert world.release(second).phase == "failed"
    assert world.split() == {1: 100}
    assert world.route.active is None


def test_a_judge_that_breaks_keeps_nobody_in_traffic(world: World) -> None:
    serve(world, 1)
    name = world.open(2, strategy={"canary": [50, 100], **FAST}, checks=ERRORS)
    world.ticks(2)

    def broken(*_: object) -> None:
        raise OverflowError("too large")

    world.engine._judge = broken  # type: ignore[method-assign,assignment]
    world.fleet.crash(world.d(2), 5)
    world.ticks(3)
    assert world.release(name).phase in ("reverting", "reverted")
    assert world.split() == {1: 100}


def say(world: World, gate: str, outcome: str, target: str = "local") -> None:
    verdict = Verdict(outcome=outcome, reason=f"{gate} says {outcome}", at=world.clock.now())  # type: ignore[arg-type]
    question = digest_of(f"{gate} {target} {outcome}".encode())
    event = VersionJudged(
        model=MODEL, number=2, digest=world.d(2), target=target, gate=gate, question=question,
        verdict=verdict,
    )  # fmt: skip
    world.registry.record(event, actor="ann")


def test_a_version_that_a_gate_did_not_judge_is_not_let_in(world: World) -> None:
    serve(world, 1)
    say(world, "evaluation", "pass")
    say(world, "budget", "pass", target="elsewhere")
    name = world.open(2, gates=["evaluation", "budget"], strategy={"canary": [100]}, checks=[])
    world.ticks(2)
    release = world.release(name)
    assert release.phase == "refused"
    assert release.note == "budget: it has not judged this version here"
    assert counts(world) == (1, 0)


def test_the_last_word_of_a_gate_counts(world: World) -> None:
    serve(world, 1)
    gated = {"gates": ["evaluation"], "strategy": {"canary": [100], **FAST}, "checks": []}
    say(world, "evaluation", "pass")
    say(world, "evaluation", "fail")
    refused = world.open(2, **gated)
    world.ticks(2)
    assert world.release(refused).phase == "refused"
    assert world.release(refused).note == "evaluation: evaluation says fail"
    say(world, "evaluation", "pass")  # known, and said again
    admitted = world.open(2, **gated)
    follow(world, admitted)
    assert world.release(admitted).phase == "promoted"

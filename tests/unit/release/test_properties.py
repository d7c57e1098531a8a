"""Anything in any order: a random walk through the memory world; what must never happen does not.

Every call of a port and every append is watched. At the end faults stop, traffic is good, people
answer what waits for them: then every release must end, and only what should run may run.

Left out, because it is known not to hold: a hold after `promote`; `rollback --to` what serves;
replicas that crash while they serve or are kept (their restarts count against a later rollback);
a fleet that can no longer run what serves; the first release of a route.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lockgate.core import events as ev
from lockgate.core.errors import LockgateError, PermanentError, TemporaryError
from lockgate.fleet.api import ReplicaSpec
from lockgate.gateway.api import RouteSpec
from lockgate.ledger.api import Recorded
from lockgate.release.decide import judged
from lockgate.release.state import Release

from .world import MODEL, ROUTE, World

VERSIONS = st.integers(1, 4)
FAST = {"canary": [10, 50, 100], "bake": "3s", "min_requests": 8, "give_up_after": "20s"}
STRATEGIES = st.sampled_from([
    FAST,
    {**FAST, "canary": None, "rolling": {"batch": 1, "surge": 1}},
    {**FAST, "canary": None, "rolling": {"batch": 1, "surge": 0}},
    {**FAST, "canary": None, "rolling": {"batch": 2, "surge": 1}},
    {**FAST, "canary": None, "ab": {"share": 50, "last": "5s", "header": "x-in", "value": "1"}},
    {**FAST, "shadow": {"share": 50, "last": "3s", "min_requests": 5}},
])  # fmt: skip
ENDINGS = (ev.ReleasePromoted, ev.ReleaseReverted, ev.ReleaseFailed, ev.ReleaseRefused)
FREES = (ev.ReleaseResumed, ev.PromotionRequested, ev.RollbackStarted)
FORWARD = (ev.StepStarted, ev.StepPassed, ev.ReleasePromoted)


class Watched(World):
    """The memory world; every call and append is checked as it happens."""

    def __init__(self) -> None:
        super().__init__()
        self.generation = 0
        self.person_holds: set[str] = set()
        self.ended: dict[str, str] = {}
        self.late = 0
        self._wrap()

    def _wrap(self) -> None:
        self._set_route, self.gateway.set_route = self.gateway.set_route, self.set_route
        self._remove, self.gateway.remove_pool = self.gateway.remove_pool, self.remove_pool
        self._replicas, self.fleet.set_replicas = self.fleet.set_replicas, self.set_replicas
        self._append, self.ledger.append = self.ledger.append, self.append

    def set_route(self, spec: RouteSpec) -> int:
        view = self.gateway.view()
        before = view.routes[ROUTE].weights if ROUTE in view.routes else {}
        ready = {r.version for r in self.fleet.replicas() if r.state == "ready"}
        for version, weight in spec.weights.items():
            grows = weight > before.get(version, 0)
            assert not grows or version in ready, "weight for a version that nobody serves"
        revision = self._set_route(spec)
        if self.late:  # in force, but the proxy's word did not come in time
            self.late -= 1
            raise TemporaryError("the proxy did not answer in time")
        return revision

    def remove_pool(self, route: str, version: str) -> None:
        view = self.gateway.view().routes.get(route)
        assert view is None or not view.weights.get(version, 0), "a pool with weight removed"
        self._remove(route, version)

    def set_replicas(self, spec: ReplicaSpec) -> None:
        has_pool = (spec.route, spec.version) in self.gateway.view().pools
        assert spec.count or not has_pool, "a process stopped while its pool is there"
        self._replicas(spec)

    def append(self, stream: str, expected: int, events: Sequence[Any], **more: Any) -> Any:
        before = {r.id: r for r in self.engine.book().releases.values()}
        done = self._append(stream, expected, events, **more)
        fence = more.get("fence")
        if fence is not None:
            assert fence.generation >= self.generation, "an engine wrote after it lost its lease"
            self.generation = fence.generation
        for recorded in done:
            self._look(recorded, before.get(stream.removeprefix("release/")))
        return done

    def _look(self, recorded: Recorded, release: Release | None) -> None:
        event = recorded.event
        if isinstance(event, ENDINGS):
            assert event.release not in self.ended, "a release ended twice"
            self.ended[event.release] = type(event).__name__
        if release is None:
            return
        if isinstance(event, FREES):
            self.person_holds.discard(release.id)
        if isinstance(event, FORWARD):
            assert release.id not in self.person_holds, "a person's hold was undone"
            assert release.rollback is None, "a release that turned back went forward"
        if isinstance(event, ev.ReleaseHeld) and event.because == "person":
            self.person_holds.add(release.id)
        if isinstance(event, ev.StepPassed) and judged(release):
            assert event.verdict is not None
            assert event.verdict.outcome == "pass"
            self._enough(release)

    def _enough(self, release: Release) -> None:
        """A step passes on requests that were seen at it, never on silence."""
        rows = self.samples.window(ROUTE, since=release.entered_at)
        seen = sum(row.version == release.plan.candidate.digest for row in rows)
        assert seen >= release.plan.steps[release.step].min_requests

    @property
    def active(self) -> Release | None:
        found = self.engine.book().routes.get(ROUTE)
        return found.active if found else None

    def split_in_force(self) -> dict[str, int]:
        view = self.gateway.view().routes.get(ROUTE)
        return {v: w for v, w in view.weights.items() if w} if view else {}


class Walk(RuleBasedStateMachine):
    """People, traffic, faults and time in any order."""

    @initialize()
    def begin(self) -> None:
        self.world = Watched()
        self.other = self.world.engine
        self.world.serve(1)

    def ask(self, what: Any, *arguments: Any, **more: Any) -> Any:
        """Asks as a person does: a refusal is one of our errors, never anything else."""
        try:
            return what(*arguments, **more)
        except LockgateError:
            return None

    @rule(number=VERSIONS, checks=st.booleans(), approve=st.booleans(),
          on_fail=st.sampled_from(["rollback", "hold"]), keep=st.sampled_from(["0s", "30s"]),
          replicas=st.integers(1, 3), strategy=STRATEGIES, supersede=st.booleans())  # fmt: skip
    def open(self, number: int, checks: bool, approve: bool, on_fail: str, keep: str,
             replicas: int, strategy: dict[str, Any], supersede: bool) -> None:  # fmt: skip
        step = 50 if strategy["canary"] else 100
        more: dict[str, Any] = {"approve": {"before": [step]}} if approve else {}
        if not checks:
            more["checks"] = []
        if self.world.route.serving.version.number == number:
            return
        chosen = {key: value for key, value in strategy.items() if value is not None}
        self.ask(self.world.open, number, strategy=chosen, on_fail=on_fail, keep_previous=keep,
                 replicas=replicas, supersede=supersede, **more)  # fmt: skip

    @rule(lasts=st.sampled_from([None, 5.0, 60.0]))
    def block(self, lasts: float | None) -> None:
        until = None if lasts is None else self.world.clock.now() + lasts
        self.ask(self.world.commands.block, MODEL, "local", actor="ann", reason="so", until=until)

    @rule()
    def unblock(self) -> None:
        self.ask(self.world.commands.unblock, MODEL, "local", actor="ann", reason="so")

    @precondition(lambda self: self.world.active is not None)
    @rule(verb=st.sampled_from(["approve", "hold", "resume", "promote"]))
    def say(self, verb: str) -> None:
        active = self.world.active
        assert active is not None
        if verb == "hold" and active.promote_now:
            return
        self.ask(getattr(self.world.commands, verb), active.id, actor="ann", reason="so")

    @rule()
    def rollback(self) -> None:
        self.ask(self.world.commands.rollback, MODEL, "local", actor="ann", reason="so")

    @rule(number=VERSIONS)
    def rollback_to(self, number: int) -> None:
        if self.world.route.serving.version.number == number:
            return
        self.ask(self.world.commands.rollback, MODEL, "local", actor="ann", reason="so",
                 to=f"v{number}")  # fmt: skip

    @rule(seconds=st.integers(1, 6), how=st.sampled_from(["good", "errors", "slow"]),
          bad=VERSIONS)  # fmt: skip
    def traffic(self, seconds: int, how: str, bad: int) -> None:
        self.world.traffic(seconds, bad={bad: how} if how != "good" else None)

    @rule(count=st.integers(1, 3), every=st.sampled_from([0.0, 1.0, 10.0]))
    def tick(self, count: int, every: float) -> None:
        self.world.ticks(count, every)

    @rule(seconds=st.sampled_from([-100.0, -5.0, 40.0, 1000.0]))
    def clock_jumps(self, seconds: float) -> None:
        self.world.clock._now += seconds

    @precondition(lambda self: self.world.active is not None)
    @rule(times=st.integers(1, 3))
    def candidate_crashes(self, times: int) -> None:
        active = self.world.active
        assert active is not None
        if active.plan.intent == "release":
            self.world.fleet.crash(active.plan.candidate.digest, times)

    @rule(number=VERSIONS)
    def replicas_are_not_ready(self, number: int) -> None:
        self.world.fleet.crash(self.world.d(number), 0)
        self.world.fleet._start_s = 15.0

    @rule()
    def replicas_start_at_once(self) -> None:
        self.world.fleet._start_s = 0.0

    @precondition(lambda self: self.world.active is not None)
    @rule()
    def candidate_is_broken(self) -> None:
        active = self.world.active
        assert active is not None
        self.world.fleet.broken.add(active.plan.candidate.digest)

    @precondition(lambda self: self.world.active is not None)
    @rule()
    def candidate_is_impossible(self) -> None:
        active = self.world.active
        assert active is not None
        self.world.fleet.impossible.add(active.plan.candidate.digest)

    @rule()
    def versions_are_mended(self) -> None:
        self.world.fleet.broken.clear()
        self.world.fleet.impossible.clear()

    @rule(permanent=st.booleans(), times=st.integers(1, 4))
    def gateway_fails(self, permanent: bool, times: int) -> None:
        kind = PermanentError if permanent else TemporaryError
        for _ in range(times):
            self.world.gateway.fail_next(kind("the proxy said no"))

    @rule(times=st.integers(1, 3))
    def gateway_answers_late(self, times: int) -> None:
        self.world.late = times

    @rule(number=VERSIONS, count=st.integers(0, 2))
    def in_flight(self, number: int, count: int) -> None:
        self.world.gateway.set_in_flight(ROUTE, self.world.d(number), count)

    @rule()
    def another_engine_takes_over(self) -> None:
        self.other = self.world.engine
        self.world.clock.sleep(20.0)
        self.world.engine = self.world.new_engine(f"at {self.world.clock.now()}")
        self.world.engine.tick()

    @rule()
    def the_old_engine_looks_again(self) -> None:
        self.other.tick()

    @invariant()
    def the_split_is_whole(self) -> None:
        split = self.world.split_in_force()
        assert sum(split.values()) == 10_000
        pools = {version for _, version in self.world.gateway.view().pools}
        assert set(split) <= pools

    @invariant()
    def one_release_at_a_time(self) -> None:
        open_ones = [r for r in self.world.engine.book().releases.values() if not r.final]
        waiting = self.world.route.waiting
        assert len(open_ones) <= (1 if waiting is None else 2)
        for release in self.world.engine.book().releases.values():
            assert release.final == (release.id in self.world.ended)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        self.versions_are_mended()
        world.fleet._start_s = 0.0
        world.gateway._failures.clear()
        world.late = 0
        for number in range(1, 6):
            world.gateway.set_in_flight(ROUTE, world.d(number), 0)
        self.unblock()
        turning_back = world.active if world.active and world.active.rollback else None
        for _ in range(400):
            if world.active is None:
                break
            if world.active.held:
                self.say("approve")
                self.say("resume")
            if world.active and world.active.held and world.active.held.because == "person":
                self.rollback()  # a failing verdict that holds
            world.traffic(1, rate=20)
        assert world.active is None, (world.active.phase, world.active.held, world.engine.trouble)
        if turning_back is not None:
            assert world.release(turning_back.id).phase == "reverted"
        world.ticks(60, every=30.0)
        self._all_is_well(world)

    def _all_is_well(self, world: Watched) -> None:
        serving = world.route.serving
        assert serving is not None
        assert world.split_in_force() == {serving.version.digest: 10_000}
        assert world.running() == {serving.version.number}
        assert world.route.previous is None
        assert {v for _, v in world.gateway.view().pools} == {serving.version.digest}
        rows = world.ledger.head()
        world.ticks(20)
        assert world.ledger.head() == rows, "an idle look wrote"


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip

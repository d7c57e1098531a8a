"""The loop: take lease → read → fold → observe → decide → append → act, again and again.

A crash between any two lines is healed by the next tick: decide and converge look at what is.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lockgate.analysis.checks import JudgeRules, Look
from lockgate.core import events as ev
from lockgate.core.clock import Clock
from lockgate.core.errors import ConflictError, LockgateError, PermanentError, TemporaryError
from lockgate.core.verdict import Verdict
from lockgate.fleet.api import Replica, ReplicaSpec
from lockgate.gateway.api import PoolView, RouteView
from lockgate.ledger.api import Lease, Leases, Ledger
from lockgate.observe.docket import Brief, Docket
from lockgate.registry.service import Registry
from lockgate.release import routes
from lockgate.release.act import Ports, act, describe
from lockgate.release.converge import (
    Action,
    Scene,
    SetReplicas,
    SetWeights,
    concerns,
    converge,
)
from lockgate.release.decide import GIVE_UP_FAILURES, World, decide, judged
from lockgate.release.routes import Book, Route, desired
from lockgate.release.state import Release

ACTOR = "lockgate"
LEASE = "engine"
LEASE_S = 15.0
LOOK_EVERY_S = 0.5
"""Seconds between two looks of the judge at one release, and, where a look takes long, …"""
LOOK_SHARE = 5.0
"""… how many times its own duration it waits, so that judging never takes the loop over."""
JUDGE_S = 0.4
"""Seconds of one tick that go to judging: with very many releases, each is looked at less often."""
REPEAT_S = 30.0
"""Seconds until the fleet is told again what it was told and has done."""
_ROUNDS = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Everything the engine reads and writes besides fleet and gateway."""

    ledger: Ledger
    leases: Leases
    registry: Registry
    docket: Docket
    clock: Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the judge said of a step, and when it is asked again."""

    step: int
    verdict: Verdict
    next_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sight:
    """What gateway and fleet showed when last looked at, by route."""

    routes: Mapping[str, RouteView]
    pools: Mapping[str, Mapping[str, PoolView]]
    replicas: Mapping[str, Sequence[Replica]]


class Engine:
    """Drives every route towards what its releases want. One engine acts at a time, by lease."""

    def __init__(self, tools: Tools, ports: Ports, *, holder: str) -> None:
        self._tools = tools
        self._ports = ports
        self._holder = holder
        self._book = Book()
        self._lease: Lease | None = None
        self._lock = threading.RLock()
        self._looks: dict[str, _Look] = {}
        self._sight: _Sight | None = None
        self._judged_s = 0.0
        self._told: dict[tuple[str, str], tuple[ReplicaSpec, float]] = {}
        self.trouble: dict[str, str] = {}
        """Route → why its last action did not work, for people; empty when all is well."""

    def book(self) -> Book:
        """Returns every release and route as the ledger has them now."""
        with self._lock:
            ledger = self._tools.ledger
            while page := ledger.read(after=self._book.position, limit=1000):
                for recorded in page:
                    self._book = routes.read(self._book, recorded)
            return self._book

    def brief(self, release: Release, rules: JudgeRules | None = None) -> Brief:
        """Returns what the case of `release` is about, or would be under other `rules`."""
        plan = release.plan
        return Brief(
            release=release.id,
            route=plan.route,
            candidate=plan.candidate.digest,
            baseline=plan.rival,
            even=plan.twin,
            rules=rules or plan.rules,
            after=release.samples_from,
        )

    def tick(self) -> bool:
        """Looks at every route once and does what is due; False when another engine acts."""
        lease = self._take_lease()
        if lease is None:
            return False
        try:
            self._end_latecomers(lease)
        except LockgateError as error:
            _log.info("%s", error.message)
        self._sight = None
        self._judged_s = 0.0
        for name in sorted(self.book().routes, key=self._turn):
            try:
                self._tick_route(name, lease)
            except ConflictError as error:  # somebody else wrote first: look again next time
                _log.info("%s: %s", name, error.message)
            except LockgateError as error:
                self.trouble[name] = error.message
                _log.warning("%s: %s", name, error.message)
            except Exception as error:  # noqa: BLE001 - one route's fault is not another one's
                self.trouble[name] = f"{type(error).__name__}: {error}"
                _log.exception("%s", name)
        return True

    def _turn(self, name: str) -> tuple[float, str]:
        """Returns the order of routes: those whose release was looked at longest ago are first."""
        active = self._book.routes[name].active
        looked = self._looks.get(active.id) if active else None
        return (looked.next_at if looked else 0.0, name)

    def stop(self) -> None:
        """Gives the lease back, so that another engine can act at once."""
        if self._lease is not None:
            self._tools.leases.give_back(self._lease)
            self._lease = None

    def _take_lease(self) -> Lease | None:
        now = self._tools.clock.now()
        if self._lease is None or self._lease.expires - now < LEASE_S / 2:
            self._lease = self._tools.leases.acquire(LEASE, self._holder, ttl=LEASE_S, now=now)
        return self._lease

    def _end_latecomers(self, lease: Lease) -> None:
        """Ends releases that were opened in the same moment as the one that got the route."""
        book = self.book()
        for release in book.releases.values():
            active = book.routes[release.route].active
            waiting = book.routes[release.route].waiting
            mine = {found.id for found in (active, waiting) if found is not None}
            if not release.final and release.id not in mine:
                reason = f"something else changed {release.route} at the same moment"
                self._append(release, (ev.ReleaseFailed(release=release.id, reason=reason),), lease)

    def _tick_route(self, name: str, lease: Lease) -> None:
        for _ in range(_ROUNDS):
            route = self.book().routes[name]
            moved = self._decide(route, lease)
            route = self.book().routes[name]
            moved = self._converge(route, lease) or moved
            if not moved:
                break
        self._follow_alias(self.book().routes[name])

    def _decide(self, route: Route, lease: Lease) -> bool:
        now = self._tools.clock.now()
        events: tuple[ev.ReleaseEvent, ...] = ()
        release = route.active
        world = self._world(route, now)
        if release is not None:
            judged = self._admissions(release) if release.phase == "admitting" else {}
            world = replace(world, verdict=self._heard(release, now), judged=judged)
            events = decide(release, world)
        elif route.previous is not None and now >= route.keep_until:
            events = self._retired(route, world)
            release = self.book().releases[route.line[-1].release] if events else None
        if not events or release is None:
            return False
        self._append(release, events, lease)
        self._sight = None
        if self.book().releases[release.id].final:
            self._looks.pop(release.id, None)
            self._tools.docket.close(release.id)
        return True

    def _append(self, release: Release, events: tuple[ev.ReleaseEvent, ...], lease: Lease) -> None:
        self._tools.ledger.append(
            f"release/{release.id}", release.events, events,
            actor=ACTOR, at=self._tools.clock.now(), fence=lease,
        )  # fmt: skip

    def _retired(self, route: Route, world: World) -> tuple[ev.ReleaseEvent, ...]:
        previous = route.previous
        if previous is None or not world.gone(previous.version.digest):
            return ()
        return (ev.VersionRetired(release=route.line[-1].release, version=previous.version),)

    def _follow_alias(self, route: Route) -> None:
        """Moves the alias of what serves there, unless somebody has moved it since."""
        serving = route.serving
        if serving is None or serving.alias is None or route.active is not None:
            return
        known = self._tools.registry.model(route.model)
        moved_at = known.alias_times.get(serving.alias, 0.0)
        if moved_at <= serving.since and known.aliases.get(serving.alias) != serving.version.number:
            self._tools.registry.move_alias(
                route.model, serving.alias, serving.version.digest, actor=ACTOR,
                reason=serving.release,
            )  # fmt: skip

    def _admissions(self, release: Release) -> Mapping[str, Verdict]:
        """Returns what each gate said last of the candidate, for the release's target."""
        if not release.plan.gates:
            return {}
        plan = release.plan
        version = self._tools.registry.version(plan.model, plan.candidate.digest)
        return {j.gate: j.verdict for j in version.judged if j.target == plan.target}

    def _world(self, route: Route, now: float) -> World:
        scene = self._scene(route, now)
        return World(
            now=now,
            replicas=scene.replicas,
            weights=scene.split,
            revision=scene.revision,
            pools={version: len(pool.endpoints) for version, pool in scene.pools.items()},
            kept=_kept(route, now),
            samples_at=self._tools.docket.end(),
            blocked=route.blocked(now),
            mirror=scene.mirror,
        )

    def verdict(self, release: str) -> Verdict | None:
        """Returns what the judge said last of a release that is under way, recorded or not."""
        looked = self._looks.get(release)
        return looked.verdict if looked else None

    def _heard(self, release: Release, now: float) -> Verdict | None:
        """Returns the verdict; None when the judge can't give one: the rest goes on without it."""
        try:
            return self._judge(release, now)
        except Exception as error:  # noqa: BLE001 - replicas and people are looked at all the same
            self.trouble[release.route] = f"the judge: {type(error).__name__}: {error}"
            _log.exception("%s can't be judged", release.id)
            return None

    def _judge(self, release: Release, now: float) -> Verdict | None:
        plan, step = release.plan, release.plan.steps[release.step]
        under_way = release.phase in ("shifting", "baking") and release.evidence_from is not None
        asked = plan.checks or plan.slo is not None or judged(release)
        if not under_way or not asked:
            return None
        looked = self._looks.get(release.id)
        fresh = looked is not None and looked.step == release.step
        if looked is not None and fresh and (now < looked.next_at or self._judged_s > JUDGE_S):
            return looked.verdict
        look = Look(
            now=now,
            need=step.need,
            min_requests=step.min_requests,
            since_revision=release.since_revision,
        )
        verdict = self._tools.docket.look(self.brief(release), look)
        took = max(self._tools.clock.now() - now, 0.0)
        self._judged_s += took
        next_at = now + max(LOOK_EVERY_S, LOOK_SHARE * took)
        self._looks[release.id] = _Look(step=release.step, verdict=verdict, next_at=next_at)
        return verdict

    def _scene(self, route: Route, now: float) -> Scene:
        if self._sight is None:
            self._sight = _see(self._ports)
        known = self._sight.routes.get(route.name)
        pools = self._sight.pools.get(route.name, {})
        return Scene(
            now=now,
            replicas=tuple(self._sight.replicas.get(route.name, ())),
            split=dict(known.weights) if known else {},
            revision=known.revision if known else 0,
            pools=pools,
            drain_until=_drain_until(route),
            variant=known.variant if known else (),
            mirror=known.mirror if known else {},
            scored=known.scored if known else 0,
        )

    def _converge(self, route: Route, lease: Lease) -> bool:
        """Acts; says whether the world was changed by more than a wish.

        A version whose action failed is left alone until the next look, the others are not.
        """
        now = self._tools.clock.now()
        moved = False
        failed: set[str | None] = set()
        self.trouble.pop(route.name, None)
        scene = self._scene(route, now)
        for action in converge(desired(route, now), scene):
            if concerns(action) in failed or (failed and isinstance(action, SetWeights)):
                continue
            if _repeats(action, scene) and self._knows(action, now):
                continue
            try:
                act(action, self._ports)
                if not _repeats(action, scene):
                    self._sight = None  # the world is another one now
            except (TemporaryError, ConflictError) as error:
                self.trouble[route.name] = error.message
                _log.warning("%s: %s", describe(action), error.message)
                failed.add(concerns(action))
            except PermanentError as error:
                self._note_failure(route, action, error, lease)
                failed.add(concerns(action))
            else:
                moved = moved or not isinstance(action, SetReplicas)
        return moved

    def _knows(self, action: Action, now: float) -> bool:
        """Says whether the fleet was told this very wish a moment ago; remembers it if not."""
        if not isinstance(action, SetReplicas):
            return False
        key = (action.spec.route, action.spec.version)
        told = self._told.get(key)
        if told is not None and told[0] == action.spec and 0 <= now - told[1] < REPEAT_S:
            return True
        self._told[key] = (action.spec, now)
        return False

    def _note_failure(
        self, route: Route, action: Action, error: PermanentError, lease: Lease
    ) -> None:
        self.trouble[route.name] = error.message
        release = self.book().routes[route.name].active
        if release is None or release.failures >= GIVE_UP_FAILURES:
            return
        if concerns(action) not in (None, release.plan.candidate.digest):
            return  # not this release's fault
        failed = ev.ActionFailed(
            release=release.id, action=describe(action), reason=error.message, permanent=True
        )
        self._append(release, (failed,), lease)


def _repeats(action: Action, scene: Scene) -> bool:
    """Says whether `action` only repeats a wish that is met already."""
    if not isinstance(action, SetReplicas):
        return False
    have = sum(replica.version == action.spec.version for replica in scene.replicas)
    return have == action.spec.count


def _see(ports: Ports) -> _Sight:
    """Returns everything that gateway and fleet show, by route."""
    view = ports.gateway.view()
    replicas: dict[str, list[Replica]] = defaultdict(list)
    for replica in ports.fleet.replicas():
        replicas[replica.route].append(replica)
    pools: dict[str, dict[str, PoolView]] = defaultdict(dict)
    for (route, version), pool in view.pools.items():
        pools[route][version] = pool
    return _Sight(routes=view.routes, pools=pools, replicas=replicas)


def _kept(route: Route, now: float) -> frozenset[str]:
    """Returns the versions that run whatever becomes of the release under way."""
    kept = {route.serving.version.digest} if route.serving else set()
    if route.previous is not None and now < route.keep_until:
        kept.add(route.previous.version.digest)
    return frozenset(kept)


def _drain_until(route: Route) -> float:
    """Returns when a version without traffic may be removed although requests are in flight."""
    if route.active is not None:
        return route.active.entered_at + route.active.plan.serving.drain_s
    drain = route.previous.serving.drain_s if route.previous else 0.0
    return route.keep_until + drain

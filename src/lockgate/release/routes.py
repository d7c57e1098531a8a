"""The state of a route over all its releases, and what should be running now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lockgate.core import events as ev
from lockgate.core.traffic import WHOLE, twin_of
from lockgate.ledger.api import Recorded
from lockgate.release.plan import Plan, Serving
from lockgate.release.state import Release, evolve, start


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A version that a route served: the release that brought it, how it runs, since when.

    `alias` is the name that followed it there, and follows a rollback.
    """

    release: str
    version: ev.VersionId
    serving: Serving
    since: float
    alias: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Why, by whom and until when (seconds since the epoch) nothing goes forward on a route."""

    reason: str
    by: str
    until: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route: its line of served versions (the last one serves), and the release under way.

    `previous` stays ready until `keep_until` (seconds since the epoch), so that going back is one
    push. A rollback shortens `line`: what it left can only come back by a release. `waiting` is the
    release that superseded the active one and follows it.
    """

    name: str
    model: str
    line: tuple[Served, ...] = ()
    active: Release | None = None
    previous: Served | None = None
    keep_until: float = 0.0
    waiting: Release | None = None
    block: Block | None = None

    def blocked(self, now: float) -> str | None:
        """Returns why nothing may go forward at `now`; None when it may."""
        block = self.block
        if block is None or (block.until is not None and now >= block.until):
            return None
        return f"{block.reason} (by {block.by})"

    @property
    def serving(self) -> Served | None:
        """What serves now."""
        return self.line[-1] if self.line else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """Every release and every route, as the ledger tells them up to `position`."""

    releases: Mapping[str, Release] = field(default_factory=dict)
    routes: Mapping[str, Route] = field(default_factory=dict)
    position: int = 0


def read(book: Book, recorded: Recorded) -> Book:
    """Returns the book after one more event of a `release/…` stream; others change nothing."""
    event = recorded.event
    if isinstance(event, ev.RouteBlocked | ev.RouteUnblocked):
        return _blocked(book, event, recorded)
    identity = str(getattr(event, "release", ""))
    if isinstance(event, ev.ReleaseOpened):
        release = start(recorded)
    elif identity in book.releases:
        release = evolve(book.releases[identity], recorded)
    else:
        return replace(book, position=recorded.position)
    known = book.routes.get(release.route, Route(name=release.route, model=release.plan.model))
    route = _after(known, release, recorded)
    return Book(
        releases={**book.releases, release.id: release},
        routes={**book.routes, route.name: route},
        position=recorded.position,
    )


def _blocked(book: Book, event: ev.RouteBlocked | ev.RouteUnblocked, recorded: Recorded) -> Book:
    known = book.routes.get(event.route)
    if known is None:
        return replace(book, position=recorded.position)
    block = None
    if isinstance(event, ev.RouteBlocked):
        block = Block(reason=event.reason, by=recorded.actor, until=event.until)
    changed = {**book.routes, known.name: replace(known, block=block)}
    return replace(book, routes=changed, position=recorded.position)


def _after(route: Route, release: Release, recorded: Recorded) -> Route:
    event = recorded.event
    if isinstance(event, ev.ReleasePromoted):
        return _promoted(route, release, recorded.at)
    if isinstance(event, ev.VersionRetired):
        gone = route.previous and route.previous.version.digest == event.version.digest
        return replace(route, previous=None) if gone else route
    if isinstance(event, ev.ReleaseOpened):
        serves = route.serving.version.digest if route.serving else None
        planned_for = event.baseline.digest if event.baseline else None
        follows = route.active is not None and event.supersedes == route.active.id
        if follows and serves == planned_for:
            return replace(route, waiting=release)
        if route.active is not None or serves != planned_for:
            return route  # somebody else moved first: this one never gets the route
    if route.waiting is not None and route.waiting.id == release.id:
        return replace(route, waiting=None if release.final else release)
    if route.active is not None and route.active.id != release.id:
        return route
    if release.final:
        return replace(route, active=route.waiting, waiting=None)
    return replace(route, active=release)


def _promoted(route: Route, release: Release, at: float) -> Route:
    plan = release.plan
    served = Served(
        release=release.id,
        version=plan.candidate,
        serving=plan.serving,
        since=at,
        alias=plan.alias,
    )
    line = route.line
    if plan.intent == "rollback":
        served_before = [i for i, s in enumerate(line[:-1]) if s.version == plan.candidate]
        line = line[: max(served_before, default=0)]
    return replace(
        route,
        line=(*line, served),
        active=None,
        waiting=None,
        previous=route.serving,
        keep_until=at + plan.keep_previous_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One version that should run on a route, and how."""

    version: ev.VersionId
    serving: Serving


@dataclass(frozen=True, slots=True, kw_only=True)
class Desired:
    """What should be true of a route now: versions that run, and the split.

    `split` is empty while nothing serves. `baseline` is the version that comes first in the split.
    `limit`: replicas that may exist at once. `retreat`: the version that traffic leaves only as
    fast as the baseline's replicas come back. `variant`: a header, a value and the version that
    its senders get. `mirror`: the version that gets copies, and of how many in 10,000 requests.
    """

    route: str
    model: str
    run: tuple[Wanted, ...] = ()
    split: Mapping[str, int] = field(default_factory=dict)
    baseline: str | None = None
    sticky_header: str | None = None
    drain_s: float = 60.0
    limit: int | None = None
    retreat: str | None = None
    variant: tuple[str, ...] = ()
    mirror: Mapping[str, int] = field(default_factory=dict)
    scored: int = 0


def desired(route: Route, now: float) -> Desired:
    """Returns what should be true of `route` at `now`."""
    serving, release = route.serving, route.active
    run = {serving.version.digest: _wanted(serving)} if serving else {}
    split = {serving.version.digest: WHOLE} if serving else {}
    if route.previous is not None and now < route.keep_until:
        run.setdefault(route.previous.version.digest, _wanted(route.previous))
    found = Desired(
        route=route.name,
        model=route.model,
        run=tuple(run.values()),
        split=split,
        baseline=serving.version.digest if serving else None,
        sticky_header=serving.serving.sticky_header if serving else None,
    )
    if release is None or release.final:
        return found
    if release.phase in ("deploying", "shifting", "baking"):
        return _under_way(found, release, run)
    if release.phase == "reverting" and release.plan.limit is not None:
        run[release.plan.candidate.digest] = _candidate(release.plan, release.plan.serving.replicas)
        return replace(found, run=tuple(run.values()), limit=release.plan.limit,
                       retreat=release.plan.candidate.digest)  # fmt: skip
    return found


def _under_way(found: Desired, release: Release, run: dict[str, Wanted]) -> Desired:
    """Returns what a release that goes forward wants: its step's split and replicas."""
    plan, step = release.plan, release.step
    mine, theirs = plan.replicas(step)
    before = plan.replicas(step - 1) if step else (0, plan.serving.replicas)
    if release.phase != "baking":  # replicas before traffic: nothing goes before the split is there
        mine, theirs = max(mine, before[0]), before[1]
    run[plan.candidate.digest] = _candidate(plan, mine)
    if plan.baseline is not None and plan.baseline.digest in run and plan.limit is not None:
        old = run[plan.baseline.digest]
        run[plan.baseline.digest] = replace(old, serving=replace(old.serving, replicas=theirs))
    moving = release.phase != "deploying"
    serves = run.get(plan.baseline.digest) if plan.baseline else None
    if plan.twin_at(step) and serves is not None:
        run[twin_of(serves.version.digest)] = Wanted(
            version=replace(serves.version, digest=twin_of(serves.version.digest)),
            serving=replace(serves.serving, replicas=plan.serving.replicas),
        )
    mirrored = plan.steps[step].mirror if moving else 0
    weights = plan.weights(step) if moving else found.split
    return replace(
        found,
        run=tuple(wanted for wanted in run.values() if wanted.serving.replicas),
        split=weights,
        sticky_header=plan.serving.sticky_header or found.sticky_header,
        limit=plan.limit,
        variant=(*plan.variant, plan.candidate.digest) if plan.variant and moving else (),
        mirror={plan.candidate.digest: mirrored} if mirrored else {},
        scored=plan.score_share if moving and plan.candidate.digest in plan.compared(step) else 0,
    )


def _candidate(plan: Plan, replicas: int) -> Wanted:
    return Wanted(version=plan.candidate, serving=replace(plan.serving, replicas=replicas))


def _wanted(served: Served) -> Wanted:
    return Wanted(version=served.version, serving=served.serving)


def rollback_target(route: Route) -> Served | None:
    """Returns the version that served before the one that serves now, if any."""
    return route.line[-2] if len(route.line) > 1 else None


def next_id(book: Book) -> str:
    """Returns the id that the next release gets: `rel-1`, `rel-2`, …."""
    numbers = [int(name.removeprefix("rel-")) for name in book.releases]
    return f"rel-{max(numbers, default=0) + 1}"

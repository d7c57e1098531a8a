"""The state of a route over all its releases, and what should be running now. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lockgate.core import events as ev
from lockgate.core.traffic import WHOLE
from lockgate.ledger.api import Recorded
from lockgate.release.plan import Serving
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
class Route:
    """A route: its line of served versions (the last one serves), and the release under way.

    `previous` stays ready until `keep_until` (seconds since the epoch), so that going back is one
    push. A rollback shortens `line`: what it left can only come back by a release.
    """

    name: str
    model: str
    line: tuple[Served, ...] = ()
    active: Release | None = None
    previous: Served | None = None
    keep_until: float = 0.0

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
        if route.active is not None or serves != planned_for:
            return route  # somebody else moved first: this one never gets the route
    ours = route.active is None or route.active.id == release.id
    if not ours:
        return route
    return replace(route, active=None if release.final else release)


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
    """

    route: str
    model: str
    run: tuple[Wanted, ...] = ()
    split: Mapping[str, int] = field(default_factory=dict)
    baseline: str | None = None
    sticky_header: str | None = None
    drain_s: float = 60.0


def desired(route: Route, now: float) -> Desired:
    """Returns what should be true of `route` at `now`."""
    serving, release = route.serving, route.active
    run = {serving.version.digest: _wanted(serving)} if serving else {}
    split = {serving.version.digest: WHOLE} if serving else {}
    sticky = serving.serving.sticky_header if serving else None
    if route.previous is not None and now < route.keep_until:
        run.setdefault(route.previous.version.digest, _wanted(route.previous))
    if release is not None and release.phase in ("deploying", "shifting", "baking"):
        plan = release.plan
        run[plan.candidate.digest] = Wanted(version=plan.candidate, serving=plan.serving)
        sticky = plan.serving.sticky_header or sticky
        if release.phase != "deploying":
            split = plan.weights(release.step)
    return Desired(
        route=route.name,
        model=route.model,
        run=tuple(run.values()),
        split=split,
        baseline=serving.version.digest if serving else None,
        sticky_header=sticky,
    )


def _wanted(served: Served) -> Wanted:
    return Wanted(version=served.version, serving=served.serving)


def rollback_target(route: Route) -> Served | None:
    """Returns the version that served before the one that serves now, if any."""
    return route.line[-2] if len(route.line) > 1 else None


def next_id(book: Book) -> str:
    """Returns the id that the next release gets: `rel-1`, `rel-2`, …."""
    numbers = [int(name.removeprefix("rel-")) for name in book.releases]
    return f"rel-{max(numbers, default=0) + 1}"

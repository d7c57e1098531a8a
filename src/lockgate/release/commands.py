"""What people may ask of releases: a command checks and appends events; the loop does the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lockgate.core import events as ev
from lockgate.core.clock import Clock
from lockgate.core.codec import to_json
from lockgate.core.errors import ConflictError, NotFoundError, UsageError
from lockgate.core.names import check_model, check_target, route_name
from lockgate.ledger.api import Ledger
from lockgate.registry.service import Registry
from lockgate.release.plan import Plan
from lockgate.release.planner import make_plan, rollback_plan
from lockgate.release.routes import Book, Route, Served, next_id, rollback_target
from lockgate.release.spec import ReleaseSpec
from lockgate.release.state import Release

_TRIES = 8
_KEEP_AFTER_ROLLBACK_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """The outcome of asking for a release: its id, or None when the version serves already."""

    release: str | None
    plan: Plan


class Commands:
    """The verbs on releases: plan, release, rollback, approve, hold, resume, promote."""

    def __init__(
        self, ledger: Ledger, registry: Registry, book: Callable[[], Book], clock: Clock
    ) -> None:
        self._ledger = ledger
        self._registry = registry
        self._book = book
        self._clock = clock

    def plan(self, spec: ReleaseSpec) -> Plan:
        """Returns what the release of `spec` would do now; raises NotFoundError for no version."""
        version = self._registry.version(spec.model, spec.version)
        name = route_name(spec.model, spec.to)
        route = self._book().routes.get(name, Route(name=name, model=spec.model))
        candidate = ev.VersionId(number=version.number, digest=version.digest)
        return make_plan(spec, route, candidate, bytes_to_move=version.published.bytes_total)

    def open(
        self, spec: ReleaseSpec, *, actor: str, reason: str = "", plan_digest: str | None = None,
        supersede: bool = False,
    ) -> Opened:  # fmt: skip
        """Opens the release of `spec`; the version that serves already needs none.

        With `supersede` one that is under way on the route turns back, and this one follows it.
        Raises ConflictError when another release is under way and may not be superseded, or when
        the plan is no longer the one called `plan_digest`.
        """

        def fresh() -> Plan:
            plan = self.plan(spec)
            if not supersede:
                self._check_free(plan.route)
            if plan_digest is not None and plan.digest != plan_digest:
                raise ConflictError(
                    "the plan has changed since it was made: what serves now is another version, "
                    "or the spec was edited",
                    hint="make a new plan and read it: lockgate plan",
                )
            return plan

        return self._open(fresh, actor, reason, supersede=supersede)

    def _supersede(self, plan: Plan, actor: str) -> str | None:
        """Turns back what is under way on the plan's route; returns its id, None for nothing."""
        found = self._book().routes.get(plan.route)
        if found is None or found.active is None:
            return None
        if found.waiting is not None:
            why = f"superseded by {plan.candidate}"
            self._write(
                found.waiting.id, actor,
                lambda release: [ev.ReleaseFailed(release=release.id, reason=why)],
            )  # fmt: skip
        self._turn_back(found.active.id, actor, f"superseded by {plan.candidate}", "superseded")
        return found.active.id

    def _check_free(self, route: str) -> None:
        found = self._book().routes.get(route)
        if found is not None and found.active is not None:
            active = found.active
            raise ConflictError(
                f"{active.id} ({active.plan.candidate}, {active.phase}) is under way on {route}",
                hint=f"lockgate watch {active.id} · lockgate rollback {found.model} --reason …",
            )

    def _open(
        self, fresh: Callable[[], Plan], actor: str, reason: str, *, supersede: bool = False
    ) -> Opened:
        """Opens what `fresh` plans; plans anew whenever somebody else wrote first."""
        for _ in range(_TRIES):
            name = next_id(self._book())
            plan = fresh()
            if not plan.changes:
                return Opened(release=None, plan=plan)
            ahead = self._supersede(plan, actor) if supersede else None
            opened = ev.ReleaseOpened(
                supersedes=ahead,
                release=name,
                model=plan.model,
                target=plan.target,
                route=plan.route,
                candidate=plan.candidate,
                baseline=plan.baseline,
                plan=to_json(plan),
                plan_digest=plan.digest,
                intent=plan.intent,
                reason=reason,
            )
            try:
                now = self._clock.now()
                self._ledger.append(f"release/{name}", 0, [opened], actor=actor, at=now)
            except ConflictError:
                continue
            return Opened(release=name, plan=plan)
        raise ConflictError("too many releases are opened at this moment; try again")

    def rollback(
        self, model: str, target: str, *, actor: str, reason: str, to: str | None = None
    ) -> str:
        """Takes traffic off what was released last; returns the id of the release that does it.

        A release under way turns back. Otherwise the version that served before (or `to`) comes
        back by a release of its own. Raises ConflictError when there is nothing to go back to.
        """
        check_target(target)
        waiting = self._route(model, target).waiting
        if waiting is not None:
            why = f"stopped by {actor}: {reason}"
            self._write(waiting.id, actor, lambda r: [ev.ReleaseFailed(release=r.id, reason=why)])
        active = self._route(model, target).active
        if active is not None and to is None:
            if active.plan.intent == "rollback":
                return active.id  # it goes back already
            return self._turn_back(active.id, actor, reason)

        def fresh() -> Plan:
            self._check_free(route_name(model, target))
            route = self._route(model, target)
            serving, goal = route.serving, self._goal(route, to)
            if serving is None or goal is None:
                raise ConflictError(
                    f"nothing served on {route.name} before what serves now",
                    hint="release another version instead: lockgate release",
                )
            return rollback_plan(route, serving, goal, keep_previous_s=_KEEP_AFTER_ROLLBACK_S)

        opened = self._open(fresh, actor, reason)
        if opened.release is None:
            raise ConflictError(f"{opened.plan.candidate} serves already")
        return opened.release

    def _route(self, model: str, target: str) -> Route:
        name = route_name(check_model(model), target)
        route = self._book().routes.get(name)
        if route is None:
            raise NotFoundError(f"nothing was ever released to {name}")
        return route

    def _goal(self, route: Route, to: str | None) -> Served | None:
        if to is None:
            return rollback_target(route)
        version = self._registry.version(route.model, to)
        for served in reversed(route.line[:-1]):
            if served.version.digest == version.digest:
                return served
        raise UsageError(
            f"{to} is not among the versions that served on {route.name} before this one",
            hint="release it instead: lockgate release",
        )

    def _turn_back(
        self, release: str, actor: str, reason: str, cause: ev.RevertCause = "person"
    ) -> str:
        def events(found: Release) -> list[ev.ReleaseEvent]:
            if found.phase == "reverting":
                return []
            if found.plan.baseline is None:
                if found.touched_traffic:
                    raise ConflictError(f"{found.id} is the first release: nothing served before")
                return [ev.ReleaseFailed(release=release, reason=f"stopped by {actor}: {reason}")]
            return [ev.RollbackStarted(release=release, cause=cause, reason=reason)]

        return self._write(release, actor, events)

    def approve(self, release: str, *, actor: str, reason: str) -> str:
        """Gives `actor`'s word for the next step that needs one, also before it is asked for.

        The word expires with the plan's `approval_expires_s`. Raises ConflictError when no step
        that is still to come needs one.
        """

        def events(found: Release) -> list[ev.ReleaseEvent]:
            now = self._clock.now()
            ahead = found.step if found.phase in ("admitting", "deploying") else found.step + 1
            steps = range(ahead, len(found.plan.steps))
            lacking = [step for step in steps if found.plan.steps[step].approval]
            if not lacking:
                raise ConflictError(f"{release} does not wait for an approval")
            step, alive = lacking[0], now - found.plan.approval_expires_s
            if any(w.step == step and w.by == actor and w.at >= alive for w in found.approvals):
                return []
            return [ev.StepApproved(release=release, step=step, reason=reason)]

        return self._write(release, actor, events)

    def block(
        self, model: str, target: str, *, actor: str, reason: str, until: float | None = None
    ) -> str:
        """Lets nothing go forward on a route until `until` (None: until `unblock`).

        Raises NotFoundError for a route that never was.
        """
        route = self._route(model, target)
        event = ev.RouteBlocked(route=route.name, reason=reason, until=until)
        return self._append_route(route.name, event, actor)

    def unblock(self, model: str, target: str, *, actor: str, reason: str) -> str:
        """Ends a block; raises ConflictError when there is none."""
        route = self._route(model, target)
        if route.blocked(self._clock.now()) is None:
            raise ConflictError(f"{route.name} is not blocked")
        event = ev.RouteUnblocked(route=route.name, reason=reason)
        return self._append_route(route.name, event, actor)

    def _append_route(self, route: str, event: ev.RouteEvent, actor: str) -> str:
        stream = f"route/{route}"
        for _ in range(_TRIES):
            known = len(self._ledger.read(stream=stream, limit=100_000))
            try:
                self._ledger.append(stream, known, [event], actor=actor, at=self._clock.now())
            except ConflictError:
                continue
            return route
        raise ConflictError(f"{route} is changing too fast; try again")

    def hold(self, release: str, *, actor: str, reason: str) -> str:
        """Keeps the release where it is until somebody resumes it."""

        def events(found: Release) -> list[ev.ReleaseEvent]:
            if found.held is not None and found.held.because == "person":
                return []
            return [
                ev.ReleaseHeld(release=release, step=found.step, because="person", reason=reason)
            ]

        return self._write(release, actor, events)

    def resume(self, release: str, *, actor: str, reason: str) -> str:
        """Ends a hold; raises ConflictError when nobody holds it."""

        def events(found: Release) -> list[ev.ReleaseEvent]:
            if found.held is None:
                raise ConflictError(f"{release} is not held")
            if found.held.because in ("approval", "window", "blocked"):
                hints = {"approval": f"lockgate approve {release} --reason …",
                         "blocked": f"lockgate unblock {found.plan.model} --reason …"}  # fmt: skip
                raise ConflictError(
                    f"{release} waits: {found.held.reason}",
                    hint=hints.get(found.held.because, "it goes on by itself"),
                )
            return [ev.ReleaseResumed(release=release, step=found.step, reason=reason)]

        return self._write(release, actor, events)

    def promote(self, release: str, *, actor: str, reason: str) -> str:
        """Skips what is left of the steps; a failing verdict still turns the release back."""

        def events(found: Release) -> list[ev.ReleaseEvent]:
            if found.promote_now:
                return []
            return [ev.PromotionRequested(release=release, reason=reason)]

        return self._write(release, actor, events)

    def _write(
        self, release: str, actor: str, events: Callable[[Release], list[ev.ReleaseEvent]]
    ) -> str:
        for _ in range(_TRIES):
            found = self._book().releases.get(release)
            if found is None:
                raise NotFoundError(f"there is no release {release}")
            if found.final:
                raise ConflictError(f"{release} has ended: {found.phase}")
            wanted = events(found)
            if not wanted:
                return release
            try:
                now = self._clock.now()
                self._ledger.append(f"release/{release}", found.events, wanted, actor=actor, at=now)
            except ConflictError:
                continue
            return release
        raise ConflictError(f"{release} is changing too fast; try again")

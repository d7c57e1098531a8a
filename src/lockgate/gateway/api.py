"""The port of the gateway: routes, pools and weights, all absolute."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lockgate.core.errors import ConflictError, PermanentError
from lockgate.core.traffic import Endpoint, Sample, Weights, check_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """An address for callers and the share of each version.

    `name` is `owner/model@target`; `model` is what callers put in the path or the body.
    `sticky_header`: requests with the same value of this header stay with one version.
    `baseline` comes first in the split, so that a growing candidate moves nobody back. `variant`
    is a header, a value and a version: who sends that gets this version, whatever the split.
    `mirror`: the version that gets copies of requests, and of how many in 10,000; nobody waits for
    their answers. `scored`: of how many in 10,000 requests a copy goes to who scores answers.
    """

    name: str
    model: str
    weights: Weights
    baseline: str | None = None
    sticky_header: str | None = None
    variant: tuple[str, ...] = ()
    mirror: Mapping[str, int] = field(default_factory=dict)
    scored: int = 0

    @property
    def reached(self) -> frozenset[str]:
        """The versions that requests go to, copies included."""
        weighted = {version for version, weight in self.weights.items() if weight}
        return frozenset({*weighted, *self.mirror, *self.variant[2:]})


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """The endpoints of one version on one route as every proxy has acknowledged them.

    `in_flight` counts requests that a proxy has sent to this pool and that are not done; 1 when
    no proxy can say, so that nobody takes silence for idleness.
    """

    endpoints: tuple[Endpoint, ...]
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteView:
    """A route as every proxy has acknowledged it; `revision` grows with each change."""

    weights: Weights
    revision: int
    variant: tuple[str, ...] = ()
    mirror: Mapping[str, int] = field(default_factory=dict)
    scored: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayView:
    """What is in force now. `pools` is keyed by (route, version); `address` is for callers."""

    address: str
    routes: Mapping[str, RouteView] = field(default_factory=dict)
    pools: Mapping[tuple[str, str], PoolView] = field(default_factory=dict)
    proxies: int = 0


class Gateway(Protocol):
    """Sends requests to replicas by weight.

    Each setter returns when every proxy has acknowledged the new state, and is a no-op when that
    state is already in force. A setter raises TemporaryError when a proxy did not answer in time,
    PermanentError when one refused (then nothing has changed).
    """

    def set_pool(self, route: str, version: str, endpoints: Sequence[Endpoint]) -> None:
        """Makes exactly `endpoints` the pool of `version` on `route`."""
        ...

    def set_route(self, spec: RouteSpec) -> int:
        """Makes `spec.weights` the split of the route; returns the revision now in force.

        Raises PermanentError when a version with weight has no pool.
        """
        ...

    def remove_pool(self, route: str, version: str) -> None:
        """Removes the pool of `version`; raises ConflictError while the route gives it weight."""
        ...

    def view(self) -> GatewayView:
        """Returns what every proxy has acknowledged."""
        ...

    def close(self, *, stop: bool) -> None:
        """Lets go; with `stop`, drains and stops the proxy first."""
        ...


def route_view(spec: RouteSpec, revision: int) -> RouteView:
    """Returns `spec` as what is in force at `revision`."""
    return RouteView(
        weights=dict(spec.weights),
        revision=revision,
        variant=spec.variant,
        mirror=dict(spec.mirror),
        scored=spec.scored,
    )


SampleSink = Callable[[Sequence[Sample]], None]
"""Where a gateway delivers one sample for every finished request."""


def check_route(
    spec: RouteSpec, pools: Container[tuple[str, str]], routes: Mapping[str, RouteSpec]
) -> None:
    """Raises when `spec` can't be routed; every adapter asks this before it acts.

    UsageError for weights that do not add up; PermanentError for a version with weight and no
    pool, or when another route already answers to the same model.
    """
    check_weights(spec.weights)
    bare = [version for version in sorted(spec.reached) if (spec.name, version) not in pools]
    if bare:
        raise PermanentError(
            f"the route {spec.name} gives weight to {', '.join(bare)}, which has no pool",
            hint="call set_pool for the version first, then give it weight",
        )
    other = [old.name for old in routes.values() if old.model == spec.model != ""]
    if any(name != spec.name for name in other):
        raise PermanentError(
            f"the model {spec.model} is already served by the route {other[0]}",
            hint="one gateway serves a model on one route; use another gateway per target",
        )


def check_removal(route: str, version: str, routes: Mapping[str, RouteSpec]) -> None:
    """Raises ConflictError while `route` gives `version` weight."""
    spec = routes.get(route)
    if spec and version in spec.reached:
        raise ConflictError(
            f"the route {route} still gives {version} a weight of {spec.weights.get(version, 0)}",
            hint="shift its weight to another version first, then remove the pool",
        )

"""What to do in the world so that it becomes what is desired, in the one safe order. Pure.

    replicas → ready and warm → cluster and endpoints → weights
    weights off → no request in flight → endpoints and cluster → process

Every action says an absolute state; doing it twice is doing it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lockgate.core.traffic import Endpoint
from lockgate.fleet.api import Replica, ReplicaSpec
from lockgate.gateway.api import PoolView, RouteSpec
from lockgate.release.decide import same_split
from lockgate.release.routes import Desired, Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReplicas:
    """Tell the fleet how many replicas of a version a route shall have."""

    spec: ReplicaSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SetPool:
    """Tell the gateway which endpoints a version has."""

    route: str
    version: str
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetWeights:
    """Tell the gateway the split."""

    spec: RouteSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePool:
    """Tell the gateway to forget a version."""

    route: str
    version: str


Action = SetReplicas | SetPool | SetWeights | RemovePool


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One route as fleet and gateway show it: replicas, split (its revision) and pools by version.

    `drain_until`: seconds since the epoch after which a version without traffic is removed even
    with requests in flight (its process then drains on its own).
    """

    now: float
    replicas: tuple[Replica, ...] = ()
    split: Mapping[str, int] = field(default_factory=dict)
    revision: int = 0
    pools: Mapping[str, PoolView] = field(default_factory=dict)
    drain_until: float = 0.0


def converge(desired: Desired, scene: Scene) -> Iterator[Action]:
    """Yields the actions that are safe now, in order; the rest waits for the next look."""
    for wanted in desired.run:
        yield SetReplicas(spec=_spec(desired, wanted))
    for wanted in desired.run:
        yield from _pool(desired, scene, wanted.version.digest)
    yield from _split(desired, scene)
    running = {wanted.version.digest for wanted in desired.run}
    known = set(scene.pools) | {replica.version for replica in scene.replicas}
    for version in sorted(known - running):
        yield from _remove(desired, scene, version)


def _spec(desired: Desired, wanted: Wanted) -> ReplicaSpec:
    serving = wanted.serving
    return ReplicaSpec(
        route=desired.route,
        version=wanted.version.digest,
        count=serving.replicas,
        runtime=serving.runtime,
        options=serving.options,
        memory_mb=serving.memory_mb,
        start_timeout_s=serving.start_timeout_s,
        drain_s=serving.drain_s,
    )


def _ready(scene: Scene, version: str) -> tuple[Endpoint, ...]:
    found = {
        replica.endpoint
        for replica in scene.replicas
        if replica.version == version and replica.state == "ready" and replica.endpoint
    }
    return tuple(sorted(found))


def _pool(desired: Desired, scene: Scene, version: str) -> Iterator[Action]:
    """Gives the proxies the ready endpoints; never takes the last ones from a known pool."""
    ready = _ready(scene, version)
    known = scene.pools.get(version)
    if ready and (known is None or known.endpoints != ready):
        yield SetPool(route=desired.route, version=version, endpoints=ready)


def _split(desired: Desired, scene: Scene) -> Iterator[Action]:
    if not desired.split or same_split(desired.split, scene.split):
        return
    replicas = {wanted.version.digest: wanted.serving.replicas for wanted in desired.run}
    for version, weight in desired.split.items():
        grows = weight > scene.split.get(version, 0)
        needed = 1 if version == desired.baseline else replicas.get(version, 1)
        if grows and len(_ready(scene, version)) < needed:
            return  # capacity before traffic; going back to the baseline, one replica is enough
    spec = RouteSpec(
        name=desired.route,
        model=desired.model,
        weights=dict(desired.split),
        baseline=desired.baseline,
        sticky_header=desired.sticky_header,
    )
    yield SetWeights(spec=spec)


def _remove(desired: Desired, scene: Scene, version: str) -> Iterator[Action]:
    if scene.split.get(version, 0):
        return  # traffic first
    pool = scene.pools.get(version)
    if pool is not None:
        if pool.in_flight == 0 or scene.now >= scene.drain_until:
            yield RemovePool(route=desired.route, version=version)
        return
    if any(replica.version == version for replica in scene.replicas):
        yield SetReplicas(spec=ReplicaSpec(route=desired.route, version=version, count=0))

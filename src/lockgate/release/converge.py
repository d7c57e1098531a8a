"""What to do in the world so that it becomes what is desired, in the one safe order. Pure.

    replicas → ready and warm → cluster and endpoints → weights
    weights off → no request in flight → endpoints and cluster → process

Every action says an absolute state; doing it twice is doing it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lockgate.core.traffic import WHOLE, Endpoint
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
    """Yields the actions that are safe now, in order; the rest waits for the next look.

    Going back comes before everything else: it needs nothing but a baseline that can be reached.
    """
    going_back = _goes_back(desired, scene)
    if going_back:
        yield from _split(desired, scene)
    for wanted in desired.run:
        yield SetReplicas(spec=_spec(desired, wanted))
    for wanted in desired.run:
        yield from _pool(desired, scene, wanted.version.digest)
    if not going_back:
        yield from _split(desired, scene)
    running = {wanted.version.digest for wanted in desired.run}
    known = set(scene.pools) | {replica.version for replica in scene.replicas}
    for version in sorted(known - running):
        yield from _remove(desired, scene, version)


def concerns(action: Action) -> str | None:
    """Returns the version that `action` is about; None for a split."""
    match action:
        case SetReplicas(spec=spec):
            return spec.version
        case SetPool(version=version) | RemovePool(version=version):
            return version
    return None


def _goes_back(desired: Desired, scene: Scene) -> bool:
    """Says whether traffic only moves to the baseline, and the proxies can reach that already."""
    grows = {v for v, w in desired.split.items() if w > scene.split.get(v, 0)}
    return bool(scene.split) and grows == {desired.baseline} and desired.baseline in scene.pools


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
    split = _reachable(desired, scene)
    if not split or same_split(split, scene.split):
        return
    spec = RouteSpec(
        name=desired.route,
        model=desired.model,
        weights=dict(split),
        baseline=desired.baseline,
        sticky_header=desired.sticky_header,
    )
    yield SetWeights(spec=spec)


def _reachable(desired: Desired, scene: Scene) -> Mapping[str, int]:
    """Returns the desired split if there is capacity for it, else nothing.

    Capacity before traffic: a version whose share grows has all its replicas ready; for the
    baseline one is enough. A route that lost its split altogether falls back to the baseline.
    """
    replicas = {wanted.version.digest: wanted.serving.replicas for wanted in desired.run}
    for version, weight in desired.split.items():
        needed = 1 if version == desired.baseline else replicas.get(version, 1)
        if weight > scene.split.get(version, 0) and len(_ready(scene, version)) < needed:
            alone = desired.baseline
            if not scene.split and alone is not None and _ready(scene, alone):
                return {alone: WHOLE}
            return {}
    return desired.split


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

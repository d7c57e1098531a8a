"""What to do in the world so that it becomes what is desired, in the one safe order. Pure.

    replicas → ready and warm → cluster and endpoints → weights
    weights off → no request in flight → endpoints and cluster → process

Every action says an absolute state; doing it twice is doing it once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

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
    variant: tuple[str, ...] = ()
    mirror: Mapping[str, int] = field(default_factory=dict)
    scored: int = 0


def converge(desired: Desired, scene: Scene) -> Iterator[Action]:
    """Yields the actions that are safe now, in order; the rest waits for the next look.

    Going back comes before everything else: it needs nothing but a baseline that can be reached.
    """
    desired = _paced(desired, scene)
    going_back = _goes_back(desired, scene)
    if going_back:
        yield from _split(desired, scene)
    affordable = _within_limits(desired, scene)
    for wanted in affordable:
        yield SetReplicas(spec=_spec(desired, scene, wanted))
    for wanted in affordable:
        yield from _pool(desired, scene, wanted)
    if not going_back:
        yield from _split(desired, scene)
    running = {wanted.version.digest for wanted in desired.run}
    known = set(scene.pools) | {replica.version for replica in scene.replicas}
    for version in sorted(known - running):
        yield from _remove(desired, scene, version)


def _paced(desired: Desired, scene: Scene) -> Desired:
    """Lets traffic leave `retreat` as fast as the baseline's replicas come back, and no slower.

    Traffic goes by what is ready; where there is no room for the baseline's next replica, one of
    `retreat` makes it. A version that serves nobody loses its share at once.
    """
    leaving, baseline = desired.retreat, desired.baseline
    if leaving is None or baseline is None or desired.limit is None:
        return desired
    whole = next(w.serving.replicas for w in desired.run if w.version.digest == baseline)
    have = Counter(replica.version for replica in scene.replicas)
    ready = len(_ready(scene, baseline, whole))
    stay = min(have[leaving], whole - ready)
    full = desired.limit <= have[baseline] + have[leaving]
    if full and ready == have[baseline] < whole:  # none is on its way
        stay = max(0, min(stay, desired.limit - have[baseline] - 1))
    if not _ready(scene, leaving, whole):
        stay = 0
    back = WHOLE if not stay else WHOLE * ready // (ready + stay)
    back = max(back, scene.split.get(baseline, 0))
    if scene.split.get(leaving, 0) > WHOLE - back:
        stay = have[leaving]  # its share goes first
    run = [_sized(w, stay) if w.version.digest == leaving else w for w in desired.run]
    split = {baseline: back, leaving: WHOLE - back}
    return replace(
        desired,
        run=tuple(wanted for wanted in run if wanted.serving.replicas),
        split={version: weight for version, weight in split.items() if weight},
    )


def _within_limits(desired: Desired, scene: Scene) -> tuple[Wanted, ...]:
    """Returns what may run now: no more replicas than may exist; one counts until it is gone."""
    if desired.limit is None:
        return desired.run
    have = Counter(replica.version for replica in scene.replicas)
    room = desired.limit - sum(have.values())
    run = []
    for wanted in desired.run:
        version = wanted.version.digest
        count = min(wanted.serving.replicas, have[version] + max(room, 0))
        room -= max(0, count - have[version])
        run.append(_sized(wanted, count))
    return tuple(run)


def _sized(wanted: Wanted, count: int) -> Wanted:
    return replace(wanted, serving=replace(wanted.serving, replicas=count))


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
    beside_ends = (scene.mirror and not desired.mirror) or (scene.variant and not desired.variant)
    if beside_ends and desired.baseline in scene.pools:
        return set(desired.split) <= {desired.baseline}
    grows = {v for v, w in desired.split.items() if w > scene.split.get(v, 0)}
    return bool(scene.split) and grows == {desired.baseline} and desired.baseline in scene.pools


def _spec(desired: Desired, scene: Scene, wanted: Wanted) -> ReplicaSpec:
    serving, version = wanted.serving, wanted.version.digest
    return ReplicaSpec(
        route=desired.route,
        version=version,
        count=max(serving.replicas, _still_reached(scene, version)),
        runtime=serving.runtime,
        options=serving.options,
        memory_mb=serving.memory_mb,
        start_timeout_s=serving.start_timeout_s,
        drain_s=serving.drain_s,
    )


def _still_reached(scene: Scene, version: str) -> int:
    """Returns how many replicas must stay because the proxies still send requests to the last."""
    pool = scene.pools.get(version)
    reached = pool.endpoints if pool else ()
    mine = (r for r in scene.replicas if r.version == version and r.endpoint in reached)
    return max((replica.index + 1 for replica in mine), default=0)


def _ready(scene: Scene, version: str, count: int) -> tuple[Endpoint, ...]:
    """Returns where the first `count` replicas of `version` listen, those that are ready."""
    found = {
        replica.endpoint
        for replica in scene.replicas
        if replica.version == version
        and replica.state == "ready"
        and replica.endpoint
        and replica.index < count
    }
    return tuple(sorted(found))


def _pool(desired: Desired, scene: Scene, wanted: Wanted) -> Iterator[Action]:
    """Gives the proxies the ready endpoints; never takes the last ones from a known pool."""
    version = wanted.version.digest
    ready = _ready(scene, version, wanted.serving.replicas)
    known = scene.pools.get(version)
    if ready and (known is None or known.endpoints != ready):
        yield SetPool(route=desired.route, version=version, endpoints=ready)


def _split(desired: Desired, scene: Scene) -> Iterator[Action]:
    split = _reachable(desired, scene)
    whole = split == desired.split
    variant, mirror = (desired.variant, desired.mirror) if whole else ((), {})
    scored = desired.scored if whole else 0
    beside = (variant, dict(mirror), scored) == (scene.variant, dict(scene.mirror), scene.scored)
    if not split or (same_split(split, scene.split) and beside):
        return
    spec = RouteSpec(
        name=desired.route,
        model=desired.model,
        weights=dict(split),
        baseline=desired.baseline,
        sticky_header=desired.sticky_header,
        variant=variant,
        mirror=mirror,
        scored=scored,
    )
    yield SetWeights(spec=spec)


def _reachable(desired: Desired, scene: Scene) -> Mapping[str, int]:
    """Returns the desired split if there is capacity for it, else nothing.

    Capacity before traffic: a version whose share grows has all its replicas ready; for the
    baseline one is enough. A route that lost its split altogether falls back to the baseline.
    """
    replicas = {wanted.version.digest: wanted.serving.replicas for wanted in desired.run}
    for version, weight in desired.split.items():
        needed = 1 if version == desired.baseline else max(replicas.get(version, 1), 1)
        ready = _ready(scene, version, replicas.get(version, needed))
        if weight > scene.split.get(version, 0) and len(ready) < needed:
            alone = desired.baseline
            if not scene.split and alone and _ready(scene, alone, replicas.get(alone, 0)):
                return {alone: WHOLE}
            return {}
    beside = {*desired.mirror, *desired.variant[2:]}
    if any(not _ready(scene, version, replicas.get(version, 0)) for version in beside):
        return {}
    return desired.split


def _remove(desired: Desired, scene: Scene, version: str) -> Iterator[Action]:
    if scene.split.get(version, 0) or version in scene.mirror or version in scene.variant[2:]:
        return  # traffic first
    pool = scene.pools.get(version)
    if pool is not None:
        if pool.in_flight == 0 or scene.now >= scene.drain_until:
            yield RemovePool(route=desired.route, version=version)
        return
    if any(replica.version == version for replica in scene.replicas):
        yield SetReplicas(spec=ReplicaSpec(route=desired.route, version=version, count=0))

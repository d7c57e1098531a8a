"""The order of actions is safe in whatever state the world is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.events import VersionId
from lockgate.core.traffic import Endpoint
from lockgate.fleet.api import Replica
from lockgate.gateway.api import PoolView
from lockgate.release.converge import RemovePool, Scene, SetPool, SetReplicas, SetWeights, converge
from lockgate.release.plan import Serving
from lockgate.release.routes import Desired, Wanted

VERSIONS = ("a", "b", "c")
states = st.sampled_from(["starting", "warming", "ready", "draining", "backoff", "failed"])
weights = (
    st.lists(st.integers(0, 3), min_size=3, max_size=3)
    .filter(any)
    .map(lambda parts: {v: 10_000 * p // sum(parts) for v, p in zip(VERSIONS, parts, strict=True)})
)
replicas = st.lists(
    st.builds(
        Replica,
        name=st.text("xyz", min_size=1, max_size=4),
        route=st.just("r"),
        since=st.just(0.0),
        version=st.sampled_from(VERSIONS),
        state=states,
        endpoint=st.builds(Endpoint, host=st.just("h"), port=st.integers(1, 5)),
    ),
    max_size=6,
).map(tuple)
pools = st.dictionaries(
    st.sampled_from(VERSIONS),
    st.builds(
        PoolView,
        endpoints=st.lists(st.builds(Endpoint, host=st.just("h"), port=st.integers(1, 5)),
                           min_size=1, max_size=2).map(tuple),
        in_flight=st.integers(0, 2),
    ),
)  # fmt: skip
scenes = st.builds(
    Scene, now=st.floats(0, 10), drain_until=st.floats(0, 10), replicas=replicas,
    split=weights | st.just({}), pools=pools,
)  # fmt: skip


@st.composite
def wishes(draw: st.DrawFn) -> Desired:
    split = draw(weights | st.just({}))
    run = {v for v, w in split.items() if w} | draw(st.sets(st.sampled_from(VERSIONS)))
    return Desired(
        route="r", model="m", split=split, baseline=draw(st.sampled_from(VERSIONS)),
        run=tuple(
            Wanted(version=VersionId(number=1, digest=v),
                   serving=Serving(replicas=draw(st.integers(1, 3))))
            for v in sorted(run)
        ),
    )  # fmt: skip


@given(wish=wishes(), scene=scenes)
def test_every_action_is_safe(wish: Desired, scene: Scene) -> None:
    run = {w.version.digest: w.serving.replicas for w in wish.run}
    ready = {
        v: sum(r.version == v and r.state == "ready" for r in scene.replicas) for v in VERSIONS
    }
    seen_weights = False
    grows = {v for v, w in wish.split.items() if w > scene.split.get(v, 0)}
    going_back = grows <= {wish.baseline}
    reachable = set(scene.pools)
    for action in converge(wish, scene):
        match action:
            case SetPool(version=version, endpoints=endpoints):
                assert endpoints, "a pool is never emptied"
                assert not seen_weights or going_back
                reachable.add(version)
            case SetWeights(spec=spec):
                seen_weights = True
                assert sum(spec.weights.values()) in (0, sum(wish.split.values()), 10_000)
                for version, weight in spec.weights.items():
                    if weight > scene.split.get(version, 0):
                        assert ready[version] >= 1, "no traffic without a ready replica"
                        assert version in reachable, "no traffic without a pool"
                        if version != wish.baseline:
                            assert ready[version] >= run[version], "capacity before traffic"
            case RemovePool(version=version):
                assert version not in run
                assert not scene.split.get(version, 0), "traffic before everything"
                pool = scene.pools[version]
                assert pool.in_flight == 0 or scene.now >= scene.drain_until
            case SetReplicas(spec=replicas_spec) if replicas_spec.count == 0:
                assert replicas_spec.version not in run
                assert replicas_spec.version not in scene.pools, "process last"


@given(wish=wishes(), scene=scenes)
def test_nothing_is_touched_that_is_right_already(wish: Desired, scene: Scene) -> None:
    if wish.split == scene.split:
        assert not any(isinstance(action, SetWeights) for action in converge(wish, scene))

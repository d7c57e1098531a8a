"""One suite for the port `Gateway`, run on every adapter: memory, Envoy by ADS, Envoy by files."""

import subprocess
import sys
from pathlib import Path

import pytest

from lockgate.core.errors import ConflictError, PermanentError, UsageError
from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import RouteSpec
from lockgate.gateway.envoy import EnvoyGateway
from lockgate.gateway.memory import MemoryGateway

REPLICA = Path(__file__).parents[1] / "unit" / "gateway" / "replica.py"
ROUTE, A, B = "acme/chat@local", "blake3:" + "a" * 64, "blake3:" + "b" * 64
NOWHERE = Endpoint(host="not-an-address", port=1)


@pytest.fixture(scope="module")
def replicas():
    processes = [
        subprocess.Popen([sys.executable, str(REPLICA), name], stdout=subprocess.PIPE)
        for name in ("a", "b")
    ]
    yield [Endpoint(host="127.0.0.1", port=int(p.stdout.readline())) for p in processes]
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(params=["memory", "ads", "files"])
def gateway(request, tmp_path_factory):
    if request.param == "memory":
        made = MemoryGateway()
        yield made
        made.close(stop=True)
        return
    home = tmp_path_factory.mktemp("g")
    made = EnvoyGateway(
        state_dir=home / "s", run_dir=home / "r", sink=lambda _: None, mode=request.param
    )
    yield made
    made.close(stop=True)
    assert made.pid is None


def split(weights, *, model="acme/chat", name=ROUTE, sticky=None):
    return RouteSpec(name=name, model=model, weights=weights, baseline=A, sticky_header=sticky)


def refuse_next(gateway):
    """Makes the next change one that the proxy refuses; returns the endpoints to use for it."""
    if isinstance(gateway, MemoryGateway):
        gateway.fail_next(PermanentError("refused"))
    return [NOWHERE]


def test_starts_empty(gateway):
    seen = gateway.view()
    assert (dict(seen.routes), dict(seen.pools), seen.proxies) == ({}, {}, 1)
    assert seen.address.startswith("http://")


def test_a_pool_then_a_route(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas)
    revision = gateway.set_route(split({A: 10_000}))
    seen = gateway.view()
    assert seen.routes[ROUTE].weights == {A: 10_000}
    assert seen.routes[ROUTE].revision == revision
    assert set(seen.pools[ROUTE, A].endpoints) == set(replicas)
    assert seen.pools[ROUTE, A].in_flight == 0


def test_verbs_are_absolute_and_idempotent(gateway, replicas):
    for _ in range(2):
        gateway.set_pool(ROUTE, A, replicas)
    gateway.set_pool(ROUTE, A, replicas[:1])
    gateway.set_pool(ROUTE, B, replicas[1:])
    assert gateway.view().pools[ROUTE, A].endpoints == (replicas[0],)
    first = gateway.set_route(split({A: 9_000, B: 1_000}))
    assert gateway.set_route(split({A: 9_000, B: 1_000})) == first
    assert gateway.view().routes[ROUTE].revision == first


def test_revisions_grow(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas[:1])
    gateway.set_pool(ROUTE, B, replicas[1:])
    shares = (0, 100, 5_000, 10_000, 0)
    revisions = [gateway.set_route(split({A: 10_000 - share, B: share})) for share in shares]
    assert revisions == sorted(set(revisions))


def test_weight_needs_a_pool(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas[:1])
    before = gateway.set_route(split({A: 10_000, B: 0}))
    with pytest.raises(PermanentError, match="no pool"):
        gateway.set_route(split({A: 9_999, B: 1}))
    assert gateway.view().routes[ROUTE].revision == before


def test_weights_must_add_up(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas[:1])
    with pytest.raises(UsageError):
        gateway.set_route(split({A: 9_000}))


def test_one_route_per_model(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas[:1])
    gateway.set_route(split({A: 10_000}))
    gateway.set_pool("acme/chat@other", A, replicas[:1])
    with pytest.raises(PermanentError, match="already served"):
        gateway.set_route(split({A: 10_000}, name="acme/chat@other"))


def test_remove_refuses_while_weighted(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas[:1])
    gateway.set_pool(ROUTE, B, replicas[1:])
    gateway.set_route(split({A: 9_999, B: 1}))
    with pytest.raises(ConflictError, match="weight"):
        gateway.remove_pool(ROUTE, B)
    gateway.set_route(split({A: 10_000, B: 0}))
    for _ in range(2):
        gateway.remove_pool(ROUTE, B)
    seen = gateway.view()
    assert (ROUTE, B) not in seen.pools
    assert (ROUTE, A) in seen.pools


def test_a_pool_may_be_empty(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas)
    gateway.set_pool(ROUTE, A, [])
    assert gateway.view().pools[ROUTE, A].endpoints == ()


def test_a_refused_new_pool_changes_nothing(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas[:1])
    before = gateway.view()
    with pytest.raises(PermanentError):
        gateway.set_pool(ROUTE, B, refuse_next(gateway))
    assert gateway.view() == before
    gateway.set_pool(ROUTE, B, replicas[1:])
    assert gateway.view().pools[ROUTE, B].endpoints == (replicas[1],)


def test_a_refused_change_of_a_pool_changes_nothing(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas)
    gateway.set_route(split({A: 10_000}))
    before = gateway.view()
    with pytest.raises(PermanentError):
        gateway.set_pool(ROUTE, A, refuse_next(gateway))
    assert gateway.view() == before


def test_a_refused_route_changes_nothing(gateway, replicas):
    gateway.set_pool(ROUTE, A, replicas)
    gateway.set_route(split({A: 10_000}))
    before = gateway.view()
    refuse_next(gateway)
    with pytest.raises(PermanentError):
        gateway.set_route(split({A: 10_000}, sticky="not\na header"))
    assert gateway.view() == before
    assert gateway.set_route(split({A: 10_000}, sticky="x-user")) > before.routes[ROUTE].revision

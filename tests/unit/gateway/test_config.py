"""The pure half: state to proto-JSON, rows to samples, and Envoy's own opinion of the result."""

import json
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import ConflictError, PermanentError, TemporaryError
from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import RouteSpec
from lockgate.gateway.envoy import config, routing, values
from lockgate.gateway.envoy.files import FilesTransport
from lockgate.gateway.envoy.process import Admin, check_socket, own
from lockgate.gateway.envoy.samples import Tail, sample
from lockgate.gateway.envoy.schema import Schema, extract, find_binary
from lockgate.gateway.envoy.values import EnvoyOptions, Sockets, State
from lockgate.gateway.memory import MemoryGateway
from lockgate.host.detached import Lock

ROUTE, A, B = "acme/chat@local", "blake3:" + "a" * 64, "blake3:" + "b" * 64
OPTIONS = EnvoyOptions()
HERE = Endpoint(host="127.0.0.1", port=8000)


def spec(weights, **more):
    return RouteSpec(name=ROUTE, model="acme/chat", weights=weights, **more)


@pytest.fixture(scope="module")
def schema(tmp_path_factory):
    return Schema(find_binary(), tmp_path_factory.mktemp("schema"))


@pytest.fixture
def sources(tmp_path):
    admin = Admin(tmp_path / "admin.sock")
    made = FilesTransport(
        directory=tmp_path, admin=admin, options=OPTIONS, deliver=print, reason=str
    )
    yield made.sources()
    admin.close()


def test_the_binary_carries_a_whole_schema(tmp_path):
    files = extract(find_binary())
    names = set(files)
    assert len(names) > 400
    missing = {d for file in files.values() for d in file.dependency} - names
    assert not missing
    first, second = (Schema(find_binary(), tmp_path) for _ in range(2))
    kind = "envoy.config.cluster.v3.Cluster"
    assert first.kind(kind).DESCRIPTOR.full_name == second.kind(kind).DESCRIPTOR.full_name
    assert len(list(tmp_path.glob("schema-*.pb"))) == 1


def test_a_field_that_envoy_lacks_is_refused(schema):
    with pytest.raises(PermanentError, match="no_such_field"):
        schema.build("envoy.config.cluster.v3.Cluster", {"no_such_field": 1})


def test_a_binary_without_a_schema_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"nothing in here")
    with pytest.raises(PermanentError, match="schema"):
        Schema(tmp_path / "x")


@pytest.mark.parametrize("tokens", [True, False])
def test_envoy_accepts_the_bootstrap(tmp_path, sources, tokens):
    path = tmp_path / "bootstrap.json"
    start = config.bootstrap(
        host="127.0.0.1",
        port=10_000,
        sockets=Sockets(
            admin=str(tmp_path / "a.sock"),
            mirror=str(tmp_path / "m.sock"),
            scores=str(tmp_path / "q.sock"),
        ),
        options=EnvoyOptions(token_metadata=tokens),
        sources=sources,
    )
    path.write_text(json.dumps(start))
    for name in ("clusters", "routes"):
        (tmp_path / f"{name}.json").write_text('{"resources": []}')
    ran = subprocess.run(
        [str(find_binary()), "--mode", "validate", "-c", str(path), "--disable-hot-restart"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_every_resource_fits_the_schema(schema, sources):
    state = State(
        routes={ROUTE: (spec({A: 9_000, B: 1_000}, sticky_header="x-user"), 3)},
        pools={(ROUTE, A): (HERE,), (ROUTE, B): ()},
    )
    found = config.resources(state, OPTIONS, sources)
    assert {kind: len(items) for kind, items in found.items()} == {
        values.CLUSTER: 2,
        values.ENDPOINT: 2,
        values.ROUTE: 1,
    }
    for items in found.values():
        for value in items.values():
            schema.pack(value)


def split_of(weights, baseline):
    state = State(routes={ROUTE: (spec(weights, baseline=baseline), 7)})
    rows = routing.route_table(state, OPTIONS)["virtual_hosts"][0]["routes"]
    chosen = [row for row in rows if row["name"] == f"{ROUTE}#7"]
    assert len(chosen) == 5  # two by path, two by header, one by body
    splits = [row["route"]["weighted_clusters"]["clusters"] for row in chosen]
    assert all(split == splits[0] for split in splits)
    return [(values.split_pool(row["name"])[1], row["weight"]) for row in splits[0]]


@given(st.integers(0, 10_000), st.sampled_from([A, B]))
def test_the_split_adds_up_with_the_baseline_first(share, baseline):
    weights = {A: 10_000 - share, B: share}
    split = split_of(weights, baseline)
    assert dict(split) == {version: weight for version, weight in weights.items() if weight}
    assert sum(weight for _, weight in split) == 10_000
    if weights[baseline]:
        assert split[0][0] == baseline


def test_a_pool_is_the_same_cluster_whatever_its_endpoints(sources):
    one, two = (
        config.resources(State(pools={(ROUTE, A): hosts}), OPTIONS, sources)[values.CLUSTER]
        for hosts in ((HERE,), ())
    )
    assert one == two


def test_every_route_waits_for_the_model_and_tries_again():
    row = routing._routes_of(spec({A: 10_000}), 1, OPTIONS)[0]["route"]
    assert row["timeout"] == "0s"
    assert float(row["retry_policy"]["per_try_idle_timeout"][:-1]) >= 60


def test_state_survives_json():
    state = State(
        routes={
            ROUTE: (
                spec(
                    {A: 9_000, B: 1_000},
                    baseline=A,
                    sticky_header="x",
                    variant=("h", "v", B),
                    mirror={B: 5},
                ),
                3,
            )
        },
        pools={(ROUTE, A): (HERE,), (ROUTE, B): ()},
        revision=3,
    )
    assert values.state_from_json(json.loads(json.dumps(values.state_to_json(state)))) == state


ROW = {
    "at": "1700000000.250000",
    "route": f"{ROUTE}#17",
    "pool": values.pool_name(ROUTE, A),
    "weights": json.dumps({A: 2_500, B: 7_500}),
    "status": 200,
    "flags": "-",
    "duration_us": "2000000",
    "duration_ms": "2001",
    "first_body_us": 150_000,
    "bytes_in": "10",
    "bytes_out": "20",
    "path": "/acme/chat/v1/completions?key=secret",
    "request_id": "r1",
    "tokens": "12",
}


def test_a_row_becomes_a_sample():
    found = sample(ROW)
    assert found is not None
    assert (found.at, found.version, found.propensity, found.revision) == (
        1700000000.25,
        A,
        0.25,
        17,
    )
    assert (found.duration_s, found.first_body_s) == pytest.approx((2.0, 0.15))
    assert (found.tokens, found.bytes_in, found.bytes_out) == (12, 10, 20)
    assert found.path == "/acme/chat/v1/completions"
    assert not found.failed


@pytest.mark.parametrize(
    ("flags", "status", "seen", "failed"),
    [
        ("-", 200, 200, False),
        ("-", 429, 429, False),
        ("-", 500, 500, True),
        ("UH", 503, 503, True),
        ("UC", 200, 200, True),
        ("UF,URX", 503, 503, True),
        ("DC", 0, 499, False),
        ("DC", 200, 499, False),
        ("DR", 200, 499, False),
        ("DC,UC", 200, 200, True),
        ("RL", 429, 429, False),
    ],
)
def test_flags_say_whose_failure_it_was(flags, status, seen, failed):
    found = sample({**ROW, "flags": flags, "status": status})
    assert (found.status, found.failed) == (seen, failed)


@pytest.mark.parametrize(
    "change",
    [
        {"pool": "-"},
        {"pool": "lockgate-control"},
        {"route": "refused"},
        {"route": "other/model@local#3"},
        {"weights": "broken"},
        {"weights": "{}"},
        {"weights": "[]"},
    ],
)
def test_a_request_that_no_version_got_is_no_sample(change):
    assert sample({**ROW, **change}) is None


def test_missing_times_are_missing():
    found = sample({**ROW, "first_body_us": "-", "duration_us": "-", "tokens": None})
    assert (found.first_body_s, found.duration_s, found.tokens) == (None, 2.001, None)


def test_the_tail_goes_on_where_it_stopped(tmp_path):
    log = tmp_path / "access.jsonl"
    log.write_text('{"a": 1}\nbroken\n{"a": 2}\n{"a"')
    tail = Tail(log)
    assert tail.rows() == [{"a": 1}, {"a": 2}]
    tail.commit()
    with log.open("a") as file:
        file.write(": 3}\n")
    assert Tail(log).rows() == [{"a": 3}]
    assert tail.rows() == [{"a": 3}]
    log.write_text('{"a": 4}\n')
    assert Tail(log).rows() == [{"a": 4}]


def test_one_control_plane_at_a_time(tmp_path):
    lock = own(tmp_path / "control.lock")
    with pytest.raises(ConflictError, match="another control plane"):
        own(tmp_path / "control.lock")
    lock.release()
    own(tmp_path / "control.lock").release()
    shared = [Lock(tmp_path / "x") for _ in range(2)]
    assert all(one.take(shared=True) for one in shared)
    assert not Lock(tmp_path / "x").take()
    for one in shared:
        one.release()


def test_a_long_socket_path_is_refused(tmp_path):
    with pytest.raises(PermanentError, match="too long"):
        check_socket(tmp_path / ("x" * 100))


def test_admin_that_is_not_there_is_temporary(tmp_path):
    admin = Admin(tmp_path / "none.sock")
    with pytest.raises(TemporaryError):
        admin.get("/server_info")
    admin.close()


def test_memory_is_told_what_to_say():
    gateway = MemoryGateway()
    gateway.fail_next(TemporaryError("not now"))
    with pytest.raises(TemporaryError):
        gateway.set_pool(ROUTE, A, [HERE])
    gateway.set_pool(ROUTE, A, [HERE])
    gateway.set_in_flight(ROUTE, A, 3)
    assert gateway.view().pools[ROUTE, A].in_flight == 3
    gateway.close(stop=True)
    assert gateway.calls[-1] == "stop"

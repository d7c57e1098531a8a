"""A real Envoy under real requests: nothing fails, nothing is cut, nothing is forgotten."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from lockgate.core.errors import ConflictError, PermanentError, TemporaryError
from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import RouteSpec
from lockgate.gateway.envoy import EnvoyGateway, EnvoyOptions

ROUTE, MODEL = "acme/chat@local", "acme/chat"
pytestmark = pytest.mark.e2e


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_callers_reach_a_model_by_path_body_or_header(bench):
    bench.two_versions()
    assert bench.ask()[:2] == (200, "a")
    assert '"path": "/v1/chat/completions"' in bench.ask()[2]
    assert bench.ask("/v1/completions", {"model": MODEL})[:2] == (200, "a")
    assert bench.ask("/v1/completions", {}, {"x-lockgate-model": MODEL})[:2] == (200, "a")
    status, _, text = bench.ask("/v1/completions", {"model": "acme/other"})
    assert (status, '"code":"model_not_found"' in text) == (404, True)


def test_admin_paths_of_runtimes_are_closed(bench):
    bench.two_versions()
    for path in (
        "/acme/chat/metrics",
        "/acme/chat/v1/../metrics",
        "/acme/chat/v1/%2e%2e/metrics",
        "/acme/chat/v1/..%2fmetrics",
        "/acme/chat//metrics",
        "/acme/chat/v1/load_lora_adapter",
        "/acme/chat/v1//load_lora_adapter",
        "/acme/chat/v1/%6coad_lora_adapter",
        "/acme/chat/v1/unload_lora_adapter?x=1",
        "/acme/chat/v1/load_lora_adapter;x",
        "/acme/chat/v2/repository/models/m/load",
        "/acme/chat/v2/models/m/versions/1/trace/setting",
        "/v1/load_lora_adapter",
        "/metrics",
        "/pause",
        "/health",
    ):
        status, version, text = bench.ask(path, {}, {"x-lockgate-model": MODEL})
        assert (status in {400, 404}, version) == (True, None), (path, text)


def test_the_split_is_binomial(bench, load):
    bench.two_versions()
    bench.weights(a=9_000, b=1_000)
    with load(bench) as running:
        while len(running.served) < 2_000:
            time.sleep(0.05)
    n, hits = len(running.served), running.served.count("b")
    assert not running.failed
    assert abs(hits - 0.1 * n) < 4.5 * math.sqrt(n * 0.1 * 0.9)


def test_sticky_callers_stay_and_only_move_forward(bench):
    bench.two_versions()

    def of_users(share):
        bench.gateway.set_route(
            RouteSpec(
                name=ROUTE,
                model=MODEL,
                weights={"b": share, "a": 10_000 - share},
                baseline="a",
                sticky_header="x-user",
            )
        )
        connection = bench.client()
        ask = [
            [bench.ask(headers={"x-user": f"u{n}"}, connection=connection)[1] for _ in range(2)]
            for n in range(200)
        ]
        assert all(first == second for first, second in ask)
        connection.close()
        return {n for n, (version, _) in enumerate(ask) if version == "b"}

    few, many = of_users(2_000), of_users(5_000)
    assert 15 < len(few) < 70
    assert 60 < len(many) < 140
    assert few <= many


def test_a_session_is_logged_by_the_hash_that_chose_its_version(bench):
    bench.two_versions()
    share = 3_000
    bench.gateway.set_route(
        RouteSpec(name=ROUTE, model=MODEL, weights={"b": share, "a": 10_000 - share},
                  baseline="a", sticky_header="x-user")
    )  # fmt: skip
    for n in range(60):
        bench.ask(headers={"x-user": f"user {n}", "x-lockgate-unit": "a lie"})
    bench.ask(headers={"x-lockgate-unit": "a lie"})
    rows = bench.wait_rows(61)
    assert sum(row.unit is None for row in rows) == 1
    hashed = [row for row in rows if row.unit is not None]
    assert {row.version for row in hashed} == {"a", "b"}
    for row in hashed:  # the candidate has the end of the range
        assert row.version == ("b" if row.unit % 10_000 >= 10_000 - share else "a")


def test_a_variant_is_reached_by_its_header_whatever_the_split(bench):
    bench.two_versions()
    bench.gateway.set_route(
        RouteSpec(name=ROUTE, model=MODEL, weights={"a": 10_000}, baseline="a",
                  variant=("x-variant", "new", "b"))
    )  # fmt: skip
    assert [bench.ask(headers={"x-variant": v})[1] for v in ("new", "old")] == ["b", "a"]
    assert bench.ask()[1] == "a"
    shares = {(row.version, row.propensity) for row in bench.wait_rows(3)}
    assert shares == {("a", 1.0), ("b", 1.0)}


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_copies_become_rows_that_are_found_by_the_request(bench, mode):
    bench.two_versions(mode=mode)
    bench.gateway.set_route(
        RouteSpec(name=ROUTE, model=MODEL, weights={"a": 10_000}, baseline="a",
                  mirror={"b": 10_000})
    )  # fmt: skip
    answers = [bench.ask(headers={"x-lockgate-mirror-pool": "x|y"})[1] for _ in range(5)]
    assert answers == ["a"] * 5
    rows = bench.wait_rows(10)
    asked = {row.request_id: row for row in rows if not row.mirrored}
    copies = {row.request_id: row for row in rows if row.mirrored}
    assert asked.keys() == copies.keys()
    assert {row.version for row in copies.values()} == {"b"}
    assert {(row.route, row.status, row.revision) for row in copies.values()} == {
        (ROUTE, 200, bench.gateway.view().routes[ROUTE].revision)
    }
    bench.gateway.set_route(RouteSpec(name=ROUTE, model=MODEL, weights={"a": 10_000}, baseline="a"))
    bench.ask()
    time.sleep(0.5)
    assert sum(row.mirrored for row in bench.rows) == 5


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_flips_under_load_lose_nothing(bench, load, mode):
    bench.two_versions(mode=mode)
    took = []
    with load(bench) as running:
        for number in range(20):
            start = time.monotonic()
            bench.weights(**({"a": 0, "b": 10_000} if number % 2 else {"a": 10_000, "b": 0}))
            took.append(time.monotonic() - start)
            time.sleep(0.03)
    assert not running.failed
    assert {"a", "b"} == set(running.served)
    assert max(took) < 2.0


def test_streams_survive_flip_endpoint_change_and_removal(bench):
    a, _ = bench.two_versions()
    answers = []
    headers = {"x-tokens": "30", "x-gap-ms": "50"}

    def stream():
        answers.append(bench.ask(body={"stream": True}, headers=headers))

    threads = [threading.Thread(target=stream) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(0.4)
    assert bench.gateway.view().pools[ROUTE, "a"].in_flight == 12
    bench.weights(a=0, b=10_000)
    bench.gateway.set_pool(ROUTE, "a", [bench.replicas.start("a2")])
    assert bench.ask()[1] == "b"
    assert bench.gateway.view().pools[ROUTE, "a"].in_flight == 12
    bench.gateway.set_pool(ROUTE, "a", [])
    bench.gateway.remove_pool(ROUTE, "a")
    for thread in threads:
        thread.join(20)
    assert [(status, version) for status, version, _ in answers] == [(200, "a")] * 12
    assert all(text.endswith("[DONE]\n\n") for _, _, text in answers)
    assert a.port


def test_a_killed_replica_costs_no_request(bench, load):
    bench.open()
    endpoints = [bench.replicas.start("a") for _ in range(3)]
    bench.gateway.set_pool(ROUTE, "a", endpoints)
    bench.weights(a=10_000)
    with load(bench, headers={"x-first-ms": "5"}) as running:
        time.sleep(0.5)
        bench.replicas.kill(endpoints[0])
        time.sleep(2.0)
        before = len(running.served)
        time.sleep(0.3)
    assert not running.failed
    assert len(running.served) > before


def test_a_replica_that_is_not_ready_gets_nothing_until_it_is(bench):
    a, _ = bench.two_versions(options=EnvoyOptions(ready_timeout_s=0.6))
    late = Endpoint(host="127.0.0.1", port=free_port())
    with pytest.raises(TemporaryError, match="health check"):
        bench.gateway.set_pool(ROUTE, "a", [a, late])
    assert {bench.ask()[:2] for _ in range(10)} == {(200, "a")}
    bench.replicas.start("late", late.port)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            bench.gateway.set_pool(ROUTE, "a", [a, late])
            break
        except TemporaryError:
            continue
    assert {bench.ask()[1] for _ in range(40)} == {"a", "late"}


def test_a_pool_with_no_healthy_replica_fails_fast(bench):
    a, _ = bench.two_versions()
    bench.replicas.kill(a)
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        start = time.monotonic()
        status, _, text = bench.ask()
        if "no_healthy_upstream" in text:
            break
        time.sleep(0.1)
    assert (status, '"error"' in text) == (503, True)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_a_killed_envoy_comes_back_with_the_same_configuration(bench, mode):
    bench.two_versions(mode=mode)
    bench.weights(a=0, b=10_000)
    old, before = bench.gateway.pid, bench.gateway.view()
    os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 10
    answer = None
    while answer != (200, "b") and time.monotonic() < deadline:
        try:
            answer = bench.ask()[:2]
        except OSError:
            time.sleep(0.05)
    assert answer == (200, "b")
    assert bench.gateway.pid not in {None, old}
    assert bench.gateway.restarts == 1
    assert bench.gateway.view() == before
    bench.weights(a=10_000, b=0)
    assert bench.ask()[:2] == (200, "a")


CHILD = """
import sys, time
from pathlib import Path
from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import RouteSpec
from lockgate.gateway.envoy import EnvoyGateway
home, mode, a, b = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
gateway = EnvoyGateway(
    state_dir=home / "s", run_dir=home / "r", sink=lambda rows: None, mode=mode)
name = "acme/chat@local"
gateway.set_pool(name, "a", [Endpoint(host="127.0.0.1", port=a)])
gateway.set_pool(name, "b", [Endpoint(host="127.0.0.1", port=b)])
gateway.set_route(RouteSpec(
    name=name, model="acme/chat", weights={"a": 0, "b": 10000}, baseline="a"))
print(gateway.address, gateway.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_a_killed_control_plane_is_not_noticed(bench, load, mode):
    a, b = bench.replicas.start("a"), bench.replicas.start("b")
    argv = [str(bench.home), mode, str(a.port), str(b.port)]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), *argv], stdout=subprocess.PIPE, text=True
    )
    address, pid = child.stdout.readline().split()
    with pytest.raises(ConflictError, match="another control plane"):
        bench.open(mode=mode)
    bench.gateway = type("Address", (), {"address": address})
    with load(bench) as running:
        child.kill()
        child.wait()
        child.stdout.close()
        time.sleep(0.5)
        gateway = bench.open(mode=mode)
        assert (gateway.address, gateway.pid) == (address, int(pid))
        assert gateway.view().routes[ROUTE].weights == {"a": 0, "b": 10_000}
        bench.weights(a=10_000, b=0)
        time.sleep(0.2)
    assert not running.failed
    assert running.served[0] == "b"
    assert running.served[-1] == "a"
    assert gateway.restarts == 0


def test_stop_lets_streams_end(bench):
    bench.two_versions()
    answers = []
    headers = {"x-tokens": "20", "x-gap-ms": "50"}
    thread = threading.Thread(
        target=lambda: answers.append(bench.ask(body={"stream": True}, headers=headers))
    )
    thread.start()
    time.sleep(0.2)
    bench.gateway.close(stop=True)
    thread.join(10)
    assert answers[0][2].endswith("[DONE]\n\n")
    assert len(bench.rows) == 1
    bench.gateway = None


def test_a_taken_port_is_refused_with_the_reason(bench):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(PermanentError, match=r"can.t be listened for"):
            EnvoyGateway(
                state_dir=bench.home / "s",
                run_dir=bench.home / "r",
                sink=bench.rows.extend,
                port=taken.getsockname()[1],
                options=EnvoyOptions(start_timeout_s=1.0),
            )
    bench.open(port=free_port())


def test_a_frozen_replica_costs_no_request(bench, load):
    bench.open(options=EnvoyOptions(first_byte_timeout_s=0.7))
    endpoints = [bench.replicas.start("a") for _ in range(2)]
    bench.gateway.set_pool(ROUTE, "a", endpoints)
    bench.weights(a=10_000)
    with load(bench, headers={"x-first-ms": "20"}) as running:
        time.sleep(0.3)
        os.kill(bench.replicas.processes[endpoints[0]].pid, signal.SIGSTOP)
        time.sleep(2.0)
    assert not running.failed
    assert len(running.served) > 50


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_let_go_and_take_again(bench, mode):
    bench.two_versions(mode=mode)
    bench.weights(a=5_000, b=5_000)
    pid, before = bench.gateway.pid, bench.gateway.view()
    bench.gateway.close(stop=False)
    assert bench.ask()[0] == 200
    with pytest.raises(PermanentError, match="running proxy was started with"):
        bench.open(mode=mode, port=free_port())
    bench.open(mode=mode, port=int(before.address.rpartition(":")[2]))
    assert bench.gateway.pid == pid
    assert bench.gateway.view() == before
    bench.rows.clear()
    sent = {bench.ask(headers={"x-request-id": f"r{n}"}) and f"r{n}" for n in range(20)}
    deadline = time.monotonic() + 5
    while not sent <= {row.request_id for row in bench.rows} and time.monotonic() < deadline:
        time.sleep(0.05)
    assert sent <= {row.request_id for row in bench.rows}


def test_a_large_body_is_routed_by_its_model(bench):
    bench.two_versions()
    body = {"prompt": "x" * (8 << 20), "model": MODEL}
    assert bench.ask("/v1/completions", body)[:2] == (200, "a")


def test_a_setter_without_a_proxy_is_temporary_and_heals(bench):
    bench.two_versions(options=EnvoyOptions(ack_timeout_s=0.4))
    bench.gateway._proxy.release()
    os.kill(bench.gateway.pid, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(TemporaryError):
        bench.weights(a=0, b=10_000)
    assert bench.gateway.view().routes[ROUTE].weights == {"a": 10_000, "b": 0}
    assert bench.gateway.view().proxies == 0
    bench.gateway.close(stop=False)
    bench.open()
    assert bench.gateway.view().routes[ROUTE].weights == {"a": 0, "b": 10_000}
    assert bench.ask()[1] == "b"


@pytest.mark.parametrize("mode", ["ads", "files"])
def test_killed_in_the_middle_of_a_push_that_envoy_refuses(bench, mode):
    bench.two_versions(mode=mode)
    before = bench.gateway.view()
    bench.gateway.close(stop=False)
    path = bench.home / "s" / "state.json"
    kept = json.loads(path.read_text())
    kept["previous"] = json.loads(path.read_text())["state"]
    kept["state"]["pools"][0]["endpoints"] = [["not-an-address", 1]]
    path.write_text(json.dumps(kept))
    bench.open(mode=mode)
    assert bench.gateway.view() == before
    assert bench.ask()[:2] == (200, "a")


def test_view_does_not_wait_for_a_pool_that_is_not_ready(bench):
    a, _ = bench.two_versions()
    late = Endpoint(host="127.0.0.1", port=free_port())
    setter = threading.Thread(target=lambda: bench.gateway.set_pool(ROUTE, "a", [a, late]))
    setter.start()
    time.sleep(0.3)
    start = time.monotonic()
    assert bench.gateway.view().pools[ROUTE, "a"].endpoints == tuple(sorted((a, late)))
    bench.weights(a=0, b=10_000)  # a rollback does not wait either
    assert time.monotonic() - start < 1.0
    bench.replicas.start("late", late.port)
    setter.join(10)
    assert not setter.is_alive()

"""The contract of the port Fleet, run on every adapter; the local one with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lockgate.core.digests import digest_of
from lockgate.core.errors import ConflictError
from lockgate.fleet.api import Replica, ReplicaSpec
from lockgate.fleet.local import LocalFleet
from lockgate.fleet.memory import MemoryFleet

ROUTE = "acme/echo@local"
ONE, TWO = digest_of(b"one"), digest_of(b"two")

SERVER = """
import http.server, json, os, signal, sys, threading, time
port, version, mode = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if mode == "dies": sys.exit("no such weights")
if mode == "hog": keep = bytearray(2_000_000_000)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/slow": time.sleep(2)
        body = json.dumps({"version": version, "pid": os.getpid()}).encode()
        self.send_response(503 if mode == "sick" else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *args): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
server.daemon_threads = False
signal.signal(signal.SIGTERM, lambda *a: threading.Thread(target=server.shutdown).start())
server.serve_forever()
server.server_close()
"""


def spec(version: str, count: int, mode: str = "ok", **limits: object) -> ReplicaSpec:
    argv = [sys.executable, "{folder}/server.py", "{port}", "{version}", mode]
    return ReplicaSpec(
        route=ROUTE, version=version, count=count, runtime="command",
        options={"argv": argv, "ready": "/health"}, drain_s=10.0, **limits,  # type: ignore[arg-type]
    )  # fmt: skip


class Local:
    """A local fleet over a folder, and eyes to look at it."""

    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        (tmp / "server.py").write_text(SERVER)
        self.dropped: list[str] = []
        self.fleet = self.open()

    def open(self) -> LocalFleet:
        return LocalFleet(self.tmp / "fleet", files=lambda _: self.tmp, dropped=self.dropped.append)


def wait(what: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def ready(fleet: MemoryFleet | LocalFleet, version: str) -> list[Replica]:
    return [r for r in fleet.replicas() if r.version == version and r.state == "ready"]


def ask(replica: Replica, path: str = "/") -> dict[str, object]:
    assert replica.endpoint is not None
    url = f"http://127.0.0.1:{replica.endpoint.port}{path}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def gone(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    world = Local(tmp_path)
    yield world
    world.fleet.close(stop=True)


@pytest.fixture(params=["memory", "local"])
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemoryFleet | LocalFleet]:
    made = MemoryFleet(time.time) if request.param == "memory" else Local(tmp_path).fleet
    yield made
    made.close(stop=True)


def test_the_wish_is_absolute_and_may_be_repeated(fleet: MemoryFleet | LocalFleet) -> None:
    for _ in range(3):
        fleet.set_replicas(spec(ONE, 2))
    wait(lambda: len(ready(fleet, ONE)) == 2)
    names = {r.name for r in fleet.replicas()}
    fleet.set_replicas(spec(ONE, 2))
    assert {r.name for r in fleet.replicas()} == names
    fleet.set_replicas(spec(ONE, 1))
    wait(lambda: len(fleet.replicas()) == 1)
    fleet.set_replicas(spec(ONE, 0))
    wait(lambda: fleet.replicas() == ())


def test_versions_run_side_by_side_on_endpoints_of_their_own(
    fleet: MemoryFleet | LocalFleet,
) -> None:
    fleet.set_replicas(spec(ONE, 1))
    fleet.set_replicas(spec(TWO, 2))
    wait(lambda: len(ready(fleet, ONE)) == 1 and len(ready(fleet, TWO)) == 2)
    assert len({r.endpoint for r in fleet.replicas()}) == 3
    assert {r.route for r in fleet.replicas()} == {ROUTE}
    fleet.set_replicas(spec(ONE, 0))
    wait(lambda: {r.version for r in fleet.replicas()} == {TWO})


def test_a_real_replica_answers_and_is_told_its_version(local: Local) -> None:
    local.fleet.set_replicas(spec(ONE, 1))
    wait(lambda: bool(ready(local.fleet, ONE)))
    assert ask(ready(local.fleet, ONE)[0])["version"] == ONE


def test_a_killed_replica_comes_back_on_its_old_endpoint(local: Local) -> None:
    local.fleet.set_replicas(spec(ONE, 1))
    wait(lambda: bool(ready(local.fleet, ONE)))
    before = ready(local.fleet, ONE)[0]
    pid = ask(before)["pid"]
    os.kill(int(str(pid)), signal.SIGKILL)
    wait(lambda: not ready(local.fleet, ONE))
    wait(lambda: bool(ready(local.fleet, ONE)))
    after = ready(local.fleet, ONE)[0]
    assert (after.endpoint, after.restarts) == (before.endpoint, 1)
    assert ask(after)["pid"] != pid


def test_a_request_in_flight_ends_before_the_replica_does(local: Local) -> None:
    local.fleet.set_replicas(spec(ONE, 1))
    wait(lambda: bool(ready(local.fleet, ONE)))
    replica = ready(local.fleet, ONE)[0]
    answers: list[dict[str, object]] = []
    thread = threading.Thread(target=lambda: answers.append(ask(replica, "/slow")))
    thread.start()
    time.sleep(0.5)
    local.fleet.set_replicas(spec(ONE, 0))
    thread.join()
    assert answers[0]["version"] == ONE
    wait(lambda: local.fleet.replicas() == ())
    assert gone(answers[0]["pid"])
    assert local.dropped == [ONE]
    assert [p.name for p in (local.tmp / "fleet").iterdir()] == ["owner.lock"]


def test_a_replica_that_can_not_start_gives_up_and_says_why(local: Local) -> None:
    local.fleet.set_replicas(spec(ONE, 1, "dies"))
    wait(lambda: any(r.state == "failed" for r in local.fleet.replicas()), 60)
    assert "no such weights" in local.fleet.replicas()[0].message
    local.fleet.set_replicas(spec(ONE, 0))
    wait(lambda: local.fleet.replicas() == ())


def test_a_runtime_that_is_not_there_is_named(local: Local) -> None:
    local.fleet.set_replicas(ReplicaSpec(route=ROUTE, version=ONE, count=1, runtime="abacus"))
    wait(lambda: any(r.state == "failed" for r in local.fleet.replicas()))
    assert "abacus" in local.fleet.replicas()[0].message


def test_a_replica_that_never_gets_ready_is_not_waited_for_for_ever(local: Local) -> None:
    local.fleet.set_replicas(spec(ONE, 1, "sick", start_timeout_s=0.5))
    wait(lambda: any(r.state == "failed" for r in local.fleet.replicas()), 60)
    assert not ready(local.fleet, ONE)


def test_a_memory_limit_holds(local: Local) -> None:
    local.fleet.set_replicas(spec(ONE, 1, "hog", memory_mb=600))
    wait(lambda: any(r.restarts for r in local.fleet.replicas()))
    assert "MemoryError" in local.fleet.replicas()[0].message


def test_the_next_fleet_adopts_what_the_last_one_left(local: Local) -> None:
    local.fleet.set_replicas(spec(ONE, 1))
    wait(lambda: bool(ready(local.fleet, ONE)))
    before = ready(local.fleet, ONE)[0]
    pid = ask(before)["pid"]
    local.fleet.close(stop=False)
    assert ask(before)["pid"] == pid
    local.fleet = local.open()
    wait(lambda: bool(ready(local.fleet, ONE)))
    assert ask(ready(local.fleet, ONE)[0])["pid"] == pid


def test_one_fleet_a_folder(local: Local) -> None:
    with pytest.raises(ConflictError, match="another lockgate"):
        local.open()


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_fleet import Local, spec, ONE, ready, wait
world = Local(Path(sys.argv[1]))
world.fleet.set_replicas(spec(ONE, 1))
wait(lambda: bool(ready(world.fleet, ONE)))
print("ready", flush=True)
time.sleep(60)
"""


def test_replicas_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    first = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), here], stdout=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdout.readline() == b"ready\n"
    first.kill()
    first.wait()
    first.stdout.close()
    world = Local(tmp_path)
    try:
        wait(lambda: bool(ready(world.fleet, ONE)))
        assert world.fleet.replicas()[0].restarts == 0
        assert ask(ready(world.fleet, ONE)[0])["version"] == ONE
    finally:
        world.fleet.close(stop=True)

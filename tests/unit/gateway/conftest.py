import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import RouteSpec
from lockgate.gateway.envoy import EnvoyGateway

REPLICA = Path(__file__).with_name("replica.py")
ROUTE, MODEL = "acme/chat@local", "acme/chat"
CHAT = "/acme/chat/v1/chat/completions"


class Replicas:
    """Starts stand-in runtimes and ends them all."""

    def __init__(self):
        self.processes = {}

    def start(self, name, port=0):
        process = subprocess.Popen(
            [sys.executable, str(REPLICA), name, str(port)], stdout=subprocess.PIPE
        )
        endpoint = Endpoint(host="127.0.0.1", port=int(process.stdout.readline()))
        self.processes[endpoint] = process
        return endpoint

    def kill(self, endpoint):
        process = self.processes.pop(endpoint)
        process.kill()
        process.wait()
        process.stdout.close()

    def close(self):
        for endpoint in list(self.processes):
            self.kill(endpoint)


class Bench:
    """A gateway, its replicas, and the rows it delivered."""

    def __init__(self, home):
        self.home = home
        self.replicas = Replicas()
        self.rows = []
        self.gateway = None

    def open(self, **options):
        self.gateway = EnvoyGateway(
            state_dir=self.home / "s", run_dir=self.home / "r", sink=self.rows.extend, **options
        )
        return self.gateway

    def two_versions(self, **options):
        """Opens the gateway with a replica of `a`, which has all weight, and one of `b`."""
        self.open(**options)
        a, b = self.replicas.start("a"), self.replicas.start("b")
        self.gateway.set_pool(ROUTE, "a", [a])
        self.gateway.set_pool(ROUTE, "b", [b])
        self.weights(a=10_000, b=0)
        return a, b

    def weights(self, **weights):
        spec = RouteSpec(name=ROUTE, model=MODEL, weights=weights, baseline="a")
        return self.gateway.set_route(spec)

    def client(self, timeout=20):
        host, _, port = self.gateway.address.removeprefix("http://").partition(":")
        return http.client.HTTPConnection(host, int(port), timeout=timeout)

    def ask(self, path=CHAT, body=None, headers=None, connection=None):
        """Returns (status, version, text) of one request."""
        used = connection or self.client()
        kind = {"content-type": "application/json"}
        used.request("POST", path, json.dumps(body or {}), {**kind, **(headers or {})})
        response = used.getresponse()
        found = response.status, response.getheader("x-version"), response.read().decode()
        if connection is None:
            used.close()
        return found

    def wait_rows(self, count, seconds=8.0):
        deadline = time.monotonic() + seconds
        while len(self.rows) < count and time.monotonic() < deadline:
            time.sleep(0.05)
        return list(self.rows)

    def close(self):
        try:
            if self.gateway is not None:
                self.gateway.close(stop=True)
        finally:
            self.replicas.close()


class Load:
    """Asks without a pause from several threads and counts what came back."""

    def __init__(self, bench, threads=6, body=None, headers=None):
        self.bench, self.body, self.headers = bench, body, headers
        self.served, self.failed = [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self):
        connection = self.bench.client()
        while not self._stop.is_set():
            try:
                status, version, text = self.bench.ask(
                    body=self.body, headers=self.headers, connection=connection
                )
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(repr(error))
                connection.close()
                continue
            if status == 200 and (not self.body or "[DONE]" in text):
                self.served.append(version)
            else:
                self.failed.append((status, text))
        connection.close()


@pytest.fixture
def bench(tmp_path_factory):
    made = Bench(tmp_path_factory.mktemp("g"))
    yield made
    made.close()


@pytest.fixture
def load():
    return Load

"""A site: a real server with a real Envoy and real replicas, driven through the CLI and the API."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lockgate.client.client import Client, connect
from lockgate.core.errors import NotFoundError, TemporaryError

from .calls import MODELS

CHAT, CREDIT = "acme/chat", "acme/credit"


class Site:
    """One home folder and the server over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".lockgate"
        self.process: subprocess.Popen[bytes] | None = None
        self.gateway = 0
        self.port = 0

    def start(self) -> Site:
        """Starts the server, waits until it answers; the ports of the first start are kept."""
        self.launch()
        wait(self._answers, 40)
        with self.client() as client:
            self.port = int(client.url.rpartition(":")[2])
            self.gateway = int(client.get("/status")["gateway"].rpartition(":")[2])
        return self

    def launch(self) -> None:
        """Starts the server and goes on at once."""
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "server.json").unlink(missing_ok=True)
        with (self.folder / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lockgate.cli", "serve", "--port", str(self.port),
                 "--gateway-port", str(self.gateway)],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "serve.log").read_text()
        try:
            with self.client() as client:
                client.get("/status")
        except (NotFoundError, TemporaryError):
            return False
        return True

    def kill(self) -> None:
        """kill -9 of the server; what it started goes on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ends the server as Ctrl-C does; returns its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill_at_each_event(self, release: str, between: Callable[[], None]) -> int:
        """kill -9 of the server as soon as it wrote an event of `release`, until it is promoted.

        Reads the ledger's file, for a server that starts again writes more before it answers.
        Calls `between` while no server runs; returns how often it was killed.
        """
        seen = kills = 0
        deadline = time.monotonic() + 150
        while time.monotonic() < deadline:
            told = self.recorded(release)
            if "ReleasePromoted" in told:
                break
            if len(told) > seen:
                seen = len(told)
                self.kill()
                kills += 1
                between()
                self.launch()
            time.sleep(0.002)
        wait(self._answers, 40)
        return kills

    def recorded(self, release: str) -> list[str]:
        """Returns the kinds of a release's events, from the ledger's file."""
        query = "SELECT kind FROM event WHERE stream = ? ORDER BY version"
        with closing(sqlite3.connect(f"file:{self.home / 'ledger.db'}?mode=rw", uri=True)) as file:
            return [kind for (kind,) in file.execute(query, (f"release/{release}",))]

    def client(self) -> Client:
        return connect(self.home, actor="tester")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.gateway}"

    def run(self, *arguments: str, code: int = 0) -> str:
        """Runs the CLI in the site's folder; returns stdout; the exit code must be `code`."""
        done = subprocess.run(
            [sys.executable, "-m", "lockgate.cli", *arguments],
            cwd=self.folder, capture_output=True, text=True, timeout=180,
            env={**os.environ, "USER": "tester", "NO_COLOR": "1"},
        )  # fmt: skip
        assert done.returncode == code, (
            f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        )
        self.said = done.stderr
        return done.stdout

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Runs the CLI with --json; returns the value."""
        return json.loads(self.run(*arguments, "--json", code=code))

    def serve_first(self, model: str, name: str, *arguments: str) -> None:
        """Publishes `name`-v1 as the first version of `model` and brings it into service."""
        self.run("publish", str(MODELS / f"{name}-v1"), model)
        self.run("release", model, "v1", *arguments)

    def open(self, model: str, version: int, **settings: Any) -> str:
        """Opens a release by spec through the API; returns its id."""
        spec = {
            "model": model, "version": f"v{version}", "bucket": "1s", "keep_previous": "10m",
            "strategy": {"canary": [10, 50, 100], "bake": "1s", "min_requests": 20,
                         "give_up_after": "60s"},
            "checks": [{"signal": "error_rate", "worse_by_at_most": "25%", "floor": "1%"}],
        } | settings  # fmt: skip
        with self.client() as client:
            name: str = client.release({"spec": spec})["release"]
            return name

    def ended(self, release: str, seconds: float = 90) -> Any:
        """Waits until a release is final; returns its view."""
        with self.client() as client:
            *_, view = client.watch(release, timeout=seconds)
            return view

    def pids(self, kind: str) -> list[int]:
        """Returns the pids of this home's `envoy` or `replica` processes."""
        pattern = "gateway/envoy.lock" if kind == "envoy" else "fleet/*/lock"
        texts = [path.read_text() for path in self.home.glob(pattern)]
        return [int(text) for text in texts if text.isdigit() and runs(text)]


def runs(pid: str) -> bool:
    """Says whether a process runs; one that ended and that nobody asked about does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def wait(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        yield made.start()
    finally:
        end(made)


def end(site: Site) -> None:
    """Stops the site, its orphans too when the server was killed and not started again."""
    if site.process is not None and site.process.poll() is not None:
        site.start()
    site.stop()
    assert site.pids("envoy") == []
    assert site.pids("replica") == []

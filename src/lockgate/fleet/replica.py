"""One supervised replica of the local target: start, ready, warm, watch, restart, drain.

Its folder holds `replica.json` (what it is; written before it is started), `lock` (held while it
runs), `log`. A supervisor that was killed leaves the replica running; the next one adopts it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from lockgate.core import canonical
from lockgate.core.codec import from_json, to_json
from lockgate.core.errors import IntegrityError, LockgateError
from lockgate.core.traffic import Endpoint, without_twin
from lockgate.fleet.api import Job, Probe, Replica, ReplicaSpec, ReplicaState
from lockgate.fleet.runtimes.choose import choose
from lockgate.host.detached import Detached
from lockgate.store.durable import write_durably

_POLL_S = 0.1
_PROBE_TIMEOUT_S = 5.0
_WARMUP_TIMEOUT_S = 60.0
_LIVENESS_EVERY_S = 5.0
_LIVENESS_FAILURES = 6
_BACKOFF_MAX_S = 30.0
_STEADY_S = 300.0
_MAX_STARTS = 4
_CRASHES = 10
_HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What `replica.json` says: the wish, the place in it, and where it listens."""

    spec: ReplicaSpec
    index: int
    port: int
    runtime: str = ""
    ready: Probe | None = None
    warmups: tuple[Probe, ...] = ()
    was_ready: bool = False


class Supervisor(threading.Thread):
    """Keeps one replica as its wish says, until told to let go or to drain."""

    def __init__(
        self, folder: Path, spec: ReplicaSpec, index: int, files: Callable[[str], Path]
    ) -> None:
        super().__init__(name=f"replica-{folder.name}", daemon=True)
        self._folder = folder
        self._files = files
        self._record = load(folder) or Record(spec=spec, index=index, port=free_port())
        self._process = Detached(lock=folder / "lock", log=folder / "log")
        self._leave = threading.Event()
        self._drain = threading.Event()
        self._starts = 0
        self._trouble = ""
        self._view = Replica(
            name=folder.name,
            route=spec.route,
            version=spec.version,
            state="starting",
            since=time.time(),
            runtime=self._record.runtime,
            index=index,
        )

    @property
    def spec(self) -> ReplicaSpec:
        """The wish that it was made for."""
        return self._record.spec

    @property
    def index(self) -> int:
        """Its place among the replicas of its version, from 0."""
        return self._record.index

    def view(self) -> Replica:
        """Returns what is known of the replica now."""
        return self._view

    def drain(self) -> None:
        """Asks it to finish its requests and end; returns at once."""
        self._drain.set()

    def leave(self) -> None:
        """Stops supervising; the process goes on."""
        self._leave.set()

    def run(self) -> None:
        """Supervises until left or drained; afterwards, drained, its folder is gone."""
        try:
            self._supervise()
        except LockgateError as error:
            self._show("failed", error.message)
        except OSError as error:
            self._show("failed", f"the replica can't be run: {error}")
        while not self._leave.is_set() and not self._drain.wait(_POLL_S):
            pass
        if self._drain.is_set():
            self._finish()

    def _supervise(self) -> None:
        while not self._done():
            if self._process.alive():
                self._show("starting", "adopted")
            elif not self._begin():
                return
            if self._become_ready():
                self._watch()
            if self._done():
                return
            self._process.kill()
            self._back_off()

    def _done(self) -> bool:
        return self._leave.is_set() or self._drain.is_set()

    def _begin(self) -> bool:
        """Starts the process; False when it failed too often."""
        if self._starts >= _MAX_STARTS:
            self._show("failed", self._last_words())
            return False
        spec = self._record.spec
        self._show("starting", "restoring its files")
        folder = self._files(without_twin(spec.version))
        port = self._record.port if self._record.was_ready else free_port()
        runtime = choose(folder, spec.runtime)
        launch = runtime.launch(
            Job(
                folder=folder,
                model=spec.route.rpartition("@")[0],
                version=without_twin(spec.version),
                endpoint=Endpoint(host=_HOST, port=port),
                options=spec.options,
            )
        )
        self._record = replace(
            self._record,
            port=port,
            runtime=runtime.name,
            ready=launch.ready,
            warmups=launch.warmups,
            was_ready=False,
        )
        self._save()
        self._show("starting", self._trouble)
        self._process.start(
            launch.argv,
            env={**os.environ, **launch.env},
            folder=self._folder,
            memory_bytes=(spec.memory_mb or 0) * 1_000_000,
        )
        self._starts += 1
        return True

    def _become_ready(self) -> bool:
        ready = self._record.ready
        deadline = time.monotonic() + self._record.spec.start_timeout_s
        while not self._done() and self._process.alive() and ready is not None:
            if time.monotonic() > deadline:
                self._show("backoff", f"not ready after {self._record.spec.start_timeout_s:.0f} s")
                return False
            if self._probe(ready):
                return self._warm_up()
            time.sleep(_POLL_S)
        if not self._done():
            self._show("backoff", self._last_words())
        return False

    def _warm_up(self) -> bool:
        """Sends the warm-up requests, unless it was ready before we adopted it."""
        if not self._record.was_ready:
            self._show("warming", "")
            for warmup in self._record.warmups:
                if not self._probe(warmup, timeout=_WARMUP_TIMEOUT_S):
                    self._show("backoff", f"the warm-up request to {warmup.path} failed")
                    return False
            self._record = replace(self._record, was_ready=True)
            self._save()
        self._show("ready", "")
        return True

    def _watch(self) -> None:
        """Returns when the process ended, hangs, or we are done."""
        since = checked = time.monotonic()
        misses = 0
        while not self._done():
            time.sleep(_POLL_S)
            if not self._process.alive():
                self._show("backoff", self._last_words())
                return
            now = time.monotonic()
            if now - since > _STEADY_S:
                self._starts = 0
            if now - checked >= _LIVENESS_EVERY_S and self._record.ready is not None:
                checked = now
                misses = 0 if self._probe(self._record.ready) else misses + 1
            if misses >= _LIVENESS_FAILURES:
                self._show("backoff", "it runs but does not answer")
                return

    def _back_off(self) -> None:
        self._view = replace(
            self._view,
            restarts=self._view.restarts + 1,
            crashes=(*self._view.crashes, time.time())[-_CRASHES:],
        )
        self._trouble = self._view.message
        pause = min(0.25 * 2**self._starts, _BACKOFF_MAX_S)
        deadline = time.monotonic() + pause
        while not self._done() and time.monotonic() < deadline:
            time.sleep(_POLL_S)

    def _finish(self) -> None:
        self._show("draining", "")
        self._process.stop(self._record.spec.drain_s)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_words(self) -> str:
        words = " · ".join(line.strip() for line in self._process.log_tail(2).splitlines())
        return words[-400:] or "it ended without a word"

    def _probe(self, probe: Probe, timeout: float = _PROBE_TIMEOUT_S) -> bool:
        return passes(probe, Endpoint(host=_HOST, port=self._record.port), timeout)

    def _show(self, state: ReplicaState, message: str) -> None:
        endpoint = Endpoint(host=_HOST, port=self._record.port)
        since = self._view.since if self._view.state == state else time.time()
        self._view = replace(
            self._view,
            state=state,
            since=since,
            message=message,
            endpoint=endpoint,
            runtime=self._record.runtime,
        )

    def _save(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        data = canonical.encode(to_json(self._record))
        write_durably(self._folder / "replica.json", data, self._folder)


def load(folder: Path) -> Record | None:
    """Returns what `replica.json` in `folder` says; None when there is none that can be read."""
    try:
        return from_json(Record, json.loads((folder / "replica.json").read_bytes()))
    except (OSError, ValueError, IntegrityError):
        return None


def free_port() -> int:
    """Returns a port of the loopback address that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def passes(probe: Probe, endpoint: Endpoint, timeout: float) -> bool:
    """Sends `probe` to `endpoint`; says whether a 2xx answer came whole in `timeout` seconds."""
    connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=timeout)
    try:
        body = None if probe.body is None else canonical.encode(to_json(probe.body))
        headers = {"content-type": "application/json"} if body else {}
        connection.request(probe.method, probe.path, body=body, headers=headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    else:
        return 200 <= answer.status < 300
    finally:
        connection.close()

"""The Envoy process: started, adopted, watched, and asked through its admin socket.

It is a `Detached` process: it outlives a control plane that was killed, and the next one adopts it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from lockgate.core.errors import ConflictError, PermanentError, TemporaryError
from lockgate.host.detached import Detached, Lock

_LOG = logging.getLogger(__name__)
_BACK_OFF_MAX = 10.0
_STEADY_AFTER = 30.0
_OPEN_FILES = 65_536


class Proxy:
    """One supervised Envoy over one state directory."""

    def __init__(self, *, argv: Sequence[str], state_dir: Path) -> None:
        self._argv = list(argv)
        self._process = Detached(lock=state_dir / "envoy.lock", log=state_dir / "envoy.log")
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self.restarts = 0

    def ensure(self) -> None:
        """Starts Envoy unless it runs, and watches it from now on."""
        self._start_if_dead()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="lockgate-envoy")
        self._watcher.start()

    def alive(self) -> bool:
        """Says whether Envoy runs."""
        return self._process.alive()

    def pid(self) -> int | None:
        """Returns Envoy's process id, None when it does not run."""
        return self._process.pid()

    def release(self) -> None:
        """Stops watching; Envoy goes on."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join(5.0)
            self._watcher = None

    def stop(self, patience: float = 5.0) -> None:
        """Ends Envoy: SIGTERM, and SIGKILL when it is still there after `patience` seconds."""
        self.release()
        self._process.stop(patience)

    def log_tail(self, lines: int = 20) -> str:
        """Returns the last lines that Envoy wrote."""
        return self._process.log_tail(lines)

    def _start_if_dead(self) -> bool:
        return self._process.start(self._argv, open_files=_OPEN_FILES)

    def _watch(self) -> None:
        pause, since = 0.1, time.monotonic()
        while not self._stop.wait(0.1):
            if self.alive():
                if time.monotonic() - since > _STEADY_AFTER:
                    pause = 0.1
                continue
            _LOG.warning("Envoy ended; starting it again in %.1f s", pause)
            if self._stop.wait(pause):
                return
            pause, since = min(pause * 2, _BACK_OFF_MAX), time.monotonic()
            self.restarts += int(self._start_if_dead())


class Admin:
    """Envoy's admin interface over its unix socket."""

    def __init__(self, path: Path) -> None:
        self._client = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://envoy", timeout=5.0
        )

    def get(self, path: str) -> Any:
        """Returns the JSON at `path`; raises TemporaryError when Envoy does not answer."""
        try:
            return self._client.get(path).raise_for_status().json()
        except (httpx2.HTTPError, ValueError) as error:
            raise TemporaryError(f"the proxy's admin interface did not answer: {error}") from error

    def post(self, path: str) -> None:
        """Posts to `path`; raises TemporaryError when Envoy does not answer."""
        try:
            self._client.post(path).raise_for_status()
        except httpx2.HTTPError as error:
            raise TemporaryError(f"the proxy's admin interface did not answer: {error}") from error

    def stats(self, pattern: str) -> dict[str, Any]:
        """Returns the counters, gauges and texts whose names match the expression `pattern`."""
        found: dict[str, Any] = {}
        for kind in ("", "&type=TextReadouts"):
            answer = self.get(f"/stats?format=json&filter={pattern}{kind}")
            found |= {row["name"]: row["value"] for row in answer["stats"] if "value" in row}
        return found

    def healthy(self) -> dict[str, set[tuple[str, int]]]:
        """Returns cluster → addresses that Envoy would send a request to now."""
        usable: dict[str, set[tuple[str, int]]] = {}
        for cluster in self.get("/clusters?format=json").get("cluster_statuses", []):
            hosts = usable.setdefault(cluster["name"], set())
            for host in cluster.get("host_statuses", []):
                address = host.get("address", {}).get("socket_address")
                health = host.get("health_status", {})
                if address and health == {"eds_health_status": "HEALTHY"}:
                    hosts.add((address["address"], address["port_value"]))
        return usable

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()


def own(path: Path) -> Lock:
    """Returns the control plane's lock; raises ConflictError when another one holds it."""
    lock = Lock(path)
    if not lock.take():
        raise ConflictError(
            f"another control plane drives the gateway in {path.parent}",
            hint="stop it first, or use another state directory",
        )
    return lock


def check_port(host: str, port: int) -> None:
    """Raises PermanentError when callers can't be listened for at `host`:`port`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PermanentError(
                f"callers can't be listened for at {host}:{port}: {error.strerror or error}",
                hint="take another port with --gateway-port, or 0 for any that is free",
            ) from error


def check_socket(path: Path) -> Path:
    """Returns `path`; raises PermanentError when it is too long for a unix socket."""
    if len(os.fsencode(str(path))) >= 100:
        raise PermanentError(
            f"the path of the gateway's socket is too long: {path}",
            hint="choose a run directory with a path shorter than 80 characters",
        )
    return path

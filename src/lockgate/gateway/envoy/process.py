"""The Envoy process: started, adopted, watched, and asked through its admin socket.

Alive means: the lock on `envoy.lock` is held. The launcher takes over the lock from us as an
inherited descriptor, writes its pid into the file, and becomes Envoy by exec, so the lock lives
exactly as long as the proxy, whoever started it, and a pid is never trusted alone. Envoy runs in
its own session and writes to a file: it does not notice when the control plane dies.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx2

from lockgate.core.errors import ConflictError, PermanentError, TemporaryError

_LOG = logging.getLogger(__name__)
_LAUNCHER = """
import os, resource, sys
fd = int(sys.argv[1])
os.ftruncate(fd, 0)
os.pwrite(fd, str(os.getpid()).encode(), 0)
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
os.execv(sys.argv[2], sys.argv[2:])
"""
_BACK_OFF_MAX = 10.0
_STEADY_AFTER = 30.0
_LOG_MAX = 16 << 20


class Lock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fd: int | None = None

    def take(self, *, shared: bool = False) -> bool:
        """Takes the lock; returns False when somebody holds it. Probes share, owners do not."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self.fd = fd
        return True

    def release(self) -> None:
        """Lets go of our descriptor; a child that inherited it keeps the lock."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None


class Proxy:
    """One supervised Envoy over one state directory."""

    def __init__(self, *, argv: Sequence[str], state_dir: Path) -> None:
        self._argv = list(argv)
        self._lock_path = state_dir / "envoy.lock"
        self._log_path = state_dir / "envoy.log"
        self._child: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None
        self.restarts = 0

    def ensure(self) -> None:
        """Starts Envoy unless it runs, and watches it from now on."""
        self._start_if_dead()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="lockgate-envoy")
        self._watcher.start()

    def alive(self) -> bool:
        """Says whether Envoy runs: whether its lock is held."""
        lock = Lock(self._lock_path)
        if lock.take(shared=True):
            lock.release()
            return False
        return True

    def pid(self) -> int | None:
        """Returns Envoy's process id, None when it does not run."""
        for _ in range(50):
            if not self.alive():
                return None
            text = self._lock_path.read_text()
            if text.isdigit():
                return int(text)
            time.sleep(0.02)
        return None

    def release(self) -> None:
        """Stops watching; Envoy goes on."""
        self._stop.set()
        if self._watcher is not None:
            self._watcher.join(5.0)
            self._watcher = None

    def stop(self, patience: float = 5.0) -> None:
        """Ends Envoy: SIGTERM, and SIGKILL when it is still there after `patience` seconds."""
        self.release()
        for number in (signal.SIGTERM, signal.SIGKILL):
            pid = self.pid()
            if pid is None:
                break
            os.kill(pid, number)
            deadline = time.monotonic() + patience
            while self.alive() and time.monotonic() < deadline:
                self._reap()
                time.sleep(0.02)
        self._reap()

    def log_tail(self, lines: int = 20) -> str:
        """Returns the last lines that Envoy wrote, 8 KiB at most."""
        try:
            text = self._log_path.read_bytes()[-8192:].decode(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def _start_if_dead(self) -> bool:
        lock = Lock(self._lock_path)
        if not lock.take() or lock.fd is None:
            return False
        # The launcher writes the new pid; until then nobody may read the old one.
        os.ftruncate(lock.fd, 0)
        launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(lock.fd)]
        try:
            if self._log_path.exists() and self._log_path.stat().st_size > _LOG_MAX:
                self._log_path.replace(self._log_path.with_suffix(".log.1"))
            with self._log_path.open("ab") as log:
                self._child = subprocess.Popen(
                    [*launcher, *self._argv],
                    pass_fds=(lock.fd,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    close_fds=True,
                )
        finally:
            lock.release()
        return True

    def _watch(self) -> None:
        pause, since = 0.1, time.monotonic()
        while not self._stop.wait(0.1):
            self._reap()
            if self.alive():
                if time.monotonic() - since > _STEADY_AFTER:
                    pause = 0.1
                continue
            _LOG.warning("Envoy ended; starting it again in %.1f s", pause)
            if self._stop.wait(pause):
                return
            pause, since = min(pause * 2, _BACK_OFF_MAX), time.monotonic()
            self.restarts += int(self._start_if_dead())

    def _reap(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._child = None


class Admin:
    """Envoy's admin interface over its unix socket."""

    def __init__(self, socket: Path) -> None:
        self._client = httpx2.Client(
            transport=httpx2.HTTPTransport(uds=str(socket)), base_url="http://envoy", timeout=5.0
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


def check_socket(path: Path) -> Path:
    """Returns `path`; raises PermanentError when it is too long for a unix socket."""
    if len(os.fsencode(str(path))) >= 100:
        raise PermanentError(
            f"the path of the gateway's socket is too long: {path}",
            hint="choose a run directory with a path shorter than 80 characters",
        )
    return path

"""A fleet in memory: for tests and simulations. Replicas start, crash and stop when told to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lockgate.core.errors import PermanentError
from lockgate.core.traffic import Endpoint
from lockgate.fleet.api import Replica, ReplicaSpec

_FIRST_PORT = 20_000


class MemoryFleet:
    """`Fleet` in a dictionary. A replica is ready `start_s` after it was asked for."""

    def __init__(self, now: Callable[[], float], *, start_s: float = 0.0) -> None:
        self._now = now
        self._start_s = start_s
        self._replicas: dict[str, Replica] = {}
        self._ports = _FIRST_PORT
        self.impossible: set[str] = set()
        """Versions that no runtime can serve; tests fill it."""
        self.broken: set[str] = set()
        """Versions whose replicas give up; tests fill it."""

    def set_replicas(self, spec: ReplicaSpec) -> None:
        """See `Fleet.set_replicas`."""
        if spec.version in self.impossible and spec.count:
            raise PermanentError(f"no runtime can serve {spec.version}")
        for index in range(spec.count):
            name = f"{spec.route}/{spec.version}/{index}"
            if name not in self._replicas:
                self._ports += 1
                self._replicas[name] = Replica(
                    name=name,
                    route=spec.route,
                    version=spec.version,
                    state="starting",
                    since=self._now(),
                    endpoint=Endpoint(host="127.0.0.1", port=self._ports),
                    runtime=spec.runtime or "memory",
                    index=index,
                )
        for name, replica in tuple(self._replicas.items()):
            mine = (replica.route, replica.version) == (spec.route, spec.version)
            if mine and int(name.rpartition("/")[2]) >= spec.count:
                del self._replicas[name]

    def replicas(self) -> Sequence[Replica]:
        """See `Fleet.replicas`."""
        for name, replica in self._replicas.items():
            if replica.version in self.broken:
                self._replicas[name] = replace(replica, state="failed", message="it will not start")
            elif replica.state == "starting" and self._now() >= replica.since + self._start_s:
                self._replicas[name] = replace(replica, state="ready")
        return tuple(self._replicas.values())

    def crash(self, version: str, restarts: int = 1) -> None:
        """Makes every replica of `version` look as if it had crashed that often."""
        for name, replica in self._replicas.items():
            if replica.version == version:
                self._replicas[name] = replace(
                    replica, state="starting", restarts=replica.restarts + restarts,
                    crashes=(*replica.crashes, *([self._now()] * restarts)),
                    since=self._now(), message="exit status 1",
                )  # fmt: skip

    def close(self, *, stop: bool) -> None:
        """See `Fleet.close`."""
        if stop:
            self._replicas.clear()

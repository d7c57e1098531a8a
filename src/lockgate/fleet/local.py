"""The local target: replicas as supervised processes of this machine.

    <root>/<route>.<version>.<index>/   one folder a replica; see `replica`

A replica outlives this object unless it is told to stop; the next one over `root` adopts it.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lockgate.core.digests import hex_of
from lockgate.core.errors import ConflictError
from lockgate.core.traffic import without_twin
from lockgate.fleet.api import Replica, ReplicaSpec
from lockgate.fleet.replica import Supervisor, load
from lockgate.host.detached import Lock

_UNSAFE = re.compile(r"[^a-z0-9._-]+")


class LocalFleet:
    """`Fleet` on this machine. `files` gives the folder of a version's restored files.

    `dropped` is told a version when its last replica is gone. Raises ConflictError when another
    process drives the replicas below `root`.
    """

    def __init__(
        self,
        root: Path,
        *,
        files: Callable[[str], Path],
        dropped: Callable[[str], None] | None = None,
    ) -> None:
        root = root.resolve()  # replicas work in folders of their own
        root.mkdir(parents=True, exist_ok=True)
        self._root = root
        self._files = files
        self._dropped = dropped
        self._lock = threading.RLock()
        self._owner = Lock(root / "owner.lock")
        if not self._owner.take():
            raise ConflictError(
                f"another lockgate drives the replicas in {root}",
                hint="one server a state folder: stop the other one, or use another --home",
            )
        self._supervisors: dict[str, Supervisor] = {}
        self._adopt()

    def _adopt(self) -> None:
        for folder in sorted(self._root.iterdir()):
            record = load(folder) if folder.is_dir() else None
            if record is not None:
                self._supervise(folder, record.spec, record.index)

    def _supervise(self, folder: Path, spec: ReplicaSpec, index: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        supervisor = Supervisor(folder, spec, index, self._files)
        self._supervisors[folder.name] = supervisor
        supervisor.start()

    def set_replicas(self, spec: ReplicaSpec) -> None:
        """See `Fleet.set_replicas`."""
        with self._lock:
            self._sweep()
            for index in range(spec.count):
                name = replica_name(spec, index)
                if name not in self._supervisors:
                    self._supervise(self._root / name, spec, index)
            for supervisor in self._supervisors.values():
                known = supervisor.spec
                if (known.route, known.version) != (spec.route, spec.version):
                    continue
                other = spec.count > 0 and replace(known, count=spec.count) != spec
                if supervisor.index >= spec.count or other:
                    supervisor.drain()  # one that shall run otherwise comes back when it is gone

    def _sweep(self) -> None:
        """Forgets replicas that are drained and gone."""
        gone = [name for name, found in self._supervisors.items() if not found.is_alive()]
        versions = {without_twin(self._supervisors.pop(name).spec.version) for name in gone}
        left = {without_twin(found.spec.version) for found in self._supervisors.values()}
        if self._dropped is not None:
            for version in versions - left:
                self._dropped(version)

    def replicas(self) -> Sequence[Replica]:
        """See `Fleet.replicas`."""
        with self._lock:
            self._sweep()
            return tuple(found.view() for found in self._supervisors.values())

    def close(self, *, stop: bool) -> None:
        """See `Fleet.close`."""
        with self._lock:
            for supervisor in self._supervisors.values():
                if stop:
                    supervisor.drain()
                else:
                    supervisor.leave()
            for supervisor in self._supervisors.values():
                supervisor.join(supervisor.spec.drain_s + 10.0 if stop else 10.0)
            self._owner.release()


def replica_name(spec: ReplicaSpec, index: int) -> str:
    """Returns the folder name of one replica: route, version and place in it."""
    route = _UNSAFE.sub("-", spec.route)
    real = without_twin(spec.version)
    twin = "" if real == spec.version else "twin-"
    return f"{route}.{twin}{hex_of(real)[:16]}.{index}"

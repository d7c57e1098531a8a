"""One operation of one store in a process of its own, so that its CPU time and memory are its own.

    python store_worker.py NAME STORE put FOLDER LABEL [PARENT]
    python store_worker.py NAME STORE get TARGET LABEL

prints a line of JSON. Imports are outside of the clock; opening the store is inside of it.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from peers import Peer, bytes_of
from store_tensors import peers

ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What an operation took: seconds, peak resident bytes, bytes of the store after it."""

    cpu: float
    wall: float
    peak: int
    size: int
    parts: dict[str, int]


class Lockgate(Peer):
    """The real path: `publish` into packs in a folder, `restore` out of them, a SQLite ledger."""

    name = "lockgate"

    def ready(self, folder: Path, label: str) -> None:
        import lockgate.ledger.sqlite
        import lockgate.registry.publish
        import lockgate.registry.restore
        import lockgate.store.packs  # noqa: F401
        from lockgate.host.memory import keep_freed_memory

        keep_freed_memory()  # as the command line does

    def _open(self):
        from lockgate.core.clock import SystemClock
        from lockgate.ledger.sqlite import SqliteLedger
        from lockgate.registry.service import Registry
        from lockgate.store.blobs.local import LocalBlobs
        from lockgate.store.packs import PackStore

        objects = PackStore(LocalBlobs(self.store / "objects"))
        ledger = SqliteLedger(self.store / "ledger.db")
        return objects, Registry(ledger, objects, SystemClock())

    def put(self, folder: Path, label: str, parent: Path | None) -> None:
        from lockgate.registry.publish import publish
        from lockgate.registry.service import Details

        objects, registry = self._open()
        done = publish(
            folder, "bench/model", objects=objects, shelf=registry, details=Details(), actor="bench"
        )
        objects.close()
        (self.store / label).write_text(done.version.digest)

    def get(self, label: str, target: Path) -> None:
        from lockgate.registry.restore import restore

        objects, registry = self._open()
        manifest = registry.manifest((self.store / label).read_text())
        restore(manifest, target, objects)

    def size(self) -> int:
        return bytes_of(self.store / "objects")

    def parts(self) -> dict[str, int]:
        """Returns the bytes of payloads by codec, of frames' heads, and of what is no frame."""
        from lockgate.store.codec.frame import NAMES

        objects, _ = self._open()
        found: Counter[str] = Counter()
        for digest in objects.digests():
            frame = objects.frame(digest)
            place = objects.place(digest)
            found[NAMES[frame.codec]] += len(frame.payload)
            found["heads"] += place.length - len(frame.payload)
        found["packs"] = self.size() - found.total()
        return dict(found)


def stores() -> dict[str, type[Peer]]:
    """Returns every store by its name, ours first."""
    return {store.name: store for store in (Lockgate, *peers())}


def run(name: str, store: Path, verb: str, folder: Path, label: str, parent: str = "") -> Ran:
    """Runs one operation in a process of its own; raises RuntimeError when it fails."""
    argv = [sys.executable, __file__, name, str(store), verb, str(folder), label, parent]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **ONE_THREAD})
    if done.returncode:
        raise RuntimeError(f"{name} {verb} {label}: {done.stderr[-1500:]}")
    return Ran(**json.loads(done.stdout.splitlines()[-1]))


def cpu_seconds() -> float:
    """Returns user and system seconds of this process and of its children that ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def _peak() -> int:
    """Returns the peak of this process's own resident memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    name, store, verb, folder, label, parent = sys.argv[1:7]
    peer = stores()[name](Path(store))
    peer.ready(Path(folder), label)
    before, wall = cpu_seconds(), time.perf_counter()
    if verb == "put":
        peer.put(Path(folder), label, Path(parent) if parent else None)
    else:
        peer.get(label, Path(folder))
    result = {
        "cpu": cpu_seconds() - before,
        "wall": time.perf_counter() - wall,
        "peak": _peak(),
        "size": peer.size() if verb == "put" else 0,
        "parts": peer.parts() if verb == "put" and isinstance(peer, Lockgate) else {},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

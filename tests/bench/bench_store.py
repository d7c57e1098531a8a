"""Publish and restore a folder of random weights: us beside a plain copy with a SHA-256.

python tests/bench/bench_store.py [MEGABYTES]; prints MB per CPU-second and the ratio.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from lockgate.core.clock import SystemClock
from lockgate.ledger.memory import MemoryLedger
from lockgate.registry.publish import publish
from lockgate.registry.restore import restore
from lockgate.registry.service import Details, Registry
from lockgate.store.blobs.local import LocalBlobs
from lockgate.store.packs import PackStore


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Returns CPU seconds and wall seconds of `work`."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def copy_and_hash(source: Path, target: Path) -> None:
    """The plain way: copy each file, then hash the copy."""
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder = home / "model"
        folder.mkdir()
        draw = np.random.default_rng(1)
        for shard in range(4):
            arrays = {
                f"layer.{i}": draw.standard_normal(size * 1_000_000 // 4 // 8 // 4, np.float32)
                for i in range(8)
            }
            save_file(arrays, folder / f"model-{shard}.safetensors")
        objects = PackStore(LocalBlobs(home / "store"))
        registry = Registry(MemoryLedger(), objects, SystemClock())

        def put() -> None:
            publish(folder, "a/b", objects=objects, shelf=registry, details=Details(), actor="x")

        rows = [
            ("copy + SHA-256", timed(lambda: copy_and_hash(folder, home / "copy"))),
            ("publish", timed(put)),
            ("publish again", timed(put)),
        ]
        version = registry.version("a/b", "v1")
        manifest = registry.manifest(version.digest)
        rows.append(("restore", timed(lambda: restore(manifest, home / "out", objects))))
        base = rows[0][1][0]
        print(f"{manifest.size / 1e6:.0f} MB in 4 shards of 8 tensors")
        for label, (cpu, wall) in rows:
            rate = manifest.size / 1e6 / cpu
            print(f"{label:<15} {rate:8.0f} MB/CPU-s  {wall:6.2f} s wall  {base / cpu:5.1f} x")


if __name__ == "__main__":
    main()

"""Whether cost is linear in bytes and memory is not: three sizes, and an index of a million."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from peers import bytes_of
from store_report import Page, Target, same_files
from store_worker import Ran, run

ENTRIES = 1_000_000
PER_PACK = 64
_FAMILIES = Path(__file__).with_name("families.py")


def make(folder: Path, megabytes: int, *kinds: str) -> None:
    """Writes a synthetic family in a process of its own."""
    argv = [sys.executable, str(_FAMILIES), "synthetic", str(folder), str(megabytes), *kinds]
    subprocess.run(argv, check=True)


def scaling(page: Page, megabytes: Sequence[int], work: Path) -> None:
    """Measures each size, then the index."""
    page.say("## Scaling")
    page.say()
    rows = []
    rates: list[list[float]] = []
    for size in megabytes:
        needed = size * 3_200_000
        if shutil.disk_usage(work).free < needed + 2_000_000_000:
            page.say(f"{size} MB left out: it needs {needed / 1e9:.0f} GB of free disk.")
            continue
        raw, ran = _at(size, work)
        rates.append([raw / 1e9 / one.cpu for one in ran])
        cells = [f"{rate:.2f}" for rate in rates[-1]] + [f"{one.peak / 1e6:.0f}" for one in ran]
        rows.append((f"{raw / 1e9:.2f}", *cells))
    page.say("GB per CPU-second and peak resident MB (VmHWM of the process) of lockgate, by size:")
    page.say()
    page.table(
        ("GB", "publish base", "publish part", "restore part", "MB: base", "part", "restore"), rows
    )
    per_entry, opening = _index(work)
    page.say(f"A store of {ENTRIES:,} objects in {ENTRIES // PER_PACK:,} packs: its index takes")
    page.say(f"{per_entry:.0f} bytes an object; opening it takes {opening:.1f} CPU-seconds.")
    page.say()
    slowest = min(a / b for a, b in zip(rates[-1], rates[-2], strict=True)) if rates[1:] else 1.0
    page.targets(
        [
            Target(what="index, bytes an object", goal=100, found=per_entry),
            Target(what="rate at the largest ÷ next size", goal=0.8, found=slowest, less=False),
        ]
    )


def _at(size: int, work: Path) -> tuple[int, list[Ran]]:
    """Returns the raw bytes and what publishing `base`, `part` and restoring `part` took."""
    family, store, out = work / "family", work / "store", work / "out"
    make(family, size, "base", "part")
    raw = bytes_of(family / "part")
    ran = [run("lockgate", store, "put", family / "base", "base")]
    shutil.rmtree(family / "base")
    ran.append(run("lockgate", store, "put", family / "part", "part"))
    ran.append(run("lockgate", store, "get", out, "part"))
    if not same_files(family / "part", out):
        raise RuntimeError(f"lockgate lost bytes of {size} MB")
    for folder in (family, store, out):
        shutil.rmtree(folder)
    return raw, ran


def _index(work: Path) -> tuple[float, float]:
    """Returns bytes an entry and CPU seconds of opening a store of many small packs."""
    store = work / "index"
    argv = [sys.executable, __file__, str(store)]
    subprocess.run([*argv, "make"], check=True)
    done = subprocess.run([*argv, "open"], check=True, capture_output=True, text=True)
    shutil.rmtree(store)
    per_entry, opening = json.loads(done.stdout)
    return per_entry, opening


def _make_packs(store: Path) -> None:
    """Writes packs whose frames are empty: only their indexes matter here."""
    import random

    from lockgate.core.digests import Digest
    from lockgate.store.pack import Packed, compose

    draw = random.Random(5)
    for number in range(ENTRIES // PER_PACK):
        digests = [Digest(f"blake3:{draw.randbytes(32).hex()}") for _ in range(PER_PACK)]
        frames = [
            Packed(digest=digest, data=b"", size=4 << 20, codec=3, depth=1, deps=(digests[0],))
            for digest in digests
        ]
        name = f"{number:032x}"[::-1]
        path = store / "packs" / name[:2] / f"{name}.pack"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(compose(frames)[0]))


def _open_packs(store: Path) -> None:
    import gc

    from lockgate.core.digests import Digest
    from lockgate.store.blobs.local import LocalBlobs
    from lockgate.store.packs import PackStore

    PackStore(LocalBlobs(store / "empty"))  # what the code itself takes, before
    gc.collect()
    before, cpu = _resident(), time.process_time()
    objects = PackStore(LocalBlobs(store))
    objects.place(Digest(f"blake3:{0:064x}"))  # the first look sorts
    opening = time.process_time() - cpu
    gc.collect()
    assert len(objects.packs()) == ENTRIES // PER_PACK
    print(json.dumps([(_resident() - before) / ENTRIES, opening]))


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    {"make": _make_packs, "open": _open_packs}[sys.argv[2]](Path(sys.argv[1]))

"""Raw bytes per CPU-second, end to end, of us and every peer: interleaved, the median of some."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from blake3 import blake3
from peers import bytes_of, files_of
from store_report import Page, Target, same_files
from store_worker import cpu_seconds, run

VERBS = ("publish base", "publish part", "again", "restore part", "publish full", "restore full")
SLOW = ("zstd-3 --patch-from",)
Rates = dict[str, dict[str, list[float]]]


def speed(page: Page, names: Sequence[str], family: Path, work: Path, times: int) -> None:
    """Measures every store `times` times in turn."""
    names = [name for name in names if name not in SLOW]
    rates: Rates = defaultdict(lambda: defaultdict(list))
    for turn in range(times):
        for name, made in (("SHA-256", hashlib.sha256), ("BLAKE3", blake3)):
            rates[name]["again"].append(_hash_rate(family / "part", made))
        for name in names:
            for verb, rate in _once(name, family, work).items():
                rates[name][verb].append(rate)
            cells = " ".join(f"{verb} {rates[name][verb][-1]:.3f}" for verb in VERBS)
            print(f"   {turn + 1}/{times} {name}: {cells}", flush=True)
    _tell(page, rates, bytes_of(family / "part"), times)


def _hash_rate(folder: Path, made: Callable[[], object]) -> float:
    """Returns GB per CPU-second of reading and hashing, one thread."""
    before = cpu_seconds()
    for path in files_of(folder):
        hasher = made()
        with path.open("rb", buffering=0) as file:
            while block := file.read(4 << 20):
                hasher.update(block)  # type: ignore[attr-defined]
    return bytes_of(folder) / 1e9 / (cpu_seconds() - before)


def _once(name: str, family: Path, work: Path) -> dict[str, float]:
    """Returns GB per CPU-second of each verb."""
    store, other, out = work / "store", work / "other", work / "out"
    base = str(family / "base")
    rates: dict[str, float] = {}

    def put(verb: str, where: Path, kind: str, parent: str = "") -> None:
        for path in files_of(family / kind):
            os.utime(path)  # nobody may go by the time of a file that it knows
        cpu = run(name, where, "put", family / kind, kind, parent).cpu
        rates[verb] = bytes_of(family / kind) / 1e9 / cpu

    def get(verb: str, where: Path, kind: str) -> None:
        cpu = run(name, where, "get", out, kind).cpu
        rates[verb] = bytes_of(family / kind) / 1e9 / cpu
        if not same_files(family / kind, out):
            raise RuntimeError(f"{name} lost bytes of {kind}")
        shutil.rmtree(out)

    put("publish base", store, "base")
    if name != "dvc":  # its workspace is its own
        shutil.copytree(store, other, symlinks=True)
    put("publish part", store, "part", base)
    put("again", store, "part", base)
    get("restore part", store, "part")
    fresh = other if other.exists() else store
    put("publish full", fresh, "full", base)
    get("restore full", fresh, "full")
    shutil.rmtree(store)
    shutil.rmtree(other, ignore_errors=True)
    return rates


def _tell(page: Page, rates: Rates, size: int, times: int) -> None:
    page.say("## Throughput")
    page.say()
    page.say(
        f"GB of raw weights per CPU-second (user + system, children included), {size / 1e9:.2f}"
    )
    page.say(f"GB of synthetic bf16, median of {times}, in brackets the least and the most. `part`")
    page.say("and `full` are stored upon `base`; `again` is `part` once more, its files touched.")
    page.say()
    rows = [
        (name, *(_cell(found[verb]) if found[verb] else "" for verb in VERBS))
        for name, found in rates.items()
    ]
    page.table(("GB per CPU-second", *VERBS), rows)
    page.targets(_promises(rates))


def _cell(found: list[float]) -> str:
    return f"{median(found):.2f} ({min(found):.2f}–{max(found):.2f})"


def _promises(rates: Rates) -> list[Target]:
    def rate(name: str, verb: str) -> float:
        return median(rates[name][verb])

    targets = []
    for kind in ("part", "full"):
        for verb, goal in (("publish", 0.5), ("restore", 1.0)):
            what = f"{verb} {kind}"
            ours = rate("lockgate", what)
            targets.append(Target(what=what, goal=goal, found=ours, unit=" GB/s", less=False))
            for name in ("hf_xet", "BitX (zstd-3)", "BitX (zstd-1)"):
                if name in rates:
                    ratio = ours / rate(name, what)
                    targets.append(Target(what=f"{what} ÷ {name}", goal=3, found=ratio, less=False))
    again = rate("lockgate", "again") / rate("BLAKE3", "again")
    targets.append(Target(what="publish again ÷ BLAKE3", goal=0.8, found=again, less=False))
    return targets

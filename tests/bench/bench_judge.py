"""The judge beside what others do: false alarms, requests to the alarm, promotion, speed.

python tests/bench/bench_judge.py [--quick] [--only alarms|power|promotion|speed]; prints tables.
Seeds here are not those on which the stakes were tuned (200,000 on). One core, about half an hour.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from math import exp, log, sqrt

import numpy as np
from judge_baselines import BASELINES, Looks
from judge_traffic import ENVIRONMENTS, Run, columns, release
from numpy.typing import NDArray

from lockgate.analysis.checks import Check, JudgeRules, Look
from lockgate.analysis.judge import SequentialCase
from lockgate.analysis.rows import take
from lockgate.core.traffic import Sample

CHECKS = (
    Check(signal="error_rate", worse_by_at_most=0.5, tolerate=0.0),
    Check(signal="latency_mean", worse_by_at_most=0.05, tolerate=0.0),
    Check(signal="latency_p99", worse_by_at_most=0.2, tolerate=0.0),
    Check(signal="quality", worse_by_at_most=0.02, tolerate=0.0),
)
ADJUST = ("request_bytes",)
SHARES = (0.01, 0.05, 0.1, 0.5)
EFFECTS = ("err_x2", "p99_20", "mean_5", "qual_2", "leak")
ALPHAS = (0.05, 0.01)
LOOK = Look(now=0.0)
NEVER = float("inf")


def open_case(alpha: float = 0.05, checks: tuple[Check, ...] = CHECKS) -> SequentialCase:
    """Returns an empty case under the benchmark's rules: buckets of 5 s, size as a covariate."""
    rules = JudgeRules(checks=checks, alpha=alpha, beta=0.05, bucket_s=5.0, adjust=ADJUST)
    return SequentialCase(rules, candidate="new", baseline="old")


def ours(
    run: Run,
    alpha: float,
    checks: tuple[Check, ...] = CHECKS,
    *,
    step: float = 10.0,
    events: bool = False,
) -> float:
    """Returns the second of the look at which the case fails; looks every `step` seconds.

    Between the ends of buckets only `events` are new, so a look is asked for only with them.
    """
    rows = columns(run)
    ends = np.maximum.accumulate(rows["at"] + rows["duration"])  # type: ignore[operator]
    case, begin = open_case(alpha, checks), 0
    for second in np.arange(step, run.seconds + step, step):
        end = int(np.searchsorted(ends, 1e6 + second, side="right"))
        case.add_rows(take(rows, slice(begin, end)))
        begin = end
        if case.best >= -log(alpha) or (events and case.verdict(LOOK).outcome == "fail"):
            return float(second)
    return NEVER


def interval(hits: int, runs: int) -> tuple[float, float]:
    """Returns the 95 % interval of a share (Wilson)."""
    z, p = 1.96, hits / runs
    middle, wide = p + z * z / (2 * runs), z * sqrt(p * (1 - p) / runs + z * z / (4 * runs**2))
    return (middle - wide) / (1 + z * z / runs), (middle + wide) / (1 + z * z / runs)


def shown(hits: int, runs: int) -> str:
    """Returns `0.012 (0.008 to 0.018)`."""
    low, high = interval(hits, runs)
    return f"{hits / runs:.4f} ({low:.4f} to {high:.4f})"


def alarms(runs: int, environments: Sequence[str], seconds: float) -> None:
    """Unchanged releases of 40 requests/s through the case, watched at every bucket."""
    print(
        f"\n## False alarms of unchanged releases of {seconds:g} s, {runs} runs (95 % interval)\n"
    )
    print("| environment | alpha 0.05 | alpha 0.01 | mean evidence at the end | mismatched |")
    print("|---|---|---|---|---|")
    for environment in environments:
        best, finals, mismatched = [], [], 0
        for seed in range(runs):
            share = 0.3 if environment == "sticky" else 0.1
            run = release(1_000_000 + seed, share=share, environment=environment, seconds=seconds)
            case = open_case()
            case.add_rows(columns(run))
            best.append(case.best)
            verdict = case.verdict(LOOK)
            mismatched += "do not match" in verdict.reason
            finals.append(float(np.mean([c.e_value or 0.0 for c in verdict.checks])))
        cells = " | ".join(shown(sum(b >= -log(a) for b in best), runs) for a in ALPHAS)
        print(f"| {environment} | {cells} | {np.mean(finals):.3f} | {mismatched} |", flush=True)


def requests(run: Run, second: float) -> float:
    """Returns how many requests the candidate had got by `second`."""
    mine = run.at[run.arm == 1]
    return float(np.searchsorted(mine, second)) if second < NEVER else NEVER


def power(runs: int, quiet_runs: int, alpha: float = 0.05) -> None:
    """Requests of the candidate to the alarm: the case, and everybody else on the same runs."""
    names = list(BASELINES)
    print(f"\n## Requests to the alarm, alpha {alpha}, {runs} runs each\n")
    print("Share of runs with an alarm / median requests of the candidate; *: false alarms > alpha")
    print(f"in {quiet_runs} unchanged runs there (lower end of the 99 % interval above it).\n")
    print(f"| effect | share | lockgate | {' | '.join(names)} | ratio to the best valid |")
    print("|---|---|---|" + "---|" * (len(names) + 1))
    valid = {share: quiet(share, quiet_runs, alpha) for share in SHARES}
    quiet(0.0, max(quiet_runs // 5, 2), alpha, "ramp")  # told, and nothing follows from it
    ratios: list[tuple[str, float, float]] = []
    for effect in EFFECTS:
        for share in SHARES:
            found: dict[str, list[float]] = {name: [] for name in ("lockgate", *names)}
            for seed in range(runs):
                run = release(3_000_000 + seed, share=share, effect=effect)
                looks = Looks(run)
                found["lockgate"].append(requests(run, ours(run, alpha, events=effect == "err_x2")))
                for name, method in BASELINES.items():
                    found[name].append(requests(run, method(looks, alpha)))
            ratio = compare(found, valid[share])
            ratios.append((effect, share, ratio))
            cells = [cell(v) + ("" if n in (*valid[share], "lockgate") else " *")
                     for n, v in found.items()]  # fmt: skip
            print(f"| {effect} | {share} | {' | '.join(cells)} | {ratio:.2f} |", flush=True)
    known = [r for _, _, r in ratios if 0 < r < NEVER]
    print(f"\ngeometric mean of {len(known)} ratios: {exp(np.mean(np.log(known))):.3f}, "
          f"worst {max(known):.2f}; 0: no valid method finds it in half of the runs")  # fmt: skip


def quiet(share: float, runs: int, alpha: float, environment: str = "constant") -> set[str]:
    """Returns the methods whose false alarms may be alpha at that share and in that environment."""
    hits = dict.fromkeys(BASELINES, 0)
    for seed in range(runs):
        looks = Looks(release(2_000_000 + seed, share=share, environment=environment))
        for name, method in BASELINES.items():
            hits[name] += method(looks, alpha) < NEVER
    wide = 2.58 / 1.96
    print(
        f"unchanged, {environment}, {share}: "
        + ", ".join(f"{n} {h / runs:.3f}" for n, h in hits.items())
    )
    return {
        name
        for name, n in hits.items()
        if n / runs - wide * (n / runs - interval(n, runs)[0]) <= alpha
    }


def compare(found: Mapping[str, list[float]], valid: set[str]) -> float:
    """Returns our median over the best median of a valid method; 0 where there is none."""
    best = min((float(np.median(found[name])) for name in valid), default=NEVER)
    return float(np.median(found["lockgate"])) / best if best < NEVER else 0.0


def cell(values: list[float]) -> str:
    """Returns `0.93 / 1,204`."""
    share, middle = float(np.mean(np.isfinite(values))), float(np.median(values))
    return f"{share:.2f} / {middle:,.0f}" if middle < NEVER else f"{share:.2f} / –"


def broken(runs: int) -> None:
    """Errors 1 % to 20 % at 1 %: looks every second."""
    print(f"\n## A broken release at 1 %: requests of the candidate to the alarm, {runs} runs\n")
    for checks, words in ((CHECKS[:1], "error_rate alone"), (CHECKS, "all four checks")):
        for alpha in ALPHAS:
            found = []
            for seed in range(runs):
                run = release(4_000_000 + seed, share=0.01, effect="err_x20", seconds=300)
                found.append(requests(run, ours(run, alpha, checks, step=1.0, events=True)))
            print(f"{words}, alpha {alpha}: median {np.median(found):.0f}, "
                  f"90 % within {np.quantile(found, 0.9):.0f}")  # fmt: skip


def promotion(runs: int) -> None:
    """How often each check is proven safe: harmless versions, and versions at the margin."""
    print(f"\n## Proven safe within 10 minutes of 40 requests/s at 50 %, {runs} runs, beta 0.05\n")
    print("| version | error_rate | latency_mean | latency_p99 | quality | all |")
    print("|---|---|---|---|---|---|")
    for effect in ("none", "faster_10", "err_x15", "mean_5", "p99_20", "qual_2"):
        passed = np.zeros(len(CHECKS) + 1)
        for seed in range(runs):
            run = release(5_000_000 + seed, share=0.5, effect=effect, seconds=600)
            case = open_case(1e-6)
            case.add_rows(columns(run))
            proven = [c.outcome == "pass" for c in case.verdict(LOOK).checks]
            passed += [*proven, all(proven)]
        print(f"| {effect} | {' | '.join(f'{p / runs:.3f}' for p in passed)} |", flush=True)


def speed(seconds: float) -> None:
    """Rows a second on one core, as columns and as samples, three checks."""
    print("\n## Rows a second\n")
    for rate in (40.0, 1000.0):
        run = release(6_000_000, rate=rate, seconds=seconds * 40 / rate)
        rows = columns(run)
        requests_only = take(rows, rows["kind"] == 0)
        case, n = open_case(checks=CHECKS[:3]), len(requests_only["at"])
        start = time.perf_counter()
        for begin in range(0, n, 5000):
            case.add_rows(take(requests_only, slice(begin, begin + 5000)))
        took = time.perf_counter() - start
        samples = as_samples(requests_only)
        case = open_case(checks=CHECKS[:3])
        start = time.perf_counter()
        for begin in range(0, n, 5000):
            case.add(samples[begin : begin + 5000])
        slow = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(20):
            case.verdict(LOOK)
        look = (time.perf_counter() - start) / 20
        size = len(json.dumps(case.state()))
        print(f"{rate:g} requests/s: {n / took:,.0f} rows/s as columns, {n / slow:,.0f} as "
              f"samples; a look {look * 1000:.2f} ms; state {size:,} bytes")  # fmt: skip


def as_samples(rows: Mapping[str, NDArray[np.generic]]) -> list[Sample]:
    """Returns rows as the samples that the gateway hands over."""
    table = {name: column.tolist() for name, column in rows.items()}
    return [
        Sample(
            at=at, route="r", version="new" if arm else "old",
            propensity=share if arm else 1 - share, revision=1, status=500 if error else 200,
            duration_s=duration, first_body_s=duration / 2, bytes_in=int(exp(size)), tokens=20,
        )
        for at, duration, arm, share, error, size in zip(
            *(table[k] for k in ("at", "duration", "arm", "share", "error", "request_bytes")),
            strict=True,
        )
    ]  # fmt: skip


def main() -> None:
    """Runs the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few runs: two minutes")
    parser.add_argument("--only", choices=["alarms", "power", "promotion", "speed", "broken"])
    parser.add_argument("--environments", nargs="+", default=ENVIRONMENTS, choices=ENVIRONMENTS)
    parser.add_argument("--seconds", type=float, default=300.0, help="an unchanged release (300)")
    parser.add_argument("--runs", type=int, help="runs of each effect and share (40)")
    parser.add_argument("--alpha", type=float, default=0.05, help="for the power table (0.05)")
    options = parser.parse_args()
    quick = options.quick
    if options.only in (None, "speed"):
        speed(600 if quick else 6000)
    if options.only in (None, "alarms"):
        alarms(60 if quick else 2000, options.environments, options.seconds)
    if options.only in (None, "promotion"):
        promotion(10 if quick else 200)
    if options.only in (None, "broken"):
        broken(20 if quick else 200)
    if options.only in (None, "power"):
        runs = options.runs or (2 if quick else 40)
        power(runs, 5 if quick else max(6 * runs, 60), options.alpha)


if __name__ == "__main__":
    main()

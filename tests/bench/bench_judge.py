"""One look of the judge over a growing release: us beside a plain two-sample t-test (NumPy).

python tests/bench/bench_judge.py; prints seconds per look and the ratio.
"""

from __future__ import annotations

import time

import numpy as np

from lockgate.analysis.checks import Check, JudgeRules, Window
from lockgate.analysis.judge import SequentialJudge
from lockgate.core.traffic import Sample


def samples(count: int) -> list[Sample]:
    """Returns `count` unchanged requests at 100/s, a tenth of them the candidate's."""
    draw = np.random.default_rng(1)
    times, arms = draw.lognormal(-1, 0.5, count), draw.random(count) < 0.1
    return [
        Sample(
            at=i / 100, route="r", version="new" if arms[i] else "old",
            propensity=0.1 if arms[i] else 0.9, revision=1, status=200,
            duration_s=float(times[i]), first_body_s=float(times[i]) / 2, tokens=9,
        )
        for i in range(count)
    ]  # fmt: skip


def t_test(rows: list[Sample]) -> float:
    """The plain way: one look, valid once."""
    new = np.array([r.duration_s for r in rows if r.version == "new"])
    old = np.array([r.duration_s for r in rows if r.version == "old"])
    spread = np.sqrt(new.var() / len(new) + old.var() / len(old))
    return float((new.mean() - old.mean()) / spread)


def main() -> None:
    rules = JudgeRules(
        checks=(
            Check(signal="error_rate", worse_by_at_most=0.25, floor=0.001),
            Check(signal="latency_p95", worse_by_at_most=0.1),
        )
    )
    print("rows      judge, 2 checks   t-test, 1 look   ratio")
    for count in (1_000, 10_000, 100_000, 200_000):
        rows = samples(count)
        window = Window(samples=rows, candidate="new", baseline="old", step_from=0, now=1e9)
        start = time.perf_counter()
        SequentialJudge().judge(window, rules)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        t_test(rows)
        theirs = time.perf_counter() - start
        shown = f"{ours * 1000:10.1f} ms   {theirs * 1000:10.1f} ms   {ours / theirs:6.1f}"
        print(f"{count:>7,}   {shown}")


if __name__ == "__main__":
    main()

"""Made-up traffic for the judge's tests: requests of two versions, drawn as a proxy draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lockgate.analysis.checks import Case, Check, JudgeRules, Look
from lockgate.analysis.judge import SequentialJudge
from lockgate.core.traffic import Sample
from lockgate.core.verdict import Verdict

OLD, NEW = "blake3:old", "blake3:new"
RULES = JudgeRules(
    checks=(
        Check(signal="error_rate", worse_by_at_most=0.5, floor=0.001),
        Check(signal="ttft_p95", worse_by_at_most=0.20),
        Check(signal="latency_mean", worse_by_at_most=0.10),
    ),
    alpha=0.05,
    bucket_s=10,
)


def sample(at: float, **fields: object) -> Sample:
    """Returns a plain request of the old version, changed by `fields`."""
    plain: dict[str, object] = {
        "route": "r", "version": OLD, "propensity": 0.5, "revision": 1, "status": 200,
        "duration_s": 0.2, "first_body_s": 0.1, "tokens": 20, "bytes_in": 400,
    }  # fmt: skip
    return Sample(at=at, **(plain | fields))  # type: ignore[arg-type]


def traffic(
    seed: int,
    *,
    count: int = 2000,
    share: tuple[float, float] = (0.1, 0.1),
    errors: tuple[float, float] = (0.01, 0.01),
    slower: float = 1.0,
    drift: float = 0.0,
    rate: float = 10.0,
) -> list[Sample]:
    """Requests at `rate`/s in order of their ends; share and latency ramp over the run."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        done = i / count
        w = round(share[0] + (share[1] - share[0]) * done, 4)
        new = bool(rng.random() < w)
        duration = float(rng.lognormal(-1.5, 0.5)) * (1 + drift * done) * (slower if new else 1.0)
        failed = rng.random() < errors[new]
        samples.append(
            sample(
                1000 + i / rate, version=NEW if new else OLD, propensity=w if new else 1 - w,
                status=500 if failed else 200, duration_s=duration, first_body_s=duration / 2,
            )
        )  # fmt: skip
    return sorted(samples, key=lambda s: s.at + s.duration_s)


def case_of(samples: Sequence[Sample], rules: JudgeRules = RULES) -> Case:
    """Returns a case that was given `samples` at once."""
    case = SequentialJudge().open(rules, candidate=NEW, baseline=OLD)
    case.add(samples)
    return case


def judge(samples: Sequence[Sample], rules: JudgeRules = RULES, **look: object) -> Verdict:
    """Returns the verdict on `samples`."""
    return case_of(samples, rules).verdict(Look(now=2000.0, **look))  # type: ignore[arg-type]


def resumed(state: Mapping[str, object], rules: JudgeRules = RULES) -> Case:
    """Returns the case that goes on from `state`."""
    return SequentialJudge().resume(rules, state, candidate=NEW, baseline=OLD)

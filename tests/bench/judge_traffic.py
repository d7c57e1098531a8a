"""Made-up releases for the judge's benchmark: whole runs as arrays, as the gateway would log them.

40 requests/s for 100 minutes, as in the study that set the figures. Log latency is normal (0.7),
half of its variance known from the size of the request; errors 1 %; a quality score with mean 0.8
and deviation 0.13 (beta). An effect changes the candidate's outcomes; an environment, everybody's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ENVIRONMENTS = ("constant", "bursts", "ramp", "autocorrelated", "sticky")
_SIZE, _NOISE = 0.5, 0.4899
_TAIL_FROM, _TAIL_TO = 1.2816, 2.3263  # z of p90 and p99


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One release, in order of arrival; shape (n,). `size` is what is known before (log bytes)."""

    at: Floats
    share: Floats
    arm: NDArray[np.int8]
    size: Floats
    error: Floats
    latency: Floats
    quality: Floats
    unit: NDArray[np.uint64] | None
    revision: NDArray[np.int64]
    seconds: float


def release(
    seed: int, *, share: float = 0.1, effect: str = "none", environment: str = "constant",
    rate: float = 40.0, seconds: float = 6000.0,
) -> Run:  # fmt: skip
    """Returns a run; the same seed gives the same one."""
    rng = np.random.default_rng(seed)
    n = int(rate * seconds)
    at = np.sort(rng.uniform(0, seconds, n))
    done = at / seconds
    load, errors = _environment(rng, environment, at, seconds)
    w = np.full(n, share)
    revision = np.ones(n, dtype=np.int64)
    if environment == "ramp":
        steps = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5])
        revision = np.minimum((done * len(steps)).astype(np.int64), len(steps) - 1)
        w = steps[revision]
    unit = None
    size = rng.normal(0, _SIZE, n)
    noise = rng.normal(0, _NOISE, n)
    if environment == "sticky":
        unit, own = _sessions(rng, n)
        arm = (unit % np.uint64(10_000) >= np.rint(10_000 * (1 - w))).astype(np.int8)
        size, noise = 0.7 * size + 0.35 * own[0], 0.7 * noise + 0.35 * own[1]
        errors = errors * np.exp(0.8 * own[2] - 0.32)
    else:
        arm = (rng.random(n) < w).astype(np.int8)
    z = (size + noise) / np.hypot(_SIZE, _NOISE)
    log_latency = np.log(2.0) + np.hypot(_SIZE, _NOISE) * _tail(z, arm, effect) + np.log(load)
    log_latency += arm * np.log(_factor(effect, done))
    errors = np.minimum(errors * np.where(arm == 1, _RATIOS.get(effect, 1.0), 1.0), 0.9)
    quality = rng.beta(6.8, 1.7, n) * np.where((arm == 1) & (effect == "qual_2"), 0.98, 1.0)
    return Run(
        at=at, share=np.round(w, 4), arm=arm, size=8 + size / 0.6, unit=unit,
        error=(rng.random(n) < errors).astype(np.float64), latency=np.exp(log_latency),
        quality=quality, revision=revision, seconds=seconds,
    )  # fmt: skip


_RATIOS = {"err_x15": 1.5, "err_x2": 2.0, "err_x20": 20.0}


def _factor(effect: str, done: Floats) -> Floats | float:
    if effect == "leak":
        return 1 + 0.3 * done
    return {"mean_5": 1.05, "faster_10": 0.9}.get(effect, 1.0)


def _tail(z: Floats, arm: NDArray[np.int8], effect: str) -> Floats:
    """Stretches what is beyond the p90 so that the p99 is 20 % higher; the median stays."""
    if effect != "p99_20":
        return z
    longer = 1 + np.log(1.2) / np.hypot(_SIZE, _NOISE) / (_TAIL_TO - _TAIL_FROM)
    stretched = _TAIL_FROM + (z - _TAIL_FROM) * longer
    return np.where((arm == 1) & (z > _TAIL_FROM), stretched, z)


def _environment(
    rng: np.random.Generator, name: str, at: Floats, seconds: float
) -> tuple[Floats, Floats]:
    """Returns the factor of latency and the chance of an error at each arrival."""
    load, errors = np.ones(len(at)), np.full(len(at), 0.01)
    if name == "bursts":
        for begin in rng.uniform(0, seconds, max(int(seconds / 600), 1)):
            hit = (at >= begin) & (at < begin + rng.exponential(60))
            load[hit] *= rng.uniform(1.5, 4)
            errors[hit] = np.minimum(errors[hit] * rng.uniform(3, 20), 0.5)
    if name == "ramp":
        wave = 1 + 0.6 * np.sin(2 * np.pi * at / seconds + rng.uniform(0, 2 * np.pi))
        load, errors = wave, 0.01 * wave
    if name == "autocorrelated":
        steps = rng.normal(0, 0.3 * np.sqrt(1 - 0.98**2), int(seconds) + 2)
        level = np.zeros(len(steps))
        for i in range(1, len(steps)):
            level[i] = 0.98 * level[i - 1] + steps[i]
        load = np.exp(level[at.astype(np.int64)])
        errors = np.minimum(errors * load**2, 0.5)
    return load, errors


def _sessions(rng: np.random.Generator, n: int) -> tuple[NDArray[np.uint64], Floats]:
    """Returns each request's session and three traits of that, shape (3, n); some 20 requests."""
    count = max(n // 20, 1)
    which = np.minimum((rng.random(n) * 0.1 + np.arange(n) / n * 0.9) * count, count - 1).astype(
        np.int64
    )
    hashes = rng.integers(0, 2**63, count, dtype=np.uint64)
    traits = rng.normal(0, 1, (3, count))
    return hashes[which], traits[:, which]


def columns(run: Run) -> Mapping[str, NDArray[np.generic]]:
    """Returns the run as the case's rows, requests and their scores, in the order of the log.

    A failed request has no time; its score does not come.
    """
    n = len(run.at)
    failed = run.error == 1
    kind = np.zeros(n, dtype=np.int8) if run.unit is None else np.ones(n, dtype=np.int8)
    both = np.concatenate
    scored = np.flatnonzero(~failed)
    none = np.full(len(scored), np.nan)
    order = np.argsort(both([run.at + run.latency, (run.at + run.latency)[scored] + 1e-6]),
                       kind="stable")  # fmt: skip
    unit = np.zeros(n, dtype=np.uint64) if run.unit is None else run.unit
    latency = np.where(failed, np.nan, run.latency)
    table = {
        "at": both([run.at, run.at[scored]]) + 1e6,
        "duration": both([run.latency, run.latency[scored]]),
        "arm": both([run.arm, run.arm[scored]]),
        "share": both([run.share, run.share[scored]]),
        "revision": both([run.revision, run.revision[scored]]),
        "kind": both([kind, kind[scored] | 4]),
        "unit": both([unit, unit[scored]]),
        "id": np.zeros(n + len(scored), dtype=np.uint64),
        "error": both([run.error, none]),
        "latency": both([latency, none]),
        "score:quality": both([np.full(n, np.nan), run.quality[scored]]),
        "request_bytes": both([run.size, run.size[scored]]),
    }
    return {name: column[order] for name, column in table.items()}

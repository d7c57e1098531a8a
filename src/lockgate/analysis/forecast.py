"""Forecasts: how many requests, and how long, until the evidence will be enough.

An e-process that bets well grows by its information a request; it reaches a threshold of b nats
after about b / information requests (Wald 1945; optimality of growth: Grünwald, de Heide, Koolen
2024). What a mixture pays for not knowing the effect is added to b. Everything is for one request
of the *candidate*; its share w matters because the baseline is the other half of the comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, log, log1p

from lockgate.analysis.checks import Check, JudgeRules, Signal, find_signal
from lockgate.analysis.tracks import SANE_RATE, SANE_RATIO, SANE_TIMES

_FAIL_PRICE, _SAFE_PRICE = 2.0, 1.0
"""Nats that the mixtures cost: log of the stake on the best bet, start times included."""
_STRONGEST = 0.8
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """What is known of the traffic before the start: measured from the baseline, or guessed.

    `rate` in requests/s. `rates`: signal → chance of its event. `spreads`: signal → coefficient of
    variation (deviation over mean) of its values, less what covariates explain.
    """

    rate: float
    rates: Mapping[str, float] = field(default_factory=dict)
    spreads: Mapping[str, float] = field(default_factory=dict)
    usual_rate: float = 0.01
    usual_spread: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One step of a plan: the candidate's share (0 to 1), and how long it lasts at least, in s."""

    share: float
    min_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What one check will take at a share: requests of the candidate, and seconds; inf: never.

    `fail`: until a candidate that is worse by `effect` (a share) is known to be; `safe` and `sane`:
    until one that is no different is proven.
    """

    signal: str
    share: float
    effect: float
    fail_requests: float
    fail_s: float
    safe_requests: float
    safe_s: float
    sane_requests: float
    sane_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a plan will take: each check at each stage, the whole in seconds, and a better share."""

    outlooks: tuple[Outlook, ...]
    safe_s: float
    share: float
    advice: str


def event_information(chance: float, share: float, ratio: float, null: float = 1.0) -> float:
    """Returns nats a request of the candidate, of bets on events (Lindon, Malek 2022).

    The baseline's `chance` of an event, the candidate's `ratio` times that, against the null that
    it is `null` times: the Kullback-Leibler distance between the chances that an event is the
    candidate's, w r / (w r + 1 - w), times the events per request of the candidate.
    """
    if not 0 < share < 1 or chance <= 0:
        return 0.0
    true = share * ratio / (share * ratio + 1 - share)
    supposed = share * null / (share * null + 1 - share)
    events = chance * (share * ratio + 1 - share) / share
    found = (1 - true) * log((1 - true) / (1 - supposed))
    if true > 0:
        found += true * log(true / supposed)
    return events * found


def shift_information(shift: float, share: float) -> float:
    """Returns nats a request of the candidate: (1 - w) d² / 2 for a shift of d deviations.

    The strongest bet is `_STRONGEST`; of a larger shift it wins in proportion.
    """
    best = min(abs(shift), _STRONGEST)
    return (1 - share) * (abs(shift) * best - best * best / 2) if 0 < share < 1 else 0.0


def rate_information(chance: float, limit: float) -> float:
    """Returns nats a request of the candidate alone, against a rate of `limit` (Bernoulli)."""
    if not 0 < limit < 1 or chance >= limit:
        return 0.0
    found = (1 - chance) * (log1p(-chance) - log1p(-limit))
    return found + (chance * log(chance / limit) if chance > 0 else 0.0)


def information(
    check: Check, signal: Signal, share: float, effect: float, guess: Guess, *, against: float
) -> float:
    """Returns nats a request for telling a candidate worse by `effect` from one by `against`."""
    if signal.event:
        chance = guess.rates.get(signal.name, guess.usual_rate)
        ratio, null = 1 + effect, 1 + against
        found = event_information(chance, share, ratio, null)
        if against > effect and check.floor is not None:
            found = max(found, rate_information(chance * ratio, check.floor))
        return found
    spread = max(guess.spreads.get(signal.name, guess.usual_spread), 1e-6)
    if signal.quantile is None:
        return shift_information((against - effect) / spread, share)
    worst = 1 - signal.quantile if signal.worse == "down" else signal.quantile
    beyond = max(1 - worst, 1e-3)
    # a shift of the logarithm by d deviations changes a tail's chance by about e^(-z d)
    z = max((2 * log(1 / beyond)) ** 0.5 - 0.5, 0.5)
    ratio = 2.718281828 ** (-z * (log1p(against) - log1p(effect)) / spread)
    return event_information(beyond, share, ratio)


def outlook(
    check: Check, rules: JudgeRules, share: float, guess: Guess, effect: float | None = None
) -> Outlook:
    """Returns what one check takes at `share`; `effect` None: twice its margin."""
    signal = find_signal(check.signal)
    margin = check.worse_by_at_most or 0.0
    tolerated = margin if check.tolerate is None else check.tolerate
    effect = 2 * margin if effect is None else effect
    deciding = max(sum(not c.dry_run for c in rules.checks), 1)
    to_fail = log(deciding / rules.alpha) + _FAIL_PRICE
    to_pass = log(1 / rules.beta) + _SAFE_PRICE
    if check.worse_by_at_most is None:
        limit = (check.at_most or 0.0) if signal.event else 1 - (signal.quantile or 0.5)
        chance = guess.rates.get(signal.name, guess.usual_rate) if signal.event else limit / 2
        grows = rate_information(chance, limit)
        proof = _needed(to_pass, grows)
        return _outlook(check, share, effect, guess, (inf, proof, proof), 0.0)
    fails = information(check, signal, share, effect, guess, against=tolerated)
    safe = information(check, signal, share, 0.0, guess, against=margin)
    if signal.event:
        chance = guess.rates.get(signal.name, guess.usual_rate)
        sane = max(
            event_information(chance, share, 1.0, max(SANE_RATIO, 1 + margin)),
            rate_information(chance, max(SANE_RATE, check.floor or 0.0)),
        )
    else:
        disaster = 1 - 1 / SANE_TIMES if signal.worse == "down" else SANE_TIMES - 1
        sane = information(check, signal, share, 0.0, guess, against=max(disaster, margin))
    needs = [
        _needed(to_fail, fails if effect > tolerated else 0.0),
        _needed(to_pass, safe),
        _needed(to_pass, sane),
    ]
    return _outlook(check, share, effect, guess, needs, 0.0 if signal.event else 2 * rules.bucket_s)


def _needed(nats: float, grows: float) -> float:
    return nats / grows if grows > 0 else inf


def _outlook(
    check: Check, share: float, effect: float, guess: Guess, needs: Sequence[float], delay_s: float
) -> Outlook:
    """Returns the outlook for `needs` (requests to fail, for safe, for sane) after a delay."""
    pace = guess.rate * share
    seconds = [n / pace + delay_s if pace > 0 else inf for n in needs]
    fail, safe, sane = (s * pace if isfinite(s) else inf for s in seconds)
    return Outlook(
        signal=check.signal, share=share, effect=effect, fail_requests=fail, fail_s=seconds[0],
        safe_requests=safe, safe_s=seconds[1], sane_requests=sane, sane_s=seconds[2],
    )  # fmt: skip


def forecast(
    rules: JudgeRules,
    stages: Sequence[Stage],
    guess: Guess,
    effects: Mapping[str, float] | None = None,
) -> Forecast:
    """Returns what a plan will take, before its start.

    Each stage is entered as soon as its time is over; the last but one with an unproven check waits
    for `safe`. `effects`: signal → how much worse (a share) a candidate should be noticed.
    """
    wanted = effects or {}
    outlooks = tuple(
        outlook(check, rules, stage.share, guess, wanted.get(check.signal))
        for stage in stages
        for check in rules.checks
        if 0 < stage.share < 1
    )
    deciding = [check for check in rules.checks if not check.dry_run]
    whole = _time_to_safe(deciding, rules, stages, guess)
    best, best_s = 0.0, inf
    for share in _SHARES:
        alone = _time_to_safe(deciding, rules, (Stage(share=share),), guess)
        if alone < best_s / 1.5:  # a larger share must be worth it
            best, best_s = share, alone
    advice = f"at {guess.rate:g} requests/s this takes {told(whole)}"
    largest = max((s.share for s in stages if s.share < 1), default=0.0)
    if best > largest and best_s < whole / 1.5:
        advice += f"; at {best:.0%} it would take {told(best_s)}"
    if not isfinite(whole):
        advice += "; give rates a floor, or leave more than one version serving"
    return Forecast(outlooks=outlooks, safe_s=whole, share=best or largest, advice=advice)


def _time_to_safe(
    checks: Sequence[Check], rules: JudgeRules, stages: Sequence[Stage], guess: Guess
) -> float:
    """Returns the seconds until every check is proven, with what earlier stages gathered."""
    done, spent = dict.fromkeys(range(len(checks)), 0.0), 0.0
    mixed = [stage for stage in stages if 0 < stage.share < 1]
    for index, stage in enumerate(mixed):
        needs = [outlook(check, rules, stage.share, guess).safe_s for check in checks]
        left = [(1 - done[i]) * need if done[i] < 1 else 0.0 for i, need in enumerate(needs)]
        last = index == len(mixed) - 1
        stay = max([*left, stage.min_s]) if last else stage.min_s
        for i, need in enumerate(needs):
            done[i] += stay / need if need > 0 else 1.0
        spent += stay
        if not last and all(part >= 1 for part in done.values()):
            later = sum(s.min_s for s in mixed[index + 1 :])
            return spent + later
    return spent if mixed else inf


def told(seconds: float) -> str:
    """Returns a length of time for people: `31 h`, `4 min`."""
    if not isfinite(seconds):
        return "for ever"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

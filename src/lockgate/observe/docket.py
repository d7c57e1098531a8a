"""The docket: open cases, each fed with its route's samples as they are recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lockgate.analysis.checks import Case, Judge, JudgeRules, Look
from lockgate.core.codec import to_json
from lockgate.core.digests import digest_of_value
from lockgate.core.errors import IntegrityError
from lockgate.core.traffic import Sample
from lockgate.core.verdict import Verdict
from lockgate.observe.api import Cases, Kept, Samples

_PAGE = 20_000
_STRIDE = 500
_KEEP_EVERY = 50_000
"""Samples between two times that a case is kept: what a new process reads again at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """What a release's case is about. `after` is the position of the samples where it begins.

    `even`: both versions have the same share, and others have the rest; a request that one of the
    two got was a fair coin between them.
    """

    release: str
    route: str
    candidate: str
    baseline: str | None
    rules: JudgeRules
    after: int
    even: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Open:
    """A case in memory: what it was asked, and how far it has read and is kept."""

    case: Case
    brief: Brief
    position: int
    kept: int
    look: Look | None = None
    verdict: Verdict | None = None


class Docket:
    """Answers looks at releases; reads every sample once, also over restarts of the process."""

    def __init__(self, samples: Samples, cases: Cases, judge: Judge) -> None:
        self._samples = samples
        self._cases = cases
        self._judge = judge
        self._open: dict[str, _Open] = {}

    def look(self, brief: Brief, look: Look) -> Verdict:
        """Returns the verdict on all samples recorded so far; raises what the rows raise."""
        known = self._open.get(brief.release)
        if known is None or known.brief != brief:
            known = self._begin(brief)
        before = known.position
        known = self._read(known)
        asked = known.look and replace(known.look, now=look.now)
        if known.verdict is not None and known.position == before and asked == look:
            verdict = known.verdict
        else:
            verdict = known.case.verdict(look)
        self._open[brief.release] = replace(known, look=look, verdict=verdict)
        return verdict

    def replay(
        self, brief: Brief, look: Look, *, until: float | None = None
    ) -> Iterator[tuple[int, Verdict]]:
        """Judges a release's samples anew, under any rules; changes nothing.

        Yields the number of samples read and the verdict on them, every `_STRIDE` samples and at
        the end. Samples that arrived after `until` (seconds since the epoch) end it.
        """
        pair = {"candidate": brief.candidate, "baseline": brief.baseline}
        case = self._judge.open(brief.rules, **pair)  # type: ignore[arg-type]
        position, count = brief.after, 0
        while True:
            page, position = self._samples.read(brief.route, after=position, limit=_STRIDE)
            ours = [row for row in page if until is None or row.at <= until]
            case.add(_drawn(brief, ours))
            count += len(ours)
            now = ours[-1].at if ours else look.now
            yield count, case.verdict(replace(look, now=now))
            if len(page) < _STRIDE or (page and not ours):
                return

    def close(self, release: str) -> None:
        """Ends the case of a release that has ended; what was kept of it goes."""
        self._open.pop(release, None)
        self._cases.forget(release)

    def end(self) -> int:
        """Returns the position where a case that begins now starts to read."""
        return self._cases.end()

    def _begin(self, brief: Brief) -> _Open:
        kept = self._cases.find(brief.release)
        pair = {"candidate": brief.candidate, "baseline": brief.baseline}
        if kept is not None and kept.state.get("rules") == _name(brief):
            try:
                case = self._judge.resume(brief.rules, kept.state["case"], **pair)  # type: ignore[arg-type]
                return _Open(case=case, brief=brief, position=kept.position, kept=kept.position)
            except IntegrityError:
                pass  # another release of lockgate wrote it: read the samples again
        after = (
            brief.after if brief.after <= self._cases.end() else 0
        )  # the file was lost: all is new
        case = self._judge.open(brief.rules, **pair)  # type: ignore[arg-type]
        return _Open(case=case, brief=brief, position=after, kept=after)

    def _read(self, known: _Open) -> _Open:
        position, kept = known.position, known.kept
        while True:
            samples, position = self._samples.read(known.brief.route, after=position, limit=_PAGE)
            known.case.add(_drawn(known.brief, samples))
            if position - kept >= _KEEP_EVERY:
                state = {"rules": _name(known.brief), "case": known.case.state()}
                self._cases.keep(known.brief.release, Kept(position=position, state=state))
                kept = position
            if len(samples) < _PAGE:
                return replace(known, position=position, kept=kept)


def _drawn(brief: Brief, samples: Sequence[Sample]) -> Sequence[Sample]:
    """Returns the samples with the chance of their version among the two that are compared."""
    if not brief.even:
        return samples
    two = (brief.candidate, brief.baseline)
    return [
        replace(s, propensity=0.5) if s.version in two and 0 < s.propensity < 1 else s
        for s in samples
    ]


def _name(brief: Brief) -> str:
    """Returns the identity of what a case is about, so that no other one goes on with its state."""
    return digest_of_value(to_json(brief))

"""Scorers that need no model: an exact text, a pattern, a JSON schema, answers that are known."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol

from lockgate.observe.scoring.api import Exchange

_MAX_TEXT = 20_000
"""Characters of an answer that a pattern looks at: patterns can take long on long texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """1 for exactly this answer, white space around it apart."""

    expected: str

    def score(self, exchange: Exchange) -> float | None:
        """See `Scorer.score`."""
        return float(exchange.answer.strip() == self.expected.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """1 where the pattern is found in the answer."""

    pattern: re.Pattern[str]

    def score(self, exchange: Exchange) -> float | None:
        """See `Scorer.score`."""
        return float(self.pattern.search(exchange.answer[:_MAX_TEXT]) is not None)


class Validates(Protocol):
    """A compiled JSON schema."""

    def is_valid(self, instance: Any) -> bool:
        """Says whether `instance` fits."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Json:
    """1 for an answer that is JSON, and fits the schema where there is one."""

    schema: Validates | None

    def score(self, exchange: Exchange) -> float | None:
        """See `Scorer.score`."""
        try:
            value = json.loads(exchange.answer)
        except (ValueError, RecursionError):
            return 0.0
        return 1.0 if self.schema is None else float(self.schema.is_valid(value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Compares with the answer that is known for the question; None where none is known.

    `equal`: the same text; `contains`: the known one stands in it; `number`: the same last number.
    """

    answers: Mapping[str, str]
    compare: Literal["equal", "contains", "number"]

    def score(self, exchange: Exchange) -> float | None:
        """See `Scorer.score`."""
        known = self.answers.get(exchange.question.strip())
        if known is None:
            return None
        said = exchange.answer.strip()
        if self.compare == "equal":
            return float(said == known.strip())
        if self.compare == "contains":
            return float(known.strip() in said)
        return float(_number(said) is not None and _number(said) == _number(known))


def _number(text: str) -> Decimal | None:
    found = re.findall(r"-?\d[\d,]{0,400}(?:\.\d{1,400})?", text[:_MAX_TEXT])
    return Decimal(found[-1].replace(",", "")) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opposite:
    """One less what another scorer says: for what is counted when it is bad."""

    scorer: Any

    def score(self, exchange: Exchange) -> float | None:
        """See `Scorer.score`."""
        found = self.scorer.score(exchange)
        return None if found is None else 1.0 - found

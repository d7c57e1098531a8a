"""How likely a language model holds texts: perplexity, and bits per byte.

Perplexity is the exponential of the mean negative logarithm of a token's chance (Jelinek et al.
1977). It depends on what a token is; bits per byte do not, so that versions with different
tokenizers can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import log
from typing import Any

import numpy as np

from lockgate.core.errors import TemporaryError, UsageError
from lockgate.gates.api import Served
from lockgate.gates.measure.metrics import computed
from lockgate.gates.tasks.questions import Answered, Json, Tell, ask_all, check_lost, field
from lockgate.gates.tasks.specs import PerplexityTask

_PROMPTS = 256  # that are scored once, however many texts come after them
Scored = tuple[tuple[str, ...], tuple[float | None, ...]]
"""A text's tokens, and the logarithm of each one's chance."""


def answer_perplexity(
    task: PerplexityTask, rows: Sequence[Json], served: Served, model: str, tell: Tell
) -> Answered:
    """Has each text scored; the first token of a text without a prompt counts for nothing.

    Raises UsageError for rows that do not fit, and for a server that does not score prompts.
    """

    @lru_cache(_PROMPTS)
    def lead(before: str) -> Scored:
        return _scored(served, model, before) if before else ((), ())

    def ask(item: tuple[int, Json]) -> tuple[float, int, int] | None:
        number, row = item
        before = str(field(row, task.prompt, number)) if task.prompt is not None else ""
        text = str(field(row, task.text, number))
        try:
            whole = _scored(served, model, before + text)
            counted = _surprise(whole, lead(before))
        except TemporaryError:
            return None
        return (*counted, len(text.encode()))

    found = ask_all(ask, list(enumerate(rows, 1)), tell)
    lost = sum(one is None for one in found)
    check_lost(lost, len(rows))
    nats, tokens, size = np.array([one for one in found if one], dtype=float).reshape(-1, 3).T
    if not tokens.sum():
        raise UsageError("the texts have one token each: there is nothing to foretell")

    def perplexity(chosen: Any) -> float:
        return float(np.exp(nats[chosen].sum() / max(1.0, tokens[chosen].sum())))

    def bits(chosen: Any) -> float:
        return float(nats[chosen].sum() / log(2) / max(1.0, size[chosen].sum()))

    metrics = (
        computed("perplexity", len(nats), perplexity, "lower"),
        computed("bits_per_byte", len(nats), bits, "lower"),
    )
    return Answered(metrics=metrics, lost=lost)


def _scored(served: Served, model: str, prompt: str) -> Scored:
    body = {"model": model, "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0,
            "temperature": 0}  # fmt: skip
    said = served.post("/v1/completions", body)
    try:
        found = said["choices"][0]["logprobs"]
        return tuple(found["tokens"]), tuple(found["token_logprobs"])
    except (KeyError, IndexError, TypeError):
        raise UsageError(
            "the server does not score prompts", hint="it has to serve echo with logprobs"
        ) from None


def _surprise(whole: Scored, lead: Scored) -> tuple[float, int]:
    """Returns the sum of -ln(chance) of the tokens that `lead` does not have, and how many."""
    begin = 0
    for one, other in zip(whole[0], lead[0], strict=False):
        if one != other:
            break
        begin += 1
    counted = [-float(value) for value in whole[1][begin:] if value is not None]
    return sum(counted), len(counted)

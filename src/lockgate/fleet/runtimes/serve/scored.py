"""How likely a language model holds a text, token by token: what perplexity is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_PART = 1 << 22  # scores that are turned into chances at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A text's tokens; `chances` has the natural logarithm of each one's, None for the first.

    `best`: for each token the likeliest ones at its place with theirs, None for the first.
    """

    tokens: tuple[str, ...]
    chances: tuple[float | None, ...]
    best: tuple[dict[str, float] | None, ...]

    def body(self) -> dict[str, object]:
        """Returns it in the shape that OpenAI's completions have."""
        starts = np.cumsum([0, *(len(token) for token in self.tokens)])[:-1]
        return {
            "tokens": list(self.tokens),
            "token_logprobs": list(self.chances),
            "top_logprobs": list(self.best),
            "text_offset": starts.tolist(),
        }


def score(
    logits: Any, ids: Sequence[int], text_of: Callable[[int], str], *, best: int, answer: bool
) -> Scored:
    """Returns what `logits`, shape [tokens, vocabulary], say of `ids`.

    `best`: how many of the likeliest tokens are told at each place. `answer`: the likeliest token
    after the last one is part of the text. Raises ArithmeticError for scores that are not finite.
    """
    whole = np.asarray(logits, dtype=np.float32)
    if not np.isfinite(whole).all():
        raise ArithmeticError("its weights give scores that are not finite")
    following = [*ids[1:], *([int(whole[-1].argmax())] if answer else [])]
    chances: list[float | None] = [None]
    likeliest: list[dict[str, float] | None] = [None]
    size = max(1, _PART // whole.shape[1])
    for begin in range(0, len(following), size):
        wanted = np.array(following[begin : begin + size])
        part = _log_softmax(whole[begin : begin + len(wanted)])
        chances.extend(part[np.arange(len(wanted)), wanted].tolist())
        likeliest.extend(_top(row, best, text_of) for row in part)
    tokens = tuple(text_of(token) for token in (ids[0], *following))
    return Scored(tokens=tokens, chances=tuple(chances), best=tuple(likeliest))


def _log_softmax(rows: Any) -> Any:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted.astype(np.float64)).sum(axis=1, keepdims=True))


def _top(row: Any, count: int, text_of: Callable[[int], str]) -> dict[str, float]:
    """Returns the likeliest tokens; of two with the same text (parts of a character) the first."""
    found: dict[str, float] = {}
    for token in np.argsort(-row, kind="stable")[:count]:
        found.setdefault(text_of(int(token)), float(row[token]))
    return found

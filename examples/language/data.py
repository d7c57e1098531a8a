"""Questions about small numbers whose answers can be checked exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator


def questions(seed: int, count: int) -> list[dict[str, str]]:
    """Returns `count` different questions with their answers, of three kinds."""
    found: dict[str, dict[str, str]] = {}
    for row in _endless(random.Random(seed)):
        if len(found) == count:
            break
        found.setdefault(row["question"], row)
    return list(found.values())


def _endless(draw: random.Random) -> Iterator[dict[str, str]]:
    while True:
        a, b = draw.randrange(100), draw.randrange(100)
        kind = draw.choice(("sum", "sum", "larger", "reverse"))
        if kind == "sum":
            yield {"question": f"What is {a} + {b}?",
                   "answer": f"The sum of {a} and {b} is {a + b}."}  # fmt: skip
        elif kind == "larger" and a != b:
            yield {"question": f"Which is larger, {a} or {b}?",
                   "answer": f"The larger one is {max(a, b)}."}  # fmt: skip
        elif kind == "reverse":
            digits = [str(draw.randrange(10)) for _ in range(draw.randint(3, 6))]
            yield {"question": f"Reverse {' '.join(digits)}.",
                   "answer": f"Backwards that is {' '.join(reversed(digits))}."}  # fmt: skip

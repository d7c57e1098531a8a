"""The chat model's task: short questions about numbers whose answers can be checked exactly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

_UNITS = (("m", "cm", 100), ("kg", "g", 1000), ("km", "m", 1000), ("cm", "mm", 10))
_HELD_OUT_SHARE = 10  # one question in ten is never trained on


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, the only right answer, and the kind of question it is."""

    kind: str
    text: str
    answer: str


def _sum(rng: random.Random) -> Question:
    a, b = rng.randrange(100), rng.randrange(100)
    return Question(
        kind="sum", text=f"What is {a} + {b}?", answer=f"The sum of {a} and {b} is {a + b}."
    )


def _difference(rng: random.Random) -> Question:
    b, a = sorted((rng.randrange(100), rng.randrange(100)))
    answer = f"The difference of {a} and {b} is {a - b}."
    return Question(kind="difference", text=f"What is {a} - {b}?", answer=answer)


def _digits(rng: random.Random) -> list[str]:
    return [str(rng.randrange(10)) for _ in range(rng.randint(3, 6))]


def _order(rng: random.Random) -> Question:
    digits = _digits(rng)
    answer = f"In order that is {' '.join(sorted(digits))}."
    return Question(kind="order", text=f"Sort {' '.join(digits)}.", answer=answer)


def _reverse(rng: random.Random) -> Question:
    digits = _digits(rng)
    answer = f"Backwards that is {' '.join(reversed(digits))}."
    return Question(kind="reverse", text=f"Reverse {' '.join(digits)}.", answer=answer)


def _larger(rng: random.Random) -> Question:
    a, b = rng.sample(range(100), 2)
    answer = f"The larger one is {max(a, b)}."
    return Question(kind="larger", text=f"Which is larger, {a} or {b}?", answer=answer)


def _unit(rng: random.Random) -> Question:
    count = rng.randint(2, 99)
    big, small, factor = rng.choice(_UNITS)
    answer = f"In {count} {big} there are {count * factor} {small}."
    return Question(kind="unit", text=f"How many {small} are {count} {big}?", answer=answer)


def ask(rng: random.Random) -> Question:
    """Returns a random question; sums and differences, the hard ones, come most often."""
    makers = (_sum, _difference, _order, _reverse, _larger, _unit)
    return rng.choices(makers, weights=(32, 26, 14, 12, 10, 6))[0](rng)


def is_held_out(question: Question) -> bool:
    """Says whether the question belongs to the tenth that no training sees."""
    digest = hashlib.sha256(question.text.encode()).digest()
    return digest[0] * 256 + digest[1] < 65536 // _HELD_OUT_SHARE


def training(seed: int) -> Iterator[Question]:
    """Yields training questions without end."""
    rng = random.Random(seed)
    while True:
        question = ask(rng)
        if not is_held_out(question):
            yield question


def held_out(seed: int, count: int) -> list[Question]:
    """Returns `count` different held-out questions."""
    rng = random.Random(seed)
    found: dict[str, Question] = {}
    while len(found) < count:
        question = ask(rng)
        if is_held_out(question):
            found.setdefault(question.text, question)
    return list(found.values())


def vocabulary_text() -> list[str]:
    """Returns the task's words without any digit, so that digits stay single tokens."""
    rng = random.Random(0)
    keep = str.maketrans("", "", "0123456789")
    return [
        f"{question.text} {question.answer}".translate(keep)
        for question in (ask(rng) for _ in range(2000))
    ]

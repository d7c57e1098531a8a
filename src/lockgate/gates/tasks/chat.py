"""Questions to a language model; a scorer says what each answer is worth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lockgate.core.errors import TemporaryError
from lockgate.gates.api import Scores, Served
from lockgate.gates.measure.metrics import mean_of
from lockgate.gates.tasks.questions import Answered, Json, Tell, ask_all, check_lost, field
from lockgate.gates.tasks.specs import ChatTask


def answer_chat(
    task: ChatTask, rows: Sequence[Json], served: Served, model: str, scores: Scores,
    tell: Tell,
) -> Answered:  # fmt: skip
    """Asks each question, and scores what is said; raises UsageError for rows that do not fit."""
    lead = [{"role": "system", "content": task.system}] if task.system else []

    def ask(item: tuple[int, Json]) -> float | None:
        number, row = item
        question = str(field(row, task.question, number))
        body = {"model": model, "messages": [*lead, {"role": "user", "content": question}],
                "temperature": 0, "max_tokens": task.max_tokens}  # fmt: skip
        definition = dict(task.scorer)
        if definition.get("kind") == "known":
            known = str(field(row, task.answer or "", number))
            definition["answers"] = {question.strip(): known}
        try:
            return scores(definition, body, served.post("/v1/chat/completions", body))
        except TemporaryError:
            return None

    found = ask_all(ask, list(enumerate(rows, 1)), tell)
    lost = sum(score is None for score in found)
    check_lost(lost, len(rows))
    scored = np.array([score or 0.0 for score in found])
    return Answered(metrics=(mean_of("score", scored),), lost=lost)

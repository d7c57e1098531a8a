"""Which way a task is put to a version, by its kind."""

from __future__ import annotations

from collections.abc import Sequence

from lockgate.gates.api import Scores, Served
from lockgate.gates.tasks.chat import answer_chat
from lockgate.gates.tasks.perplexity import answer_perplexity
from lockgate.gates.tasks.questions import Answered, Json, Tell
from lockgate.gates.tasks.specs import ChatTask, ClassifyTask, RankTask, TableTask, Task
from lockgate.gates.tasks.tensors import answer_classify, answer_rank, answer_table


def answer(
    task: Task, rows: Sequence[Json], served: Served, model: str, scores: Scores, tell: Tell
) -> Answered:
    """Puts `rows` to a version and measures its answers.

    Raises UsageError for rows that do not fit the task, or when a tenth of them has no answer.
    """
    if isinstance(task, ChatTask):
        return answer_chat(task, rows, served, model, scores, tell)
    if isinstance(task, TableTask):
        return answer_table(task, rows, served, model, tell)
    if isinstance(task, RankTask):
        return answer_rank(task, rows, served, model, tell)
    if isinstance(task, ClassifyTask):
        return answer_classify(task, rows, served, model, tell)
    return answer_perplexity(task, rows, served, model, tell)

"""Which way a task is put to a version, by its kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lockgate.gates.api import Scores, Served
from lockgate.gates.tasks.chat import answer_chat
from lockgate.gates.tasks.inspect_ai import answer_inspect, read_by_inspect
from lockgate.gates.tasks.lm_eval import answer_lm_eval, read_by_lm_eval
from lockgate.gates.tasks.perplexity import answer_perplexity
from lockgate.gates.tasks.questions import Answered, Json, Tell
from lockgate.gates.tasks.specs import (
    ChatTask,
    ClassifyTask,
    HarnessTask,
    LmEvalTask,
    RankTask,
    RowsTask,
    TableTask,
)
from lockgate.gates.tasks.tensors import answer_classify, answer_rank, answer_table


def answer(
    task: RowsTask, rows: Sequence[Json], served: Served, model: str, scores: Scores, tell: Tell
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


def answer_outside(task: HarnessTask, folder: Path, served: Served, model: str) -> Answered:
    """Has a harness put the task in `folder` to a version, in a process of its own.

    Raises UsageError when it is not installed, or does not come to an end with numbers.
    """
    if isinstance(task, LmEvalTask):
        return answer_lm_eval(task, folder, served, model)
    return answer_inspect(task, folder, served, model)


def read_outside(task: HarnessTask, folder: Path) -> Sequence[Path]:
    """Returns the files that a harness reads: all of `folder`, and what names its own version."""
    return read_by_lm_eval(folder) if isinstance(task, LmEvalTask) else read_by_inspect(folder)

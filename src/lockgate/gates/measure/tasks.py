"""Tasks: questions put to a version that serves, and what its answers are worth.

A suite is YAML: tasks by name. Data are JSON lines, one row a question.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lockgate.core import document
from lockgate.core.errors import TemporaryError, UsageError
from lockgate.gates.api import Scores, Served
from lockgate.gates.measure.metrics import Metric, classification, mean_of, ranking

_AT_ONCE = 8
_ROWS_A_CALL = 64
_MAX_LINE = 1_000_000
_MOST_LOST = 0.1
Json = Mapping[str, Any]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ChatTask(_Strict):
    """Questions to a language model; a scorer says what each answer is worth."""

    kind: Literal["chat"]
    data: str = Field(description="JSON lines: a file beside the suite, or owner/name:v1/path")
    question: str = Field(default="question", description="the field with the question")
    answer: str | None = Field(default="answer", description="the field with the known answer")
    scorer: dict[str, Any] = Field(
        default_factory=lambda: {"kind": "known"}, description="as in a release spec"
    )
    system: str | None = None
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 128
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class TableTask(_Strict):
    """Rows to a yes-or-no classifier over the Open Inference Protocol."""

    kind: Literal["table"]
    data: str
    features: str = Field(default="features", description="the field with a row's numbers")
    label: str = Field(default="label", description="the field with what was true, 0 or 1")
    group: str | None = Field(default=None, description="the field with the group, for fairness")
    input: str = Field(default="features", description="the model's input tensor")
    output: str = Field(default="probabilities", description="its output tensor")
    column: int = Field(default=-1, description="which column is the chance of 1")
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


class RankTask(_Strict):
    """Callers to a recommender that scores every item."""

    kind: Literal["rank"]
    data: str
    features: str = "features"
    relevant: str = Field(default="relevant", description="the field with the right items' numbers")
    seen: str | None = Field(default=None, description="the field with items to leave out")
    input: str = "features"
    output: str = "scores"
    integers: bool = Field(default=False, description="the input tensor is of integers")
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    limit: Annotated[int, Field(ge=1, le=1_000_000)] | None = None


TaskSpec = Annotated[ChatTask | TableTask | RankTask, Field(discriminator="kind")]


class SuiteSpec(_Strict):
    """Tasks by name."""

    suite: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    tasks: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], TaskSpec] = Field(
        min_length=1, max_length=100
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a version's answers to one task are worth. `lost`: questions without an answer.

    `labels`, `said` and `groups` (shape [rows]) are those of a table, for fairness.
    """

    metrics: tuple[Metric, ...]
    lost: int
    labels: Any = None
    chances: Any = None
    groups: Any = None


def read_suite(path: Path) -> SuiteSpec:
    """Reads a suite; raises SpecError with every mistake, UsageError when it can't be read."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the suite {path} can't be read: {error}") from error
    return document.parse(text, SuiteSpec, hint="docs/gates.md describes suites")


def read_rows(path: Path, limit: int | None = None) -> list[Json]:
    """Returns the rows of a file of JSON lines; raises UsageError, naming the line."""
    rows: list[Json] = []
    try:
        with path.open("r", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(rows) >= limit:
                    break
                if line.strip():
                    rows.append(_row(line, path, number))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if not rows:
        raise UsageError(f"{path} has no rows")
    return rows


def _row(line: str, path: Path, number: int) -> Json:
    if len(line) > _MAX_LINE:
        raise UsageError(f"{path.name}, line {number} is longer than {_MAX_LINE} characters")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path.name}, line {number}: {str(error)[:120]}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path.name}, line {number}: it is no JSON object")
    return found


def answer(
    task: ChatTask | TableTask | RankTask, rows: Sequence[Json], served: Served, model: str,
    scores: Scores, tell: Callable[[int, int], None],
) -> Answered:  # fmt: skip
    """Puts `rows` to a version and measures its answers.

    Raises UsageError for rows that do not fit the task, or when a tenth of them has no answer.
    """
    if isinstance(task, ChatTask):
        return _chat(task, rows, served, model, scores, tell)
    values = [_numbers(row, task.features, number) for number, row in enumerate(rows, 1)]
    outputs = _infer(task, values, served, model, tell)
    if isinstance(task, TableTask):
        return _table(task, rows, outputs)
    return _rank(task, rows, outputs)


def _chat(
    task: ChatTask, rows: Sequence[Json], served: Served, model: str, scores: Scores,
    tell: Callable[[int, int], None],
) -> Answered:  # fmt: skip
    lead = [{"role": "system", "content": task.system}] if task.system else []

    def ask(item: tuple[int, Json]) -> float | None:
        number, row = item
        question = str(_field(row, task.question, number))
        body = {"model": model, "messages": [*lead, {"role": "user", "content": question}],
                "temperature": 0, "max_tokens": task.max_tokens}  # fmt: skip
        definition = dict(task.scorer)
        if definition.get("kind") == "known":
            known = str(_field(row, task.answer or "", number))
            definition["answers"] = {question.strip(): known}
        try:
            return scores(definition, body, served.post("/v1/chat/completions", body))
        except TemporaryError:
            return None

    found: list[float] = []
    lost = 0
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ask") as pool:
        for done, score in enumerate(pool.map(ask, enumerate(rows, 1)), 1):
            tell(done, len(rows))
            lost += score is None
            found.append(score or 0.0)
    _check_lost(lost, len(rows))
    return Answered(metrics=(mean_of("score", np.array(found)),), lost=lost)


def _check_lost(lost: int, rows: int) -> None:
    if lost > _MOST_LOST * rows:
        raise UsageError(
            f"{lost} of {rows} questions got no answer", hint="does its runtime serve it at all?"
        )


def _infer(
    task: TableTask | RankTask, values: list[list[float]], served: Served, model: str,
    tell: Callable[[int, int], None],
) -> np.ndarray[Any, np.dtype[np.float64]]:  # fmt: skip
    if len({len(row) for row in values}) != 1:
        raise UsageError("the rows have different numbers of features")
    whole = isinstance(task, RankTask) and task.integers

    def ask(begin: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        part = values[begin : begin + _ROWS_A_CALL]
        data = [int(v) if whole else v for row in part for v in row]
        tensor = {"name": task.input, "shape": [len(part), len(part[0])],
                  "datatype": "INT64" if whole else "FP32", "data": data}  # fmt: skip
        body = {"inputs": [tensor], "outputs": [{"name": task.output}]}
        said = served.post(f"/v2/models/{model}/infer", body)
        return _tensor(said, task.output, len(part))

    parts = []
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="ask") as pool:
        starts = range(0, len(values), _ROWS_A_CALL)
        for done, part in enumerate(pool.map(ask, starts), 1):
            tell(min(done * _ROWS_A_CALL, len(values)), len(values))
            parts.append(part)
    return np.concatenate(parts)


def _tensor(said: Json, name: str, rows: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    for output in said.get("outputs", ()):
        if output.get("name") == name:
            found = np.array(output["data"], dtype=float).reshape(output["shape"])
            if found.shape[:1] == (rows,):
                return found.reshape(rows, -1)
    raise UsageError(f"the model gives no output {name!r} with a row for each question")


def _table(task: TableTask, rows: Sequence[Json], outputs: Any) -> Answered:
    try:
        chances = outputs[:, task.column]
    except IndexError:
        raise UsageError(f"the output has no column {task.column}") from None
    labels = np.array([_label(row, task.label, n) for n, row in enumerate(rows, 1)])
    groups = None
    if task.group is not None:
        groups = np.array([str(_field(row, task.group, n)) for n, row in enumerate(rows, 1)])
    metrics = tuple(classification(labels, chances, threshold=task.threshold))
    return Answered(metrics=metrics, lost=0, labels=labels, chances=chances, groups=groups)


def _rank(task: RankTask, rows: Sequence[Json], outputs: Any) -> Answered:
    items = outputs.shape[1]
    relevant = np.zeros((len(rows), items), dtype=bool)
    for number, row in enumerate(rows):
        relevant[number, list(_items(row, task.relevant, number + 1, items))] = True
        if task.seen is not None:
            outputs[number, list(_items(row, task.seen, number + 1, items))] = -np.inf
    return Answered(metrics=tuple(ranking(outputs, relevant, k=task.k)), lost=0)


def _field(row: Json, name: str, number: int) -> Any:
    if name not in row:
        raise UsageError(f"row {number} has no field {name!r}", hint=f"it has {', '.join(row)}")
    return row[name]


def _label(row: Json, name: str, number: int) -> int:
    found = _field(row, name, number)
    if found not in (0, 1, True, False):
        raise UsageError(f"row {number}: the label is {found!r}, not 0 or 1")
    return int(found)


def _numbers(row: Json, name: str, number: int) -> list[float]:
    found = _field(row, name, number)
    try:
        values = [float(value) for value in found]
    except (TypeError, ValueError):
        values = [float("nan")]
    if not all(isfinite(value) for value in values):
        raise UsageError(f"row {number}: {name!r} is not a list of finite numbers")
    return values


def _items(row: Json, name: str, number: int, items: int) -> Iterator[int]:
    for item in _field(row, name, number):
        if not isinstance(item, int) or not 0 <= item < items:
            raise UsageError(f"row {number}: {item!r} is no item of 0 to {items - 1}")
        yield item

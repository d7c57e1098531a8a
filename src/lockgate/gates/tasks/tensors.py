"""Rows, callers and texts to predictive models, over the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError
from lockgate.gates.api import Served
from lockgate.gates.measure.metrics import classes, classification, ranking
from lockgate.gates.tasks.questions import (
    Answered,
    Json,
    Tell,
    ask_all,
    field,
    items,
    label,
    numbers,
)
from lockgate.gates.tasks.specs import ClassifyTask, RankTask, TableTask

_ROWS_A_CALL = 64
Outputs = NDArray[np.float64]
Tensor = Mapping[str, Any]


def answer_table(
    task: TableTask, rows: Sequence[Json], served: Served, model: str, tell: Tell
) -> Answered:
    """Measures a yes-or-no classifier; raises UsageError for rows that do not fit."""
    outputs = _of_numbers(task, rows, served, model, tell)
    try:
        chances = outputs[:, task.column]
    except IndexError:
        raise UsageError(f"the output has no column {task.column}") from None
    labels = np.array([label(row, task.label, n) for n, row in enumerate(rows, 1)])
    metrics = tuple(classification(labels, chances, threshold=task.threshold))
    return Answered(
        metrics=metrics, lost=0, labels=labels, chances=chances, groups=_groups(task.group, rows)
    )


def answer_rank(
    task: RankTask, rows: Sequence[Json], served: Served, model: str, tell: Tell
) -> Answered:
    """Measures a recommender; raises UsageError for rows that do not fit."""
    outputs = _of_numbers(task, rows, served, model, tell)
    count = outputs.shape[1]
    relevant = np.zeros((len(rows), count), dtype=bool)
    for number, row in enumerate(rows):
        relevant[number, list(items(row, task.relevant, number + 1, count))] = True
        if task.seen is not None:
            outputs[number, list(items(row, task.seen, number + 1, count))] = -np.inf
    return Answered(metrics=tuple(ranking(outputs, relevant, k=task.k)), lost=0)


def answer_classify(
    task: ClassifyTask, rows: Sequence[Json], served: Served, model: str, tell: Tell
) -> Answered:
    """Measures a classifier of texts; raises UsageError for rows that do not fit."""
    places = {name: place for place, name in enumerate(task.classes)}
    labels = np.array([_class(row, task, places, n) for n, row in enumerate(rows, 1)])
    texts = [str(field(row, task.text, n)) for n, row in enumerate(rows, 1)]

    def tensor(begin: int, end: int) -> Tensor:
        part = texts[begin:end]
        return {"name": task.input, "shape": [len(part)], "datatype": "BYTES", "data": part}

    outputs = _infer(tensor, len(rows), task.output, served, model, tell)
    if outputs.shape[1] != len(task.classes):
        raise UsageError(
            f"the model tells {outputs.shape[1]} classes apart, the task names {len(task.classes)}",
            hint="its config.json has them in order, under id2label",
        )
    yes = places[task.positive] if task.positive is not None else len(task.classes) - 1
    return Answered(
        metrics=tuple(classes(labels, outputs)), lost=0, labels=(labels == yes).astype(np.int64),
        chances=outputs[:, yes], groups=_groups(task.group, rows),
    )  # fmt: skip


def _class(row: Json, task: ClassifyTask, places: Mapping[str, int], number: int) -> int:
    name = str(field(row, task.label, number))
    if name not in places:
        raise UsageError(f"row {number}: {name!r} is none of the classes {', '.join(places)}")
    return places[name]


def _groups(name: str | None, rows: Sequence[Json]) -> Any:
    if name is None:
        return None
    return np.array([str(field(row, name, n)) for n, row in enumerate(rows, 1)])


def _of_numbers(
    task: TableTask | RankTask, rows: Sequence[Json], served: Served, model: str, tell: Tell
) -> Outputs:
    values = [numbers(row, task.features, number) for number, row in enumerate(rows, 1)]
    if len({len(row) for row in values}) != 1:
        raise UsageError("the rows have different numbers of features")
    whole = isinstance(task, RankTask) and task.integers

    def tensor(begin: int, end: int) -> Tensor:
        part = values[begin:end]
        data = [int(v) if whole else v for row in part for v in row]
        return {"name": task.input, "shape": [len(part), len(part[0])],
                "datatype": "INT64" if whole else "FP32", "data": data}  # fmt: skip

    return _infer(tensor, len(values), task.output, served, model, tell)


def _infer(
    tensor: Callable[[int, int], Tensor], rows: int, output: str, served: Served, model: str,
    tell: Tell,
) -> Outputs:  # fmt: skip
    """Returns the model's output for all rows; `tensor` makes the input of some of them."""

    def ask(begin: int) -> Outputs:
        part = tensor(begin, min(begin + _ROWS_A_CALL, rows))
        body = {"inputs": [part], "outputs": [{"name": output}]}
        said = served.post(f"/v2/models/{model}/infer", body)
        return _output(said, output, part["shape"][0])

    starts = list(range(0, rows, _ROWS_A_CALL))
    parts = ask_all(ask, starts, lambda done, _: tell(min(done * _ROWS_A_CALL, rows), rows))
    return np.concatenate(parts)


def _output(said: Json, name: str, rows: int) -> Outputs:
    for output in said.get("outputs", ()):
        if output.get("name") == name:
            found = np.array(output["data"], dtype=float).reshape(output["shape"])
            if found.shape[:1] == (rows,):
                return found.reshape(rows, -1)
    raise UsageError(f"the model gives no output {name!r} with a row for each question")

"""Metrics of answers: each with its value, and rows or draws that say how sure it is. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError

Rows = NDArray[np.float64]
Labels = NDArray[np.int64]
_TINY = 1e-7


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A measured number over `count` rows.

    `rows`: when it is the mean of values from 0 to 1, those; else `over` computes it for any rows,
    by their numbers.
    """

    name: str
    value: float
    count: int
    better: Literal["higher", "lower"] = "higher"
    rows: Rows | None = None
    over: Callable[[NDArray[np.int64]], float] | None = None


def mean_of(name: str, rows: Rows, better: Literal["higher", "lower"] = "higher") -> Metric:
    """Returns the mean of rows from 0 to 1 as a metric."""
    value = float(rows.mean()) if len(rows) else float("nan")
    return Metric(name=name, value=value, count=len(rows), better=better, rows=rows)


def computed(
    name: str, count: int, over: Callable[[NDArray[np.int64]], float],
    better: Literal["higher", "lower"] = "higher",
) -> Metric:  # fmt: skip
    """Returns what `over` makes of all rows as a metric."""
    value = over(np.arange(count))
    return Metric(name=name, value=value, count=count, better=better, over=over)


def classification(labels: Labels, chances: Rows, *, threshold: float = 0.5) -> list[Metric]:
    """Returns the metrics of a yes-or-no classifier.

    `labels` are 0 or 1, `chances` what it gave for 1, both of shape [rows].
    Raises UsageError for what is no chance.
    """
    _check_chances(chances)
    said = (chances >= threshold).astype(np.int64)
    clipped = np.clip(chances, _TINY, 1 - _TINY)
    loss = -(labels * np.log(clipped) + (1 - labels) * np.log(1 - clipped))
    return [
        mean_of("accuracy", (said == labels).astype(float)),
        mean_of("brier", (chances - labels) ** 2, "lower"),
        computed("log_loss", len(labels), lambda i: float(loss[i].mean()), "lower"),
        computed("auc", len(labels), lambda i: area(labels[i], chances[i])),
        computed("calibration_error", len(labels),
                 lambda i: calibration_error(labels[i], chances[i]), "lower"),
    ]  # fmt: skip


def classes(labels: Labels, chances: Rows) -> list[Metric]:
    """Returns the metrics of a classifier with several classes.

    `labels`: numbers of the right classes, shape [rows]; `chances`: shape [rows, classes].
    `macro_f1` is the mean over the classes that occur of 2 TP / (2 TP + FP + FN);
    `calibration_error` is that of the chance of the class that was chosen (Guo et al. 2017).
    Raises UsageError for what is no chance.
    """
    _check_chances(chances)
    said = chances.argmax(axis=1)
    right = said == labels
    sure = chances.max(axis=1)
    loss = -np.log(np.clip(chances[np.arange(len(labels)), labels], _TINY, 1.0))
    found = [
        mean_of("accuracy", right.astype(float)),
        computed("macro_f1", len(labels), lambda i: macro_f1(labels[i], said[i])),
        computed("log_loss", len(labels), lambda i: float(loss[i].mean()), "lower"),
        computed("calibration_error", len(labels),
                 lambda i: calibration_error(right[i].astype(np.int64), sure[i]), "lower"),
    ]  # fmt: skip
    if chances.shape[1] == 2:
        one = chances[:, 1]
        found.append(computed("auc", len(labels), lambda i: area(labels[i], one[i])))
    return found


def _check_chances(chances: Rows) -> None:
    """Raises UsageError for NaN and numbers outside of 0 to 1: no verdict may come of them."""
    odd = ~((chances >= -_TINY) & (chances <= 1 + _TINY))
    if odd.any():
        row = int(np.argwhere(odd)[0][0])
        raise UsageError(
            f"the model's answer to row {row + 1} holds {chances[odd][0]:g}, which is no chance "
            f"from 0 to 1 (one of {int(odd.sum())})",
            hint="the output named in the task has to be probabilities",
        )


def macro_f1(labels: Labels, said: Labels) -> float:
    """Returns the mean F1 over the classes in `labels` or `said`."""
    size = int(max(labels.max(), said.max())) + 1
    hits = np.bincount(labels[labels == said], minlength=size)
    both = np.bincount(labels, minlength=size) + np.bincount(said, minlength=size)
    there = both > 0
    return float((2 * hits[there] / both[there]).mean())


def area(labels: Labels, chances: Rows) -> float:
    """Returns the area under the ROC curve: the chance that a 1 is ranked above a 0, ties half.

    By ranks (Mann and Whitney 1947). NaN where one class is missing.
    """
    ones = int(labels.sum())
    zeros = len(labels) - ones
    if not ones or not zeros:
        return float("nan")
    _, place, counts = np.unique(chances, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    total = float(ranks[place][labels == 1].sum())
    return (total - ones * (ones + 1) / 2) / (ones * zeros)


def calibration_error(labels: Labels, chances: Rows, *, bins: int = 10) -> float:
    """Returns the expected calibration error over bins of equal width (Naeini et al. 2015)."""
    place = np.minimum((chances * bins).astype(np.int64), bins - 1)
    counts = np.bincount(place, minlength=bins)
    hits = np.bincount(place, weights=labels.astype(float), minlength=bins)
    given = np.bincount(place, weights=chances, minlength=bins)
    return float(np.abs(hits - given).sum() / max(1, counts.sum()))


def ranking(scores: Rows, relevant: NDArray[np.bool_], *, k: int = 10) -> list[Metric]:
    """Returns recall, NDCG and hit rate at `k`, each a mean over callers.

    `scores` and `relevant` have the shape [callers, items]; callers without a relevant item are
    left out. NDCG with gains of 0 and 1 (Järvelin and Kekäläinen 2002). Raises UsageError for NaN.
    """
    if np.isnan(scores).any():
        row = int(np.argwhere(np.isnan(scores))[0][0])
        raise UsageError(f"the model's answer to row {row + 1} holds NaN, which is no score")
    asked = relevant.any(axis=1)
    scores, relevant = scores[asked], relevant[asked]
    k = min(k, scores.shape[1])
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    hits = np.take_along_axis(relevant, top, axis=1)
    discount = 1 / np.log2(np.arange(2, k + 2))
    wanted = relevant.sum(axis=1)
    best = np.cumsum(discount)[np.minimum(wanted, k) - 1]
    return [
        mean_of(f"recall_at_{k}", hits.sum(axis=1) / np.minimum(wanted, k)),
        mean_of(f"ndcg_at_{k}", (hits * discount).sum(axis=1) / best),
        mean_of(f"hit_rate_at_{k}", hits.any(axis=1).astype(float)),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The largest difference of a rate between two groups, and the groups that have it."""

    name: str
    value: float
    low_group: str
    high_group: str
    rates: dict[str, float]


def gaps(labels: Labels, said: Labels, groups: NDArray[np.str_]) -> list[Gap]:
    """Returns fairness gaps of decisions `said` (0 or 1), by group.

    `selection`: rates of 1 (demographic parity); `opportunity`: of 1 where the label is 1 (equal
    opportunity, Hardt et al. 2016); `false_alarm`: of 1 where it is 0; `accuracy`.
    """
    right = (said == labels).astype(float)
    every = np.ones(len(labels), dtype=bool)
    asked = (
        ("selection", said.astype(float), every),
        ("opportunity", said.astype(float), labels == 1),
        ("false_alarm", said.astype(float), labels == 0),
        ("accuracy", right, every),
    )
    return [_gap(name, values, where, groups) for name, values, where in asked]


def _gap(name: str, values: Rows, where: NDArray[np.bool_], groups: NDArray[np.str_]) -> Gap:
    rates = {
        str(group): float(values[where & (groups == group)].mean())
        for group in np.unique(groups)
        if (where & (groups == group)).any()
    }
    if not rates:
        return Gap(name=name, value=0.0, low_group="", high_group="", rates={})
    low = min(rates, key=lambda group: rates[group])
    high = max(rates, key=lambda group: rates[group])
    return Gap(
        name=name, value=rates[high] - rates[low], low_group=low, high_group=high, rates=rates
    )

"""Zeros in place of small weights: by magnitude, or n of every m.

Magnitude pruning: Han et al. 2015, *Learning both weights and connections for efficient neural
networks*. N:M: Mishra et al. 2021, *Accelerating sparse deep neural networks* (2:4 is what NVIDIA's
sparse tensor cores compute with).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lockgate.core.errors import UsageError
from lockgate.derive.steps.weights.floats import Wide
from lockgate.derive.steps.weights.reader import Tensor, chunks, values
from lockgate.derive.steps.weights.select import Cut, cut, is_small

Masked = Callable[[Wide], Wide]
"""The next rows of a tensor [rows, columns] → the same with zeros."""


class ByMagnitude:
    """Zeroes exactly a share of the weights: the smallest, of equals the first."""

    def __init__(self, where: Cut) -> None:
        self._where = where
        self._seen = 0

    def __call__(self, rows: Wide) -> Wide:
        """Returns the next rows with their small weights zero."""
        small, self._seen = is_small(rows, self._where, self._seen)
        return np.where(small, np.float32(0), rows)


def smallest(tensors: Sequence[Tensor], share: float) -> Cut:
    """Returns the cut below which `share` of the weights of `tensors`, taken together, are."""

    def stream() -> Iterable[Wide]:
        for tensor in tensors:
            for begin, end in chunks(tensor):
                yield values(tensor, begin, end)

    return cut(stream, round(share * sum(tensor.elements for tensor in tensors)))


def n_of_m(rows: Wide, n: int, m: int) -> Wide:
    """Returns rows [rows, columns] with only the `n` largest of every `m` along each row.

    Of equals the first stay. `m` must divide the columns.
    """
    groups = rows.reshape(len(rows), -1, m)
    order = np.argsort(-np.abs(groups), axis=-1, kind="stable")
    ranks = np.argsort(order, axis=-1, kind="stable")
    return np.where(ranks < n, groups, np.float32(0)).reshape(rows.shape)


def check_columns(tensors: Sequence[Tensor], m: int) -> None:
    """Raises UsageError, naming the first, when rows can't be cut into groups of `m`."""
    odd = [tensor for tensor in tensors if tensor.columns % m]
    if odd:
        raise UsageError(
            f"rows of {odd[0].name} {list(odd[0].shape)} can't be cut into groups of {m}",
            hint=f"choose an m that divides {odd[0].columns}",
        )

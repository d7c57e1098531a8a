"""GPTQ: quantizes a layer column by column and makes the columns left make up for the error.

Frantar et al. 2022, *GPTQ: accurate post-training quantization for generative pre-trained
transformers*. With H = Σ x xᵀ over the calibration inputs, the error of a column's rounding is
spread over the later columns by the rows of the Cholesky factor of H⁻¹. Columns go in the order of
their activations' size; the scales are those of the weights as they were, so that the order leaves
no trace in the checkpoint ("static groups").
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError
from lockgate.derive.steps.quantizing.levels import Scales, levels_of, quantized, restored
from lockgate.derive.steps.quantizing.scheme import Scheme
from lockgate.derive.steps.weights.floats import Wide

Hessian = NDArray[np.float64]
_BLOCK = 128
_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """Levels [rows, columns] and the squared error of the layer's output, relative.

    `error` is Σ‖(W - Q) x‖² / Σ‖W x‖² over the calibration inputs; `plain` that of rounding to
    nearest with the same scales.
    """

    levels: Wide
    error: float
    plain: float


def solve(weight: Wide, hessian: Hessian, scales: Scales, scheme: Scheme, damp: float) -> Solved:
    """Returns the levels of `weight` [rows, columns] that GPTQ finds; `hessian` is H.

    `damp` times the mean of H's diagonal is added to it. Never worse than rounding to nearest:
    where it would be, that is what is returned. Raises UsageError for an H that can't be inverted.
    """
    nearest = quantized(weight, scales, scheme)
    total = output_error(weight, hessian)
    plain = output_error(weight - restored(nearest, scales), hessian)
    found = _columns(weight, hessian, scales, scheme, damp)
    error = output_error(weight - restored(found, scales), hessian)
    if not error < plain:
        found, error = nearest, plain
    whole = total or 1.0
    return Solved(levels=found, error=error / whole, plain=plain / whole)


def output_error(difference: Wide, hessian: Hessian) -> float:
    """Returns Σ‖D x‖² over the inputs that made H: the trace of D H Dᵀ."""
    wide = difference.astype(np.float64)
    return float(max(np.einsum("ij,ij->", wide @ hessian, wide), 0.0))


def _columns(weight: Wide, hessian: Hessian, scales: Scales, scheme: Scheme, damp: float) -> Wide:
    order = np.argsort(-np.diag(hessian), kind="stable")
    factor = _factor(hessian[np.ix_(order, order)], damp)
    scale, zero = (part[:, order] for part in scales.wide(weight.shape[1]))
    left = weight[:, order].astype(np.float32)
    levels = np.empty_like(left)
    count = left.shape[1]
    for begin in range(0, count, _BLOCK):
        end = min(begin + _BLOCK, count)
        errors = np.zeros((len(left), end - begin), np.float32)
        for column in range(begin, end):
            level = levels_of(left[:, column], scale[:, column], zero[:, column], scheme)
            levels[:, column] = level
            kept = (level - zero[:, column]) * scale[:, column]
            error = (left[:, column] - kept) / factor[column, column]
            left[:, column:end] -= np.outer(error, factor[column, column:end])
            errors[:, column - begin] = error
        left[:, end:] -= errors @ factor[begin:end, end:]
    out = np.empty_like(levels)
    out[:, order] = levels
    return out


def _factor(hessian: Hessian, damp: float) -> NDArray[np.float32]:
    """Returns U with H⁻¹ = UᵀU, upper triangular; more is added to H until it can be inverted."""
    mean = float(np.mean(np.diag(hessian)))
    share = damp
    for _ in range(_TRIES):
        try:
            if not np.isfinite(mean) or mean <= 0:
                break
            inverse = np.linalg.inv(hessian + share * mean * np.eye(len(hessian)))
            factor = np.linalg.cholesky((inverse + inverse.T) / 2).T.astype(np.float32)
            if np.isfinite(factor).all():
                return factor
        except np.linalg.LinAlgError:
            pass
        share *= 10
    raise UsageError(
        "the calibration text gives a layer no inputs to measure by",
        hint="give more and longer texts, of the kind that the model will see",
    )

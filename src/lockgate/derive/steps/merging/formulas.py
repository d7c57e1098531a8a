"""How tensors are merged: each formula on float32 parts of a tensor, with the paper it is from.

`base` and each of `others` are the same part of the same tensor in each model, flat.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from math import acos, sin, sqrt

import numpy as np

from lockgate.derive.steps.weights.floats import Wide
from lockgate.derive.steps.weights.select import Cut, is_small

_PARALLEL = 0.9995  # cosine from which a slerp is a line; sin(θ) would divide by almost nothing
_WORD = 2**64


def linear(parts: Sequence[Wide], weights: Sequence[float]) -> Wide:
    """Returns Σ wᵢ xᵢ / Σ wᵢ of all models (Wortsman et al. 2022, *Model soups*)."""
    total = sum(weights)
    out = np.zeros_like(parts[0])
    for part, weight in zip(parts, weights, strict=True):
        out += np.float32(weight / total) * part
    return out


def slerp_weights(dot: float, left: float, right: float, t: float) -> tuple[float, float]:
    """Returns what two tensors are multiplied with to go `t` of the arc from one to the other.

    `dot` is their product, `left` and `right` their squared lengths. sin((1-t)θ)/sin θ and
    sin(tθ)/sin θ (Shoemake 1985, *Animating rotation with quaternion curves*); a straight line
    where they are nearly parallel, opposite, or one is zero.
    """
    lengths = sqrt(left * right)
    cosine = dot / lengths if lengths else 1.0
    if abs(cosine) > _PARALLEL:
        return 1 - t, t
    angle = acos(cosine)
    return sin((1 - t) * angle) / sin(angle), sin(t * angle) / sin(angle)


def task_arithmetic(base: Wide, others: Sequence[Wide], weights: Sequence[float]) -> Wide:
    """Returns base + Σ wᵢ (xᵢ - base).

    Ilharco et al. 2023, *Editing models with task arithmetic*.
    """
    out = base.copy()
    for other, weight in zip(others, weights, strict=True):
        out += np.float32(weight) * (other - base)
    return out


class Trim:
    """TIES's first part: keeps the largest differences of each model, all others become zero."""

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self._cuts = cuts
        self._seen = [0] * len(cuts)

    def __call__(self, index: int, difference: Wide) -> Wide:
        """Returns the next part of model `index`'s difference, trimmed."""
        small, self._seen[index] = is_small(difference, self._cuts[index], self._seen[index])
        return np.where(small, np.float32(0), difference)


def ties(base: Wide, trimmed: Sequence[Wide], weights: Sequence[float], scale: float) -> Wide:
    """Returns base + scale · the mean of the trimmed differences that have the elected sign.

    The sign of an element is that of Σ wᵢ τᵢ, the mean Σ wᵢ τᵢ / Σ wᵢ is over the models that
    agree with it (Yadav et al. 2023, *TIES-Merging*; there all weights are 1 and a difference is
    trimmed as a whole, here tensor by tensor).
    """
    mass = np.zeros_like(base)
    for part, weight in zip(trimmed, weights, strict=True):
        mass += np.float32(weight) * part
    total, count = np.zeros_like(base), np.zeros_like(base)
    for part, weight in zip(trimmed, weights, strict=True):
        agrees = (np.sign(part) == np.sign(mass)) & (part != 0)
        total += np.where(agrees, np.float32(weight) * part, np.float32(0))
        count += np.where(agrees, np.float32(weight), np.float32(0))
    mean = np.divide(total, count, out=np.zeros_like(base), where=count > 0)
    return np.asarray(base + np.float32(scale) * mean)


class Dropout:
    """DARE's choice: drops each element of a difference by chance, the same for the same seed.

    The chance comes from the seed, the model's place and the tensor's name alone, by the raw words
    of NumPy's Philox, whose stream no release of NumPy may change.
    """

    def __init__(self, seed: int, name: str, models: int, rate: float) -> None:
        keys = [hashlib.sha256(f"{seed}:{index}:{name}".encode()) for index in range(models)]
        self._words = [
            np.random.Philox(key=int.from_bytes(key.digest()[:16], "little")) for key in keys
        ]
        self._least = np.uint64(min(int(rate * _WORD), _WORD - 1))
        self._rescale = np.float32(1 / (1 - rate))

    def __call__(self, index: int, difference: Wide) -> Wide:
        """Returns the next part of model `index`'s difference: dropped, or times 1 / (1 - rate)."""
        words = self._words[index].random_raw(len(difference))
        kept = np.asarray(words, np.uint64) >= self._least
        return np.where(kept, difference * self._rescale, np.float32(0))


def dare(base: Wide, dropped: Iterable[Wide], weights: Sequence[float]) -> Wide:
    """Returns base + Σ wᵢ δᵢ, the δᵢ with most elements dropped and the rest rescaled.

    Yu et al. 2024, *Language models are super Mario: absorbing abilities from homologous models as
    a free lunch*.
    """
    out = base.copy()
    for part, weight in zip(dropped, weights, strict=True):
        out += np.float32(weight) * part
    return out

"""Levels and scales: rounding to the nearest, GPTQ no worse than that, on any weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lockgate.core.errors import UsageError
from lockgate.derive.steps.quantizing.gptq import output_error, solve
from lockgate.derive.steps.quantizing.levels import (
    codes_of,
    levels_from,
    quantized,
    restored,
    scales_of,
)
from lockgate.derive.steps.quantizing.scheme import Scheme

INT8 = Scheme(kind="int", bits=8, symmetric=True, strategy="channel")
INT4 = Scheme(kind="int", bits=4, symmetric=True, strategy="group", group=8)
ODD4 = Scheme(kind="int", bits=4, symmetric=False, strategy="group", group=8)
FP8 = Scheme(kind="float", bits=8, symmetric=True, strategy="channel")
SCHEMES = [INT8, INT4, ODD4, FP8]
ROWS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.just(16)), elements=st.floats(-64, 64, width=32)
)


@given(ROWS, st.sampled_from(SCHEMES), st.sampled_from(["BF16", "F16", "F32"]), st.booleans())
def test_levels_are_near_and_within_bounds(
    rows: np.ndarray, scheme: Scheme, dtype: str, search: bool
) -> None:
    scales = scales_of(rows, scheme, dtype, search=search)
    levels = quantized(rows, scales, scheme)
    assert (levels >= scheme.low).all()
    assert (levels <= scheme.high).all()
    assert (levels_from(codes_of(levels, scheme), scheme) == levels).all()
    assert np.isfinite(restored(levels, scales)).all()
    if not search and dtype == "F32" and scheme.kind == "int":
        scale = scales.wide(16)[0]
        apart = np.abs(restored(levels, scales) - rows)
        assert (apart <= scale * 1.01 + 1e-6).all(), "one step: the top level is one short"


@given(ROWS, st.sampled_from(SCHEMES))
def test_a_search_is_never_worse(rows: np.ndarray, scheme: Scheme) -> None:
    def error(search: bool) -> float:
        scales = scales_of(rows, scheme, "BF16", search=search)
        apart = rows - restored(quantized(rows, scales, scheme), scales)
        return float(np.square(apart.astype(np.float64)).sum())

    assert error(search=True) <= error(search=False) * (1 + 1e-5) + 1e-9


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gptq_makes_the_output_error_smaller(scheme: Scheme) -> None:
    rng = np.random.default_rng(3)
    weight = rng.normal(0, 0.1, (24, 64)).astype("<f4")
    inputs = rng.normal(0, 1, (500, 16)) @ rng.normal(0, 1, (16, 64)) + rng.normal(
        0, 0.1, (500, 64)
    )
    hessian = inputs.T @ inputs
    scales = scales_of(weight, scheme, "BF16", search=False)
    solved = solve(weight, hessian, scales, scheme, 0.01)
    apart = weight - restored(solved.levels, scales)
    direct = np.square(inputs @ apart.T.astype(np.float64)).sum()
    assert output_error(apart, hessian) == pytest.approx(direct, rel=1e-6)
    assert solved.error == pytest.approx(direct / np.square(inputs @ weight.T).sum(), rel=1e-3)
    assert solved.error < 0.6 * solved.plain


@given(st.integers(0, 2**32), st.sampled_from(SCHEMES), st.integers(1, 40))
def test_gptq_is_never_worse_than_rounding(seed: int, scheme: Scheme, texts: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 1, (3, 16)).astype("<f4")
    inputs = rng.normal(0, 1, (texts, 16))
    inputs[:, rng.integers(0, 16, 3)] = 0
    scales = scales_of(weight, scheme, "F32", search=False)
    solved = solve(weight, inputs.T @ inputs, scales, scheme, 0.01)
    assert solved.error <= solved.plain
    assert (np.abs(solved.levels) <= max(-scheme.low, scheme.high)).all()


def test_gptq_without_inputs_is_refused() -> None:
    weight = np.ones((2, 16), "<f4")
    scales = scales_of(weight, INT8, "F32", search=False)
    with pytest.raises(UsageError, match="no inputs to measure"):
        solve(weight, np.zeros((16, 16)), scales, INT8, 0.01)

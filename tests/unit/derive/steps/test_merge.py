"""Merging, against the papers' formulas written again in plain torch, and what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lockgate.core.errors import UsageError
from lockgate.derive.steps.merge import Merge, MergeParameters
from lockgate.derive.steps.merging import formulas
from lockgate.derive.steps.weights import reader
from lockgate.derive.steps.weights.writer import ModelWriter, slot

from .bench import MODELS, Run, apart, blocks, digest, logits, read, write_model

V1, V2 = MODELS / "chat-v1", MODELS / "chat-v2"
Tensors = Sequence[Any]


def three(root: Path, dtype: str = "F32") -> list[Path]:
    return [write_model(root / f"m{seed}", blocks(seed=seed), dtype) for seed in (1, 2, 3)]


def soup(base: Any, others: Tensors) -> Any:
    return (2 * base + others[0] + 0.5 * others[1]) / 3.5


def arithmetic(base: Any, others: Tensors) -> Any:
    return base + 0.7 * (others[0] - base) - 0.4 * (others[1] - base)


def trimmed_elected_merged(base: Any, others: Tensors) -> Any:
    """Algorithm 1 of Yadav et al. 2023, per tensor: trim, elect, disjoint merge."""
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    taus = []
    for other in others:
        tau = (other - base).flatten()
        top = torch.topk(tau.abs(), max(round(0.3 * tau.numel()), 1)).indices
        mask = torch.zeros_like(tau)
        mask[top] = 1
        taus.append(tau * mask)
    stack = torch.stack(taus)
    elected = torch.sign(stack.sum(0))
    agree = (torch.sign(stack) == elected) & (stack != 0)
    mean = (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
    return base + 1.5 * mean.reshape(base.shape)


@pytest.mark.parametrize(
    ("asked", "reference"),
    [
        ({"method": "linear", "weights": (2, 1, 0.5)}, soup),
        ({"method": "task_arithmetic", "weights": (0.7, -0.4)}, arithmetic),
        ({"method": "ties", "density": 0.3, "scale": 1.5}, trimmed_elected_merged),
    ],
)
def test_merging_is_what_the_paper_says(
    tmp_path: Path, asked: dict[str, Any], reference: Callable[[Any, Tensors], Any]
) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    run, models = Run(tmp_path), three(tmp_path)
    out = run(Merge(), {"base": models[0], "others": models[1:]}, **asked)
    merged, given = read(out), [read(model) for model in models]
    for name, value in merged.items():
        wide = [torch.from_numpy(tensors[name]).double() for tensors in given]
        expected = reference(wide[0], wide[1:]).numpy()
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=2e-8)
    again = run(Merge(), {"base": models[0], "others": models[1:]}, **asked)
    assert digest(out) == digest(again)


@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_slerp_keeps_to_the_arc(tmp_path: Path, t: float) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    models = three(tmp_path)
    out = Run(tmp_path)(Merge(), {"base": models[0], "others": [models[1]]}, method="slerp", t=t)
    left, right = read(models[0]), read(models[1])
    for name, value in read(out).items():
        one, two = (torch.from_numpy(part[name]).double() for part in (left, right))
        cosine = (one * two).sum() / (one.norm() * two.norm())
        angle = torch.arccos(cosine)
        expected = (torch.sin((1 - t) * angle) * one + torch.sin(t * angle) * two) / torch.sin(
            angle
        )
        np.testing.assert_allclose(value, expected.numpy(), rtol=2e-5, atol=2e-8)


@given(st.floats(0, 1), st.floats(-1, 1), st.floats(0, 10), st.floats(0, 10))
def test_slerp_is_defined_everywhere(t: float, cosine: float, left: float, right: float) -> None:
    dot = cosine * (left * right) ** 0.5
    one, two = formulas.slerp_weights(dot, left, right, t)
    assert np.isfinite([one, two]).all()
    assert -1e-9 <= min(one, two) <= max(one, two) < 40


def test_dare_drops_by_chance_and_keeps_the_mean(tmp_path: Path) -> None:
    run = Run(tmp_path)
    shape = {"x.weight": (400, 500)}
    base = write_model(tmp_path / "b", {name: np.zeros(s, "<f4") for name, s in shape.items()})
    one = write_model(tmp_path / "o", {name: np.ones(s, "<f4") for name, s in shape.items()})
    asked: dict[str, Any] = {"method": "dare", "drop": 0.75}
    inputs = {"base": base, "others": [one, one]}
    out = run(Merge(), inputs, seed=3, **asked)
    value = read(out)["x.weight"]
    assert set(np.unique(value)) == {0.0, 4.0, 8.0}, "the two models drop different elements"
    assert (value == 0).mean() == pytest.approx(0.75**2, abs=0.01)
    assert value.mean() == pytest.approx(2, abs=0.02)
    assert digest(out) == digest(run(Merge(), inputs, seed=3, **asked))
    assert digest(out) != digest(run(Merge(), inputs, seed=4, **asked))


def test_dare_without_dropping_is_task_arithmetic(tmp_path: Path) -> None:
    run, models = Run(tmp_path), three(tmp_path)
    inputs = {"base": models[0], "others": models[1:]}
    one = run(Merge(), inputs, method="dare", drop=0, weights=(0.5, 0.25))
    two = run(Merge(), inputs, method="task_arithmetic", weights=(0.5, 0.25))
    for name, value in read(one).items():
        np.testing.assert_allclose(value, read(two)[name], rtol=1e-6, atol=1e-9)


def test_parts_do_not_change_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large tensors come in parts; a part of 7 elements gives the same bytes."""
    run, models = Run(tmp_path), three(tmp_path, "BF16")
    chunks = reader.chunks
    inputs = {"base": models[0], "others": models[1:]}
    for method in ("linear", "ties", "dare", "task_arithmetic"):
        monkeypatch.setattr("lockgate.derive.steps.merge.chunks", chunks)
        whole = digest(run(Merge(), inputs, method=method))
        monkeypatch.setattr("lockgate.derive.steps.merge.chunks", lambda tensor: chunks(tensor, 7))
        assert digest(run(Merge(), inputs, method=method)) == whole


def test_a_model_and_itself_is_itself(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for asked in (
        {"method": "linear"},
        {"method": "slerp"},
        {"method": "ties"},
        {"method": "dare"},
        {"method": "task_arithmetic"},
    ):
        out = run(Merge(), {"base": V1, "others": [V1]}, **asked)
        before, after = read(V1), read(out)
        assert all((before[name] == after[name]).all() for name in before)
        assert run.metrics["relative_change"] == 0


def test_a_merge_of_real_models_runs_between_them(tmp_path: Path) -> None:
    run = Run(tmp_path)
    out = run(Merge(), {"base": V1, "others": [V2]}, method="linear")
    assert 0 < run.metrics["relative_change"] < 1
    assert not (out / "model.onnx").exists()
    between, one, two = logits(out), logits(V1), logits(V2)
    assert max(apart(between, one), apart(between, two)) < apart(one, two) * 1.2


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    run, base = Run(tmp_path), write_model(tmp_path / "a", blocks())
    less = blocks()
    del less["model.norm.weight"]
    wide = blocks(neurons=32)
    for tensors, said in (
        (less, r"lacks model\.norm\.weight"),
        (blocks(layers=3), r"has also model\.layers\.2\..* and 4 more"),
        (wide, r"6 tensors differ in shape: .*down_proj\.weight \[16, 24\] against \[16, 32\]"),
    ):
        other = write_model(tmp_path / "b", tensors)
        with pytest.raises(UsageError, match=said):
            run(Merge(), {"base": base, "others": [other]}, method="linear")
    with pytest.raises(UsageError, match=r"lacks|has also"):
        run(Merge(), {"base": V1, "others": [MODELS / "chat-v3"]}, method="linear")


def test_numbers_of_models_and_weights_must_fit(tmp_path: Path) -> None:
    run, models = Run(tmp_path), three(tmp_path)
    with pytest.raises(UsageError, match="slerp merges two models"):
        run(Merge(), {"base": models[0], "others": models[1:]}, method="slerp")
    with pytest.raises(UsageError, match="was given 1"):
        run(Merge(), {"base": models[0], "others": []}, method="linear")
    with pytest.raises(UsageError, match="takes 3 weights here and was given 2"):
        run(Merge(), {"base": models[0], "others": models[1:]}, method="linear", weights=(1, 1))


def test_tensors_that_are_no_floats_must_agree(tmp_path: Path) -> None:
    def whole(folder: Path, number: int) -> Path:
        folder.mkdir()
        with ModelWriter(folder, [slot("ids", "I64", (1,)), slot("w", "F16", (2,))]) as writer:
            writer.append("ids", number.to_bytes(8, "little"))
            writer.append("w", np.array([1, 60000], "<f2").tobytes())
        return folder

    run = Run(tmp_path)
    one, same, other = (whole(tmp_path / name, n) for name, n in (("a", 5), ("b", 5), ("c", 6)))
    out = run(Merge(), {"base": one, "others": [same]}, method="linear")
    assert (out / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match="ids holds I64, no floats, and differs"):
        run(Merge(), {"base": one, "others": [other]}, method="linear")
    zero = write_model(tmp_path / "z", {"w": np.zeros(2)}, "F16")
    two = write_model(tmp_path / "y", {"w": np.array([0, 60000])}, "F16")
    with pytest.raises(UsageError, match="too large for F16"):
        run(
            Merge(),
            {"base": zero, "others": [two, two]},
            method="task_arithmetic",
        )


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    tensors = blocks()
    tensors["model.norm.weight"][3] = np.nan
    models = [write_model(tmp_path / "a", blocks()), write_model(tmp_path / "b", tensors)]
    with pytest.raises(UsageError, match=r"norm\.weight holds NaN"):
        Run(tmp_path)(Merge(), {"base": models[0], "others": [models[1]]}, method="ties")


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "linear", "t": 0.4},
        {"method": "linear", "weights": (1, -1)},
        {"method": "ties", "weights": (1, -1)},
        {"method": "ties", "density": 0},
        {"method": "dare", "drop": 1},
        {"method": "linear", "weights": (float("nan"),)},
    ],
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MergeParameters(**bad)

"""Pruning: exactly as much as asked, nothing but linear layers, and really smaller by neurons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lockgate.core.errors import UsageError
from lockgate.derive.steps.prune import Prune, PruneParameters

from .bench import MODELS, Run, apart, blocks, digest, logits, read, write_model

CHAT = MODELS / "chat-v1"


def pruned_names(tensors: dict[str, Any]) -> list[str]:
    return [name for name in tensors if name.endswith("_proj.weight")]


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_magnitude_removes_exactly_the_smallest(tmp_path: Path, scope: str) -> None:
    run = Run(tmp_path)
    before = read(CHAT)
    out = run(Prune(), {"base": CHAT}, method="magnitude", sparsity=0.3, scope=scope)
    after = read(out)
    names = pruned_names(before)
    zeros, total = 0, 0
    for name, value in before.items():
        if name not in names:
            assert (after[name] == value).all()
            continue
        gone = after[name] == 0
        assert (after[name][~gone] == value[~gone]).all()
        zeros, total = zeros + int(gone.sum()), total + value.size
        if scope == "tensor":
            assert gone.sum() == round(0.3 * value.size)
            assert np.abs(value[gone]).max() <= np.abs(value[~gone]).min()
    assert zeros == round(0.3 * total) or scope == "tensor"
    assert run.metrics["sparsity"] == pytest.approx(0.3, abs=1e-3)
    if scope == "global":
        gone = np.concatenate([np.abs(before[name][after[name] == 0]) for name in names])
        left = np.concatenate([np.abs(before[name][after[name] != 0]) for name in names])
        assert gone.max() <= left.min()
    assert digest(out) == digest(
        run(Prune(), {"base": CHAT}, method="magnitude", sparsity=0.3, scope=scope)
    )


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_magnitude_removes_what_torch_s_own_pruning_does(tmp_path: Path, scope: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    from torch.nn.utils import prune

    base = write_model(tmp_path / "m", blocks())
    before = read(base)
    after = read(
        Run(tmp_path)(Prune(), {"base": base}, method="magnitude", sparsity=0.4, scope=scope)
    )
    layers = {}
    for name in pruned_names(before):
        layers[name] = torch.nn.Linear(before[name].shape[1], before[name].shape[0], bias=False)
        layers[name].weight.data = torch.from_numpy(before[name].copy())
    if scope == "global":
        every = [(layer, "weight") for layer in layers.values()]
        prune.global_unstructured(every, pruning_method=prune.L1Unstructured, amount=0.4)
    for name, layer in layers.items():
        if scope == "tensor":
            prune.l1_unstructured(layer, "weight", amount=0.4)
        assert (after[name] == layer.weight.detach().numpy()).all()


def test_two_of_four_stay(tmp_path: Path) -> None:
    run = Run(tmp_path)
    before = read(CHAT)
    after = read(run(Prune(), {"base": CHAT}, method="n:m"))
    for name in pruned_names(before):
        old, new = before[name].reshape(-1, 4), after[name].reshape(-1, 4)
        kept = np.zeros_like(old, bool)
        np.put_along_axis(kept, np.argsort(-np.abs(old), axis=1, kind="stable")[:, :2], True, 1)
        assert (new == np.where(kept, old, 0)).all()
    assert run.metrics["sparsity"] == pytest.approx(0.5, abs=1e-3)


def test_rows_that_groups_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", blocks(neurons=21))
    with pytest.raises(UsageError, match=r"down_proj\.weight \[16, 21\].*groups of 4"):
        Run(tmp_path)(Prune(), {"base": folder}, method="n:m")


def test_neurons_go_as_a_whole_and_the_model_runs(tmp_path: Path) -> None:
    run = Run(tmp_path)
    out = run(Prune(), {"base": CHAT}, method="structured", sparsity=0.25, multiple_of=8)
    assert json.loads((out / "config.json").read_text())["intermediate_size"] == 96
    assert run.metrics["bytes_after"] < run.metrics["bytes_before"]
    assert (out / "model.safetensors").stat().st_size < (CHAT / "model.safetensors").stat().st_size
    before, after = read(CHAT), read(out)
    for layer in range(2):
        at = f"model.layers.{layer}.mlp"
        old = [before[f"{at}.{part}_proj.weight"] for part in ("gate", "up", "down")]
        new = [after[f"{at}.{part}_proj.weight"] for part in ("gate", "up", "down")]
        wide = [value.astype(float) for value in old]
        score = (wide[0] ** 2).sum(1) + (wide[1] ** 2).sum(1) + (wide[2] ** 2).sum(0)
        kept = np.sort(np.argsort(-score, kind="stable")[:96])
        assert (new[0] == old[0][kept]).all()
        assert (new[1] == old[1][kept]).all()
        assert (new[2] == old[2][:, kept]).all()
    assert logits(out).shape == logits(CHAT).shape


def test_zeroed_neurons_can_go_without_a_difference(tmp_path: Path) -> None:
    """Remove exactly the neurons that do nothing: the answers stay."""
    tensors = read(CHAT)
    for name, value in tensors.items():
        if ".mlp." in name:
            dead = np.arange(128) % 2 == 1
            value[(slice(None), dead) if "down" in name else dead] = 0
    source = tmp_path / "half"
    write_model(source, tensors, "BF16")
    for rest in ("config.json", "tokenizer.json"):
        (source / rest).write_bytes((CHAT / rest).read_bytes())
    out = Run(tmp_path)(Prune(), {"base": source}, method="structured", sparsity=0.5)
    assert apart(logits(out), logits(source)) < 1e-5


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_biases_go_with_their_neurons(tmp_path: Path, norm: str) -> None:
    tensors = blocks()
    tensors["model.layers.0.mlp.up_proj.bias"] = np.arange(24, dtype="<f4")
    tensors["model.layers.0.mlp.down_proj.bias"] = np.arange(16, dtype="<f4")
    folder = write_model(tmp_path / "m", tensors, intermediate_size=24)
    out = read(Run(tmp_path)(Prune(), {"base": folder}, method="structured", norm=norm))
    assert out["model.layers.0.mlp.up_proj.bias"].shape == (12,)
    assert out["model.layers.0.mlp.down_proj.bias"].shape == (16,)
    kept = out["model.layers.0.mlp.up_proj.bias"].astype(int)
    old = tensors["model.layers.0.mlp.up_proj.weight"]
    assert (out["model.layers.0.mlp.up_proj.weight"] == old[kept]).all()


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    other = write_model(tmp_path / "a", blocks(), model_type="mixtral", intermediate_size=24)
    with pytest.raises(UsageError, match="this is mixtral"):
        run(Prune(), {"base": other}, method="structured")
    wrong = write_model(tmp_path / "b", blocks(), intermediate_size=32)
    with pytest.raises(UsageError, match="does not have the 32 neurons"):
        run(Prune(), {"base": wrong}, method="structured")
    tensors = blocks()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    half = write_model(tmp_path / "c", tensors, intermediate_size=24)
    with pytest.raises(UsageError, match=r"layers\.1\.mlp has not gate_proj"):
        run(Prune(), {"base": half}, method="structured")
    plain = write_model(tmp_path / "d", {"x.weight": np.ones((2, 2))})
    with pytest.raises(UsageError, match="no linear layers"):
        run(Prune(), {"base": plain}, method="magnitude")
    done = write_model(tmp_path / "e", blocks(), quantization_config={"quant_method": "gptq"})
    with pytest.raises(UsageError, match="quantized already"):
        run(Prune(), {"base": done}, method="magnitude")


def test_the_head_is_pruned_only_when_asked(tmp_path: Path) -> None:
    folder, run = write_model(tmp_path / "m", blocks()), Run(tmp_path)
    plain = read(run(Prune(), {"base": folder}, method="magnitude", scope="global"))
    asked = read(run(Prune(), {"base": folder}, method="magnitude", scope="global", lm_head=True))
    assert (plain["lm_head.weight"] != 0).all()
    assert (asked["lm_head.weight"] == 0).any()
    with pytest.raises(UsageError, match="no lm_head"):
        run(Prune(), {"base": CHAT}, method="magnitude", lm_head=True)


def test_stale_weights_are_left_behind_unless_kept(tmp_path: Path) -> None:
    run = Run(tmp_path)
    out = run(Prune(), {"base": CHAT}, method="n:m")
    assert not (out / "model.onnx").exists()
    assert (out / "tokenizer.json").exists()
    assert "model.onnx.data" in run.said[-1]
    assert (
        run(Prune(), {"base": CHAT}, method="n:m", keep_other_weights=True) / "model.onnx"
    ).exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"method": "magnitude", "n": 1},
        {"method": "n:m", "n": 4, "m": 4},
        {"method": "magnitude", "sparsity": 1.0},
        {"method": "structured", "odd": 1},
        {"method": "other"},
    ],
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PruneParameters(**bad)

"""Adapters: W + alpha/r B A, against plain matrices; what is not understood is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockgate.core.errors import UsageError
from lockgate.derive.steps.merge import MergeLora
from lockgate.derive.steps.weights.floats import narrow
from lockgate.derive.steps.weights.writer import ModelWriter, slot

from .bench import Run, Values, blocks, digest, read, write_model

Q0 = "model.layers.0.self_attn.q_proj"
UP1 = "model.layers.1.mlp.up_proj"
PLAIN = {  # what PEFT 0.21 writes for plain LoRA
    "alora_invocation_tokens": None, "alpha_pattern": {}, "arrow_config": None,
    "auto_mapping": None, "base_model_name_or_path": "chat-v1", "bias": "none",
    "corda_config": None, "ensure_weight_tying": False, "eva_config": None,
    "exclude_modules": None, "fan_in_fan_out": False, "inference_mode": True,
    "init_lora_weights": True, "kasa_config": None, "layer_replication": None,
    "layers_pattern": None, "layers_to_transform": None, "loftq_config": {}, "lora_alpha": 6,
    "lora_bias": False, "lora_dropout": 0.1, "lora_ga_config": None, "megatron_config": None,
    "megatron_core": "megatron.core", "modules_to_save": None, "monteclora_config": None,
    "peft_type": "LORA", "peft_version": "0.21.2", "qalora_group_size": 16, "r": 4,
    "rank_pattern": {}, "revision": None, "target_modules": ["up_proj", "q_proj"],
    "target_parameters": None, "task_type": "CAUSAL_LM", "trainable_token_indices": None,
    "use_bdlora": None, "use_dora": False, "use_qalora": False, "use_rslora": False,
    "velora_config": None,
}  # fmt: skip


def adapter(root: Path, factors: dict[str, Values], **config: Any) -> Path:
    """A folder as PEFT saves it."""
    folder = root / "adapter"
    folder.mkdir(exist_ok=True)
    slots = [slot(name, "F32", value.shape) for name, value in factors.items()]
    with ModelWriter(folder, slots) as writer:
        for name, value in factors.items():
            writer.append(name, narrow(value, "F32"))
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **config}))
    return folder


def factors(rank: int = 4) -> dict[str, Values]:
    rng = np.random.default_rng(4)
    made = {}
    for module, rows in ((Q0, 16), (UP1, 24)):
        at = f"base_model.model.{module}"
        made[f"{at}.lora_A.weight"] = rng.normal(0, 1, (rank, 16)).astype("<f4")
        made[f"{at}.lora_B.weight"] = rng.normal(0, 1, (rows, rank)).astype("<f4")
    return made


@pytest.mark.parametrize("config", [{}, {"use_rslora": True}])
def test_an_adapter_is_added(tmp_path: Path, config: dict[str, Any]) -> None:
    run, base, made = Run(tmp_path), write_model(tmp_path / "m", blocks()), factors()
    inputs = {"base": base, "adapter": adapter(tmp_path, made, **config)}
    out = run(MergeLora(), inputs, weight=0.5)
    scale = 0.5 * 6 / (2 if config else 4)
    before, after = read(base), read(out)
    for name, value in before.items():
        module = name.removesuffix(".weight")
        if module in (Q0, UP1):
            down, up = (
                made[f"base_model.model.{module}.lora_{letter}.weight"].astype(float)
                for letter in "AB"
            )
            expected = value + scale * up @ down
        else:
            expected = value
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)
    assert run.metrics["changed"] == 2
    assert digest(out) == digest(run(MergeLora(), inputs, weight=0.5))


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"alora_invocation_tokens": [1, 2]},
        {"loftq_config": {"loftq_bits": 4}},
        {"target_parameters": ["experts"]},
        {"peft_type": "IA3"},
        {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 8}},
        {"fan_in_fan_out": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"a_key_of_tomorrow": 1},
        {"r": 0},
        {"lora_alpha": "x"},
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    base = write_model(tmp_path / "m", blocks())
    with pytest.raises(UsageError, match=next(iter(config))):
        Run(tmp_path)(
            MergeLora(), {"base": base, "adapter": adapter(tmp_path, factors(), **config)}
        )


def test_an_adapter_must_fit_its_base(tmp_path: Path) -> None:
    run, base = Run(tmp_path), write_model(tmp_path / "m", blocks())

    def refused(made: dict[str, Values], said: str, **config: Any) -> None:
        given = {"base": base, "adapter": adapter(tmp_path, made, **config)}
        with pytest.raises(UsageError, match=said):
            run(MergeLora(), given)

    refused(factors(8), "its rank 4")
    made = factors()
    at = f"base_model.model.{Q0}"
    refused({**made, f"{at}.lora_magnitude_vector": np.ones(3, "<f4")}, "no LoRA pairs")
    refused({**made, f"{at}.lora_B.weight": np.ones((9, 4), "<f4")}, r"does not fit .*q_proj")
    other = {name.replace("layers.0", "layers.7"): value for name, value in made.items()}
    refused(other, r"layers\.7.*which the base does not have")
    del made[f"{at}.lora_B.weight"]
    refused(made, r"no LoRA pairs: .*lora_A")
    refused({}, "none at all")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no adapter_model"):
        run(MergeLora(), {"base": base, "adapter": tmp_path / "adapter"})

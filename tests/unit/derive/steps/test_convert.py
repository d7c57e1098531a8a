"""Casting, and ONNX for onnxruntime-genai: the same answers in another form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockgate.core.errors import UsageError
from lockgate.derive.steps.convert import Cast, ConvertOnnx
from lockgate.derive.steps.weights.reader import open_model
from lockgate.derive.steps.weights.writer import ModelWriter, slot

from .bench import MODELS, Run, apart, blocks, digest, logits, read, transformers, write_model

CHAT = MODELS / "chat-v1"


def test_a_cast_up_and_down_again_is_the_same(tmp_path: Path) -> None:
    run = Run(tmp_path)
    wide = run(Cast(), {"base": CHAT}, to="f32")
    assert run.metrics["relative_error"] == 0
    assert run.metrics["bytes_after"] == 2 * run.metrics["bytes_before"]
    assert json.loads((wide / "config.json").read_text())["dtype"] == "float32"
    again = run(Cast(), {"base": wide}, to="bf16")
    assert (again / "model.safetensors").read_bytes() == (
        run(Cast(), {"base": CHAT}, to="bf16") / "model.safetensors"
    ).read_bytes()
    before, after = read(CHAT), read(again)
    assert all((before[name] == after[name]).all() for name in before)
    assert apart(logits(wide), logits(CHAT)) < 1e-6


def test_a_cast_rounds_as_torch_does(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    model = write_model(tmp_path / "m", blocks())
    run = Run(tmp_path)
    for to, kind in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        out = read(run(Cast(), {"base": model}, to=to))
        for name, value in read(model).items():
            assert (out[name] == torch.from_numpy(value).to(kind).float().numpy()).all()
        assert 0 < run.metrics["relative_error"] < 0.01


def test_what_is_no_float_is_left_and_what_overflows_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    with ModelWriter(folder, [slot("ids", "I64", (1,)), slot("w", "F32", (2,))]) as writer:
        writer.append("ids", (7).to_bytes(8, "little"))
        writer.append("w", np.array([1, 1e6], "<f4").tobytes())
    run = Run(tmp_path)
    out = open_model(run(Cast(), {"base": folder}, to="bf16")).tensors
    assert (out["ids"].dtype, out["w"].dtype) == ("I64", "BF16")
    with pytest.raises(UsageError, match="w has a weight too large for F16"):
        run(Cast(), {"base": folder}, to="f16")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("precision", "most"), [("fp32", 1e-4), ("int4", 0.15)])
def test_onnx_answers_as_the_model_did(tmp_path: Path, precision: str, most: float) -> None:
    library = transformers()
    pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")
    runtime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    run = Run(tmp_path)
    out = run(ConvertOnnx(), {"base": CHAT}, precision=precision)
    assert not (out / "model.safetensors").exists()
    assert json.loads((out / "genai_config.json").read_text())["model"]["type"] == "llama"
    tokens = np.arange(6, 30, dtype=np.int64)[None]
    session = runtime.InferenceSession(str(out / "model.onnx"))
    given: dict[str, Any] = {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}
    for item in session.get_inputs():
        given.setdefault(item.name, np.zeros((1, 4, 0, 16), "<f4"))
    model = library.AutoModelForCausalLM.from_pretrained(CHAT, dtype=torch.float32)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)).logits.numpy()
    assert apart(session.run(["logits"], given)[0], expected) < most
    assert digest(out) == digest(run(ConvertOnnx(), {"base": CHAT}, precision=precision))


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_the_builder_does_not_know_is_refused(tmp_path: Path) -> None:
    transformers()
    pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")
    model = write_model(tmp_path / "m", blocks(), model_type="of-tomorrow")
    with pytest.raises(UsageError, match="onnxruntime-genai can't build this model"):
        Run(tmp_path)(ConvertOnnx(), {"base": model})

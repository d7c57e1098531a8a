"""Quantized folders: transformers loads and runs them; bits are those of compressed-tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lockgate.core.errors import UsageError
from lockgate.derive.api import Work
from lockgate.derive.steps.quantize import Quantize, QuantizeParameters
from lockgate.derive.steps.weights.reader import open_model, raw_bytes

from .bench import MODELS, Run, apart, blocks, digest, logits, read, transformers, write_model

CHAT = MODELS / "chat-v1"
INT8: dict[str, Any] = {"kind": "int8"}
INT8_GROUPS: dict[str, Any] = {"kind": "int8", "group_size": 32}
W8A8: dict[str, Any] = {"kind": "int8", "activations": "dynamic"}
INT4: dict[str, Any] = {"kind": "int4", "group_size": 32, "search": True}
ODD4: dict[str, Any] = {"kind": "int4", "group_size": 16, "symmetric": False}
FP8: dict[str, Any] = {"kind": "fp8"}
FP8_DYNAMIC: dict[str, Any] = {"kind": "fp8", "activations": "dynamic"}
FP8_TENSOR: dict[str, Any] = {"kind": "fp8", "per_tensor": True}
KINDS = [
    pytest.param(INT8, 0.01, id="int8"),
    pytest.param(INT8_GROUPS, 0.01, id="int8-groups"),
    pytest.param(W8A8, 0.02, id="w8a8"),
    pytest.param(INT4, 0.11, id="int4"),
    pytest.param(ODD4, 0.08, id="int4-asymmetric"),
    pytest.param(FP8, 0.035, id="fp8"),
    pytest.param(FP8_DYNAMIC, 0.045, id="fp8-dynamic"),
    pytest.param(FP8_TENSOR, 0.035, id="fp8-tensor"),
]


def compressor() -> Any:
    transformers()
    return pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")


def stored(folder: Path) -> dict[str, Any]:
    """Every tensor of a folder in torch, by the safetensors project's reader."""
    library: Any = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    return dict(library.load_file(folder / "model.safetensors"))


def loading(asked: dict[str, Any]) -> dict[str, Any]:
    """Zero points load only by way of `dequantize`.

    compressed-tensors 0.20 does not pack them on the meta device, where transformers 5 makes room
    for what it will load (its `compress` returns early there); vLLM reads them packed.
    """
    if asked.get("symmetric", True):
        return {}
    return {"quantization_config": transformers().CompressedTensorsConfig(dequantize=True)}


@pytest.fixture(scope="module")
def plain() -> np.ndarray:
    return logits(CHAT)


@pytest.mark.parametrize(("asked", "most"), KINDS)
@pytest.mark.filterwarnings("ignore")
def test_transformers_loads_and_runs_it(
    tmp_path: Path, plain: np.ndarray, asked: dict[str, Any], most: float
) -> None:
    """The logits stay within `most`, relative to those of the model before."""
    compressor()
    run = Run(tmp_path)
    out = run(Quantize(), {"base": CHAT}, **asked)
    assert apart(logits(out, **loading(asked)), plain) < most
    assert 0 < run.metrics["relative_error"] <= run.metrics["relative_error_worst"] < 0.2
    assert run.metrics["bytes_after"] < 0.75 * run.metrics["bytes_before"]
    assert run.metrics["layers"] == 14
    assert sum("relative error" in line for line in run.said) == 14
    assert digest(out) == digest(run(Quantize(), {"base": CHAT}, **asked))


@pytest.mark.parametrize(("asked", "most"), KINDS)
def test_bits_are_those_of_compressed_tensors(
    tmp_path: Path, asked: dict[str, Any], most: float
) -> None:
    """Their compressor, on the same weights and scales in float32, gives the same tensors."""
    compressor()
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
    from compressed_tensors.quantization import QuantizationScheme

    out = Run(tmp_path)(Quantize(), {"base": CHAT}, **asked)
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    scheme = QuantizationScheme(**settings["config_groups"]["group_0"])
    library = BaseCompressor.get_value_from_registry(settings["format"])
    ours, before = stored(out), stored(CHAT)
    for name in [name for name in before if name.endswith("_proj.weight")]:
        scale = ours[f"{name}_scale"]
        given = {"weight": before[name].float(), "weight_scale": scale.float()}
        zeros = None
        if f"{name}_zero_point" in ours:
            shape = torch.Size((before[name].shape[0], scale.shape[1]))
            zeros = unpack_from_int32(ours[f"{name}_zero_point"], 4, shape, 0)
            given["weight_zero_point"] = zeros
        theirs = library.compress(given, scheme)
        for key in ("weight", "weight_packed", "weight_shape", "weight_zero_point"):
            mine = ours.get(name.removesuffix("weight") + key)
            assert (mine is None) == (key not in theirs)
            if mine is not None:
                assert mine.dtype == theirs[key].dtype
                assert torch.equal(mine.view(torch.uint8), theirs[key].view(torch.uint8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_scales_are_those_of_compressed_tensors(tmp_path: Path, symmetric: bool) -> None:
    compressor()
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams

    model = write_model(tmp_path / "m", blocks(), "F32")
    out = Run(tmp_path)(Quantize(), {"base": model}, kind="int4", group_size=8, symmetric=symmetric)
    args = QuantizationArgs(num_bits=4, symmetric=symmetric, strategy="group", group_size=8)
    ours = stored(out)
    for name, value in read(model).items():
        if f"{name}_scale" in ours:
            grouped = torch.from_numpy(value).reshape(len(value), -1, 8)
            scale, _ = calculate_qparams(grouped.amin(2), grouped.amax(2), args)
            assert torch.equal(ours[f"{name}_scale"], scale)


def test_folders_stay_whole_and_are_sharded(tmp_path: Path) -> None:
    run = Run(tmp_path)
    out = run(Quantize(), {"base": CHAT}, kind="int8", shard_bytes=40_000)
    model = open_model(out)
    assert len(model.files) > 2
    before = open_model(CHAT).tensors
    for name, tensor in before.items():
        if not name.endswith("_proj.weight"):
            kept = model.tensors[name]
            assert (raw_bytes(kept, 0, kept.size) == raw_bytes(tensor, 0, tensor.size)).all()
    settings = json.loads((out / "config.json").read_text())
    assert settings["quantization_config"]["ignore"] == ["lm_head"]
    assert settings["hidden_size"] == 64
    assert not (out / "model.onnx").exists()
    assert (out / "tokenizer.json").read_bytes() == (CHAT / "tokenizer.json").read_bytes()
    with pytest.raises(UsageError, match=r"quantized already \(compressed-tensors\)"):
        run(Quantize(), {"base": out}, kind="int8")


def calibration(root: Path) -> Path:
    """The demo's questions as a calibration set: half texts, half conversations."""
    folder = root / "calibration"
    folder.mkdir()
    lines = []
    for number, line in enumerate((MODELS / "chat-questions.jsonl").read_text().splitlines()[:64]):
        row = json.loads(line)
        said = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        text = f"<|start|><|user|>{row['question']}<|end|><|assistant|>{row['answer']}<|end|>"
        lines.append(json.dumps({"messages": said} if number % 2 else {"text": text}))
    (folder / "texts.jsonl").write_text("\n".join(lines))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_gptq_is_better_than_rounding_and_goes_on_after_a_kill(
    tmp_path: Path, plain: np.ndarray
) -> None:
    compressor()
    run, texts = Run(tmp_path), calibration(tmp_path)
    asked = {"kind": "int4", "group_size": 32}
    rounded = run(Quantize(), {"base": CHAT}, **asked)
    inputs = {"base": CHAT, "calibration": texts}
    out = run(Quantize(), inputs, samples=48, **asked)
    assert run.metrics["output_error"] < 0.8 * run.metrics["output_error_rounded"]
    assert apart(logits(out), plain) < 0.7 * apart(logits(rounded), plain)
    scratch = tmp_path / f"scratch-{run.count}" / "gptq"
    made = sorted(scratch.iterdir())
    assert len(made) == 14
    for path in made[7:]:
        path.unlink()
    kept = [path.stat().st_mtime_ns for path in made[:7]]
    before, resumed = digest(out), tmp_path / "resumed"
    resumed.mkdir()
    Quantize().run(
        Work(
            inputs={"base": (CHAT,), "calibration": (texts,)},
            out=resumed,
            scratch=scratch.parent,
            parameters=QuantizeParameters(samples=48, **asked),
            seed=7,
            report=run.reports.append,
            log=run.said.append,
        )
    )
    assert digest(resumed) == before
    assert [path.stat().st_mtime_ns for path in made[:7]] == kept


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("", "no .jsonl file with lines"),
        ("{", "line 1 is not JSON"),
        ('{"text": ""}', 'neither a "text" nor "messages"'),
        ("[1]", 'neither a "text" nor "messages"'),
        ('{"messages": [3]}', "can't read a calibration text"),
    ],
)
def test_calibration_texts_must_be_texts(tmp_path: Path, lines: str, said: str) -> None:
    transformers()
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text(lines)
    with pytest.raises(UsageError, match=said):
        Run(tmp_path)(Quantize(), {"base": CHAT, "calibration": folder}, kind="int8")


def test_what_can_not_be_quantized_is_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(UsageError, match=r"_proj\.weight .*groups of 48"):
        run(Quantize(), {"base": CHAT}, kind="int4", group_size=48)
    with pytest.raises(UsageError, match="needs a calibration input"):
        run(Quantize(), {"base": CHAT}, kind="int4", samples=3)
    with pytest.raises(UsageError, match=r"no lm_head\.weight"):
        run(Quantize(), {"base": CHAT}, kind="int4", lm_head=True)
    for bad in (np.nan, np.inf):
        tensors = blocks()
        tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = bad
        model = write_model(tmp_path / "bad", tensors)
        with pytest.raises(UsageError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN"):
            run(Quantize(), {"base": model}, kind="int8")


def test_experts_stay_as_they_are(tmp_path: Path) -> None:
    tensors = blocks()
    tensors["model.layers.0.block_sparse_moe.experts.0.w1.weight"] = np.ones((8, 16), "<f4")
    tensors["model.layers.0.block_sparse_moe.gate.weight"] = np.ones((2, 16), "<f4")
    run, model = Run(tmp_path), write_model(tmp_path / "m", tensors)
    out = run(Quantize(), {"base": model}, kind="int8", lm_head=True)
    settings = json.loads((out / "config.json").read_text())["quantization_config"]
    assert settings["ignore"] == [
        "model.layers.0.block_sparse_moe.experts.0.w1",
        "model.layers.0.block_sparse_moe.gate",
    ]
    assert "1 layers of experts stay as they are" in run.said
    assert "lm_head.weight_packed" in open_model(out).tensors


@pytest.mark.filterwarnings("ignore")
def test_onnx_becomes_smaller_and_answers_the_same(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    runtime: Any = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    run = Run(tmp_path)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in CHAT.iterdir())
    out = run(Quantize(), {"base": CHAT}, kind="onnx-int8")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in CHAT.iterdir()) == before
    assert run.metrics["bytes_after"] < 0.6 * run.metrics["bytes_before"]
    assert run.metrics["nodes"] > 10
    assert not (out / "model.safetensors").exists()
    tokens = np.arange(6, 30, dtype=np.int64)[None]
    found = []
    for folder in (CHAT, out):
        session = runtime.InferenceSession(str(folder / "model.onnx"))
        given: dict[str, np.ndarray] = {}
        for item in session.get_inputs():
            if item.name == "input_ids":
                given[item.name] = tokens
            elif item.name == "attention_mask":
                given[item.name] = np.ones_like(tokens)
            else:
                given[item.name] = np.zeros((1, 4, 0, 16), "<f4")
        found.append(session.run(["logits"], given)[0])
    assert apart(found[1], found[0]) < 0.1
    assert digest(out) == digest(run(Quantize(), {"base": CHAT}, kind="onnx-int8"))


def test_onnx_without_products_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed")
    run = Run(tmp_path)
    with pytest.raises(UsageError, match="no matrix product"):
        run(Quantize(), {"base": MODELS / "credit-v2"}, kind="onnx-int8")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"no \.onnx file"):
        run(Quantize(), {"base": empty}, kind="onnx-int8")
    (empty / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError, match="can't quantize"):
        run(Quantize(), {"base": empty}, kind="onnx-int8")


@pytest.mark.parametrize(
    "bad",
    [
        {"kind": "int8", "symmetric": False},
        {"kind": "int4", "activations": "dynamic"},
        {"kind": "int4", "group_size": 0},
        {"kind": "int8", "group_size": 32, "activations": "dynamic"},
        {"kind": "fp8", "group_size": 32},
        {"kind": "fp8", "per_tensor": True, "search": True},
        {"kind": "onnx-int8", "search": True},
        {"kind": "int2"},
    ],
)
def test_parameters_that_make_no_sense_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        QuantizeParameters(**bad)

"""GGUF: read back by the gguf package, and run by a small llama of ggml's conventions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lockgate.core.errors import UsageError
from lockgate.derive.steps.convert import ConvertGguf
from lockgate.derive.steps.converting.gguf_file import Shape, in_pairs, rope_factors, shape_of
from lockgate.derive.steps.converting.words import words_of
from lockgate.store.formats import gguf as ours

from .bench import MODELS, Run, Values, apart, blocks, digest, read, transformers, write_model

CHAT = MODELS / "chat-v1"
WORDS = json.loads((CHAT / "tokenizer.json").read_text())
LLAMA3 = json.dumps(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def opened(folder: Path) -> Any:
    library: Any = pytest.importorskip("gguf", reason="gguf is not installed")
    return library.GGUFReader(folder / "model.gguf")


def weights(folder: Path) -> dict[str, Values]:
    """Every tensor of a GGUF file, dequantized by the gguf package."""
    library: Any = pytest.importorskip("gguf", reason="gguf is not installed")
    return {
        tensor.name: library.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            tuple(int(side) for side in reversed(tensor.shape))
        )
        for tensor in opened(folder).tensors
    }


@pytest.mark.parametrize(
    ("kind", "most", "size"),
    [("f32", 0, 4), ("f16", 2e-4, 2), ("bf16", 0, 2), ("q8_0", 0.01, 34 / 32)],
)
def test_tensors_come_back(tmp_path: Path, kind: str, most: float, size: float) -> None:
    run = Run(tmp_path)
    out = run(ConvertGguf(), {"base": CHAT}, kind=kind)
    found, before = weights(out), read(CHAT)
    assert len(found) == len(before)
    block = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "up_proj": "ffn_up"}
    for part, name in block.items():
        folder = "mlp" if part == "up_proj" else "self_attn"
        value = before[f"model.layers.1.{folder}.{part}.weight"]
        expected = in_pairs(value, 4) if part in ("q_proj", "k_proj") else value
        assert apart(found[f"blk.1.{name}.weight"], expected) <= most
    assert (found["output_norm.weight"] == before["model.norm.weight"]).all()
    elements = sum(value.size for value in before.values())
    assert run.metrics["bytes_after"] < elements * size + 30_000
    with (out / "model.gguf").open("rb") as file:
        spans = ours.tensors(file, (out / "model.gguf").stat().st_size, "model.gguf")
    assert {span.name for span in spans} == set(found), "our own reader agrees"
    assert digest(out) == digest(run(ConvertGguf(), {"base": CHAT}, kind=kind))
    assert not (out / "model.safetensors").exists()


def ggml_llama(parts: dict[str, Values], tokens: Values, heads: int, base: float) -> Values:
    """LLM_ARCH_LLAMA in float64: rotary embedding of neighbours, tied head. [tokens, words]."""

    def norm(x: Values, weight: Values) -> Values:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight

    def rope(x: Values) -> Values:
        head = x.shape[-1]
        angles = np.arange(len(x))[:, None] / base ** (np.arange(0, head, 2) / head)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        turned = np.stack((even * cos - odd * sin, even * sin + odd * cos), -1)
        return turned.reshape(x.shape)

    parts = {name: value.astype(np.float64) for name, value in parts.items()}
    x = parts["token_embd.weight"][tokens]
    count = len(tokens)
    for layer in range(2):
        at = {name: parts[f"blk.{layer}.{name}.weight"] for name in (
            "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate",
            "ffn_up", "ffn_down",
        )}  # fmt: skip
        y = norm(x, at["attn_norm"])
        q, k, v = ((y @ at[f"attn_{name}"].T).reshape(count, heads, -1) for name in ("q", "k", "v"))
        scores = np.einsum("qhd,khd->hqk", rope(q), rope(k)) / np.sqrt(q.shape[-1])
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        chance = np.exp(scores - scores.max(-1, keepdims=True))
        chance /= chance.sum(-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", chance, v).reshape(count, -1)
        x = x + mixed @ at["attn_output"].T
        y = norm(x, at["ffn_norm"])
        gate = y @ at["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ at["ffn_up"].T)) @ at["ffn_down"].T
    return np.asarray(norm(x, parts["output_norm.weight"]) @ parts["token_embd.weight"].T)


@pytest.mark.parametrize(("kind", "most"), [("f32", 1e-5), ("q8_0", 0.02)])
def test_it_runs_as_ggml_would_run_it(tmp_path: Path, kind: str, most: float) -> None:
    library = transformers()
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    out = Run(tmp_path)(ConvertGguf(), {"base": CHAT}, kind=kind)
    tokens = np.arange(6, 40)
    model = library.AutoModelForCausalLM.from_pretrained(CHAT, dtype=torch.float32)
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert apart(ggml_llama(weights(out), tokens, 4, 10_000.0), expected) < most


def test_keys_say_what_llama_cpp_needs(tmp_path: Path) -> None:
    fields = opened(Run(tmp_path)(ConvertGguf(), {"base": CHAT})).fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["general.architecture"] == "llama"
    assert found["llama.block_count"] == 2
    assert found["llama.attention.head_count_kv"] == 4
    assert found["llama.rope.dimension_count"] == 16
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.eos_token_id"] == 5
    assert found["tokenizer.ggml.add_bos_token"] is False
    assert found["tokenizer.chat_template"] == (CHAT / "chat_template.jinja").read_text()
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == 352
    assert all(tokens[at] == token for token, at in WORDS["model"]["vocab"].items())
    assert found["tokenizer.ggml.token_type"][:7] == [3, 3, 3, 3, 3, 3, 1]
    assert found["tokenizer.ggml.merges"] == [
        merge if isinstance(merge, str) else " ".join(merge) for merge in WORDS["model"]["merges"]
    ]


def test_rows_that_blocks_do_not_fit_are_f16(tmp_path: Path) -> None:
    tensors = blocks(width=24)
    tensors["model.embed_tokens.weight"] = np.ones((352, 24), "<f4")
    del tensors["lm_head.weight"]
    model = write_model(
        tmp_path / "m", tensors, hidden_size=24, num_attention_heads=4, num_hidden_layers=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    shutil.copyfile(CHAT / "tokenizer.json", model / "tokenizer.json")
    run = Run(tmp_path)
    found = weights(run(ConvertGguf(), {"base": model}, kind="q8_0"))
    assert apart(found["blk.0.ffn_up.weight"], tensors["model.layers.0.mlp.up_proj.weight"]) < 1e-3
    assert any("are f16" in line for line in run.said)


def test_rope_of_llama_3_is_that_of_transformers() -> None:
    transformers()
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=dict(rope)
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    shape = shape_of({**config.to_dict(), "rope_parameters": rope})
    factors = rope_factors(shape)
    assert factors is not None
    plain = 1 / 500_000.0 ** (np.arange(0, 128, 2) / 128)
    np.testing.assert_allclose(plain / factors, theirs.numpy(), rtol=1e-5)


def changed(change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    words: dict[str, Any] = json.loads(json.dumps(WORDS))
    change(words)
    return words


LLAMA3_SPLIT = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": json.loads(LLAMA3)}, "behavior": "Isolated"},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
}


def template(*pieces: Any) -> dict[str, Any]:
    return {"type": "TemplateProcessing", "single": list(pieces)}


def test_llama_3s_tokenizer_is_known() -> None:
    def change(words: dict[str, Any]) -> None:
        words["pre_tokenizer"] = LLAMA3_SPLIT
        words["model"]["ignore_merges"] = True
        words["post_processor"] = {
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel"},
                template({"SpecialToken": {"id": "<|start|>"}}, {"Sequence": {"id": "A"}}),
            ],
        }

    found = words_of(changed(change), {"bos_token": "<|start|>"}, {"eos_token_id": [5, 2]}, 360)
    assert (found.split, found.add_bos, found.add_eos) == ("llama-bpe", True, False)
    assert found.special == {"bos": 1, "eos": 5}
    assert found.tokens[359] == "[PAD359]"
    assert found.types[359] == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w["model"].update(type="Unigram"), "its model is Unigram"),
        (lambda w: w["model"].update(byte_fallback=True), "no plain BPE"),
        (lambda w: w["model"].update(ignore_merges=True), "ignore_merges"),
        (lambda w: w.update(normalizer={"type": "NFKC"}), "normalizer"),
        (lambda w: w.update(pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer"),
        (lambda w: w["pre_tokenizer"].update(add_prefix_space=True), "pre_tokenizer"),
        (lambda w: w.update(pre_tokenizer=None), "pre_tokenizer"),
        (lambda w: w["model"].update(merges=None), "no merges"),
        (lambda w: w["model"].update(merges=[["a"]]), "no pair of texts"),
        (lambda w: w["model"].update(vocab=[]), "no vocabulary"),
        (lambda w: w["model"]["vocab"].update(far=9999), "'far' has the id 9999 of 352"),
        (lambda w: w["model"]["vocab"].update(twice=7), "two tokens have the id 7"),
        (lambda w: w.update(added_tokens=[{"id": -1, "content": "x"}]), "added_tokens"),
        (lambda w: w.update(post_processor={"type": "Bert"}), "neither a template"),
        (
            lambda w: w.update(post_processor=template({"SpecialToken": {"id": "<|user|>"}})),
            "more than bos before",
        ),
    ],
)
def test_tokenizers_that_llama_cpp_would_not_follow_are_refused(
    change: Callable[[dict[str, Any]], None], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        words_of(changed(change), {}, {"bos_token_id": 1}, 352)


def test_other_models_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed")
    run = Run(tmp_path)

    def refused(said: str, tensors: dict[str, Values], **config: Any) -> None:
        model = write_model(tmp_path / "m", tensors, **{**plain, **config})
        shutil.copyfile(CHAT / "tokenizer.json", model / "tokenizer.json")
        with pytest.raises(UsageError, match=said):
            run(ConvertGguf(), {"base": model})

    plain: dict[str, Any] = {
        "hidden_size": 16, "num_attention_heads": 4, "num_hidden_layers": 2,
        "intermediate_size": 24, "max_position_embeddings": 64,
    }  # fmt: skip
    whole = {**blocks(), "model.embed_tokens.weight": np.ones((352, 16), "<f4")}
    refused("this is gpt2", whole, model_type="gpt2")
    refused("sliding", whole, model_type="mistral", sliding_window=4096)
    refused("no proper hidden_size", whole, hidden_size="x")
    refused("rope type yarn", whole, rope_scaling={"rope_type": "yarn", "factor": 2})
    refused("has no place", {**whole, "model.layers.0.odd.weight": np.ones((2, 2), "<f4")})
    refused("too large for f16", {**whole, "lm_head.weight": np.full((352, 16), 1e6, "<f4")})
    del whole["model.embed_tokens.weight"]
    refused("no model.embed_tokens", whole)


def test_shapes_default_as_in_transformers() -> None:
    found = shape_of(
        {
            "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
            "num_hidden_layers": 1, "intermediate_size": 8, "max_position_embeddings": 9,
        }
    )  # fmt: skip
    assert (found.kv_heads, found.head, found.theta) == (4, 16, 10_000.0)
    assert isinstance(found, Shape)
    assert rope_factors(found) is None

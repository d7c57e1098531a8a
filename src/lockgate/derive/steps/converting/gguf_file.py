"""A llama model as one GGUF file, by the `gguf` package, tensor by tensor.

Names and keys are those of llama.cpp's LLM_ARCH_LLAMA. Its rotary embedding turns pairs of
neighbours where that of `transformers` turns halves, so that the rows of each head of q_proj and
k_proj are put in pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lockgate.core.errors import UsageError
from lockgate.derive.steps.converting.words import Words
from lockgate.derive.steps.weights.floats import Raw, Wide, narrow
from lockgate.derive.steps.weights.reader import Model, Tensor, row_chunks, rows_of

Kind = Literal["f32", "f16", "bf16", "q8_0"]
KINDS = ("llama", "mistral")
_LARGE = 1 << 28  # bytes of a tensor from which it is built in a file, not in memory
_ROPE = "rope_freqs.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The numbers of a llama model that GGUF's keys are made of."""

    layers: int
    hidden: int
    neurons: int
    heads: int
    kv_heads: int
    head: int
    context: int
    epsilon: float
    theta: float
    rope: Mapping[str, Any]


def shape_of(config: Mapping[str, Any]) -> Shape:
    """Returns a model's numbers by its config.json; raises UsageError for another architecture."""
    kind = config.get("model_type")
    window = config.get("sliding_window")
    if kind not in KINDS or window or config.get("hidden_act", "silu") != "silu":
        raise UsageError(
            f"only models of the kinds {' and '.join(KINDS)} can be written as GGUF, without"
            f" sliding windows; this is {str(kind)[:40]}",
            hint="llama.cpp's own converter knows more",
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {}
    heads = _whole(config, "num_attention_heads")
    hidden = _whole(config, "hidden_size")
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    epsilon = config.get("rms_norm_eps", 1e-6)
    if not isinstance(theta, int | float) or not isinstance(epsilon, int | float):
        raise UsageError("rope_theta and rms_norm_eps must be numbers", hint="mend config.json")
    return Shape(
        layers=_whole(config, "num_hidden_layers"),
        hidden=hidden,
        neurons=_whole(config, "intermediate_size"),
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head=_whole(config, "head_dim", hidden // heads),
        context=_whole(config, "max_position_embeddings"),
        epsilon=float(epsilon),
        theta=float(theta),
        rope=rope,
    )


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    found = config.get(key)
    found = default if found is None else found
    if not isinstance(found, int) or not 0 < found < 1 << 31:
        raise UsageError(f"config.json has no proper {key}", hint="mend config.json")
    return found


def rope_factors(shape: Shape) -> Wide | None:
    """Returns what each frequency is divided by, [head / 2], for Llama 3.1's rope; None for plain.

    The formula is that of `transformers`' rope type "llama3": long waves slower by `factor`, short
    ones as they are, between both a blend. Raises UsageError for other types.
    """
    rope = shape.rope
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    found = [rope.get(key) for key in keys]
    if kind != "llama3" or not all(isinstance(x, int | float) and x > 0 for x in found):
        raise UsageError(
            f"the rope type {str(kind)[:40]} can't be written as GGUF here",
            hint="default and llama3 can; llama.cpp's own converter knows more",
        )
    factor, low, high, context = (float(x or 1) for x in found)
    waves = 2 * math.pi * shape.theta ** (np.arange(0, shape.head, 2) / shape.head)
    blend = np.clip((context / waves - low) / (high - low), 0, 1) if high > low else waves * 0
    return np.asarray(1 / ((1 - blend) / factor + blend), np.float32)


def in_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Returns rows [heads · head, …] with the halves of each head interleaved."""
    halves = rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


class GgufFile:
    """Writes one model; `kind` is the type of its matrices, vectors are F32."""

    def __init__(self, path: Path, shape: Shape, kind: Kind, scratch: Path) -> None:
        try:
            import gguf
        except ImportError as error:
            raise UsageError(
                f"GGUF needs the package {error.name}, which is not installed",
                hint="pip install gguf",
            ) from error
        self._library: Any = gguf
        self._shape = shape
        self._kind = kind
        self._scratch = scratch
        self._names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.layers)
        self._writer: Any = gguf.GGUFWriter(path, "llama")

    def describe(self, name: str, words: Words, template: str) -> None:
        """Adds the keys: the model's numbers and its vocabulary."""
        writer, shape, library = self._writer, self._shape, self._library
        files = library.LlamaFileType
        types = {
            "f32": files.ALL_F32, "f16": files.MOSTLY_F16, "bf16": files.MOSTLY_BF16,
            "q8_0": files.MOSTLY_Q8_0,
        }  # fmt: skip
        writer.add_type("model")
        writer.add_name(name)
        writer.add_file_type(types[self._kind])
        writer.add_quantization_version(library.GGML_QUANT_VERSION)
        writer.add_vocab_size(len(words.tokens))
        writer.add_block_count(shape.layers)
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.hidden)
        writer.add_feed_forward_length(shape.neurons)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
        writer.add_layer_norm_rms_eps(shape.epsilon)
        writer.add_rope_freq_base(shape.theta)
        writer.add_rope_dimension_count(shape.head)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(words.split)
        writer.add_token_list(list(words.tokens))
        writer.add_token_types(list(words.types))
        writer.add_token_merges(list(words.merges))
        for special, at in words.special.items():
            getattr(writer, f"add_{special}_token_id")(at)
        writer.add_add_bos_token(words.add_bos)
        writer.add_add_eos_token(words.add_eos)
        if template:
            writer.add_chat_template(template)

    def name_of(self, tensor: Tensor) -> str:
        """Returns GGUF's name of a tensor; raises UsageError for one that llama has not."""
        found: str | None = self._names.get_name(tensor.name, try_suffixes=(".weight", ".bias"))
        if found is None or len(tensor.shape) not in (1, 2):
            raise UsageError(
                f"tensor {tensor.name} {list(tensor.shape)} has no place in a llama GGUF",
                hint="experts and adapters can't be converted here",
            )
        return found

    def kind_of(self, tensor: Tensor) -> Kind:
        """Returns the type that a tensor gets: rows that Q8_0's blocks do not fit become F16."""
        if len(tensor.shape) == 1:
            return "f32"
        return "f16" if self._kind == "q8_0" and tensor.columns % 32 else self._kind

    def begin(self, model: Model) -> None:
        """Says which tensors will come, and writes the header."""
        factors = rope_factors(self._shape)
        if factors is not None:
            self._announce(_ROPE, "f32", len(factors) * 4, (len(factors) * 4,))
        for tensor in model.tensors.values():
            kind = self.kind_of(tensor)
            bytes_row = _row_bytes(tensor.columns, kind)
            shape = (*tensor.shape[:-1], bytes_row)
            self._announce(self.name_of(tensor), kind, math.prod(shape), shape)
        self._writer.write_header_to_file()
        self._writer.write_kv_data_to_file()
        self._writer.write_ti_data_to_file()
        if factors is not None:
            self._writer.write_tensor_data(factors)

    def _announce(self, name: str, kind: Kind, size: int, shape: tuple[int, ...]) -> None:
        raw = self._library.GGMLQuantizationType[kind.upper()]
        self._writer.add_tensor_info(name, shape, np.dtype(np.uint8), size, raw)

    def add(self, tensor: Tensor) -> None:
        """Writes the next tensor, in the order of `begin`; raises UsageError for what overflows."""
        kind = self.kind_of(tensor)
        rows = 1 if len(tensor.shape) == 1 else tensor.shape[0]
        width = _row_bytes(tensor.columns, kind)
        heads = self._heads(tensor)
        if heads:
            whole = rows_of(tensor)
            values = in_pairs(whole.reshape(tensor.shape), heads).reshape(whole.shape)
            self._writer.write_tensor_data(self._encoded(values, kind, tensor))
            return
        out: Raw = np.empty((rows, width), np.uint8)
        if rows * width > _LARGE:
            out = np.memmap(self._scratch / "tensor", np.uint8, "w+", shape=(rows, width))
        for begin, end in row_chunks(tensor):
            out[begin:end] = self._encoded(rows_of(tensor, begin, end), kind, tensor)
        self._writer.write_tensor_data(out)

    def _heads(self, tensor: Tensor) -> int:
        if ".q_proj." in tensor.name:
            return self._shape.heads
        return self._shape.kv_heads if ".k_proj." in tensor.name else 0

    def _encoded(self, rows: Wide, kind: Kind, tensor: Tensor) -> Raw:
        with np.errstate(all="ignore"):
            if kind == "q8_0":
                library = self._library
                out: Raw = library.quants.quantize(rows, library.GGMLQuantizationType.Q8_0)
                scales = np.ascontiguousarray(out.reshape(-1, 34)[:, :2]).view("<f2")
                sound = bool(np.isfinite(scales).all())
            else:
                out = np.frombuffer(narrow(rows, kind.upper()), np.uint8).reshape(len(rows), -1)
                sound = kind != "f16" or bool(np.isfinite(out.view("<f2")).all())
        if not sound:
            raise UsageError(
                f"tensor {tensor.name} is too large for {kind}", hint="choose bf16 or f32"
            )
        return out

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()


def _row_bytes(columns: int, kind: Kind) -> int:
    return columns // 32 * 34 if kind == "q8_0" else columns * (4 if kind == "f32" else 2)

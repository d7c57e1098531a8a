"""Converts a model: its floats to another type, safetensors to GGUF or to ONNX."""

from __future__ import annotations

import shutil
from math import sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from lockgate.core.errors import UsageError
from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.converting import classifier, onnx_model
from lockgate.derive.steps.converting.gguf_file import GgufFile, Kind, shape_of
from lockgate.derive.steps.converting.words import words_of
from lockgate.derive.steps.weights.floats import FLOATS, squares, stored, widen
from lockgate.derive.steps.weights.options import (
    KeepOthers,
    Progress,
    ShardBytes,
    refuse_quantized,
    say_left,
)
from lockgate.derive.steps.weights.reader import (
    Model,
    Tensor,
    chunks,
    open_model,
    raw,
    raw_bytes,
    read_object,
)
from lockgate.derive.steps.weights.writer import (
    SHARD_BYTES,
    ModelWriter,
    copy_rest,
    same,
    slot,
    write_object,
)

_CONFIG = "config.json"
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_TEMPLATE = "chat_template.jinja"
_BASE: tuple[Input, ...] = (Input(name="base", relation="converted-from"),)


class CastParameters(BaseModel):
    """To which floats."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    to: Literal["bf16", "f16", "f32"] = Field(description="the type of every float tensor")
    shard_bytes: ShardBytes = SHARD_BYTES
    keep_other_weights: KeepOthers = False


class Cast:
    """Casts the floats of safetensors."""

    name = "cast"
    summary = "Cast a model's weights to bf16, f16 or f32."
    inputs: tuple[Input, ...] = _BASE
    parameters: type[CastParameters] = CastParameters
    libraries: tuple[str, ...] = ("numpy",)
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes base's folder in another type, rounded to nearest, ties to even.

        Returns bytes before and after, and the relative error ‖after - before‖ / ‖before‖. Raises
        UsageError when a weight is too large for F16.
        """
        asked: CastParameters = work.parameters
        base = open_model(work.one("base"))
        refuse_quantized(base)
        to = asked.to.upper()
        slots = [
            slot(name, to, tensor.shape) if tensor.dtype in FLOATS else same(tensor)
            for name, tensor in base.tensors.items()
        ]
        progress = Progress(work, base.size)
        apart = whole = 0.0
        with ModelWriter(work.out, slots, asked.shard_bytes) as writer:
            for tensor in base.tensors.values():
                errors = _cast(writer, tensor, to)
                apart, whole = apart + errors[0], whole + errors[1]
                progress.add(tensor.size)
        skip = frozenset((_CONFIG,))
        left = copy_rest(base, work.out, keep_other_weights=asked.keep_other_weights, skip=skip)
        say_left(work, left)
        if (base.folder / _CONFIG).is_file():
            config = read_object(base.folder, _CONFIG)
            keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
            write_object(work.out, _CONFIG, {**config, **dict.fromkeys(keys, _NAMES[to])})
        error = sqrt(apart / whole) if whole else 0.0
        return {"bytes_before": base.size, "bytes_after": writer.size, "relative_error": error}


def _cast(writer: ModelWriter, tensor: Tensor, to: str) -> tuple[float, float]:
    """Writes one tensor; returns the squared lengths of the error and of the tensor."""
    if tensor.dtype not in FLOATS:
        writer.append(tensor.name, raw_bytes(tensor, 0, tensor.size))
        return 0.0, 0.0
    apart = whole = 0.0
    for begin, end in chunks(tensor):
        part = widen(raw(tensor, begin, end), tensor.dtype)
        data, after = stored(part, to)
        if (np.isfinite(part) & ~np.isfinite(after)).any():
            raise UsageError(
                f"tensor {tensor.name} has a weight too large for {to}", hint="choose bf16"
            )
        writer.append(tensor.name, data)
        number = np.isfinite(part)
        if not number.all():
            part, after = part[number], after[number]
        apart, whole = apart + squares(after - part), whole + squares(part)
    return apart, whole


class ConvertGgufParameters(BaseModel):
    """To which type."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = Field(default="f16", description="the type of the matrices; vectors are F32")
    file: str = Field(
        default="model.gguf",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,100}\.gguf$",
        description="the file's name",
    )


class ConvertGguf:
    """Writes a llama model for llama.cpp and what is built on it."""

    name = "convert-gguf"
    summary = "Convert a llama model of safetensors to GGUF (F32, F16, BF16 or Q8_0)."
    inputs: tuple[Input, ...] = _BASE
    parameters: type[ConvertGgufParameters] = ConvertGgufParameters
    libraries: tuple[str, ...] = ("gguf", "numpy")
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes one GGUF file with the model and its tokenizer, and copies what is no weight.

        Returns bytes before and after. Raises UsageError for an architecture or tokenizer that is
        not known here, and without the `gguf` package.
        """
        asked: ConvertGgufParameters = work.parameters
        base = open_model(work.one("base"))
        refuse_quantized(base)
        config = read_object(base.folder, _CONFIG)
        settings, template = _settings(base.folder)
        size = _vocabulary(base)
        words = words_of(read_object(base.folder, "tokenizer.json"), settings, config, size)
        file = GgufFile(work.out / asked.file, shape_of(config), asked.kind, work.scratch)
        file.describe(asked.file.removesuffix(".gguf"), words, template)
        odd = [x.name for x in base.tensors.values() if file.kind_of(x) not in ("f32", asked.kind)]
        if odd:
            work.log(f"{len(odd)} tensors have rows that {asked.kind} does not fit, and are f16")
        progress = Progress(work, base.size)
        try:
            file.begin(base)
            for tensor in base.tensors.values():
                file.add(tensor)
                progress.add(tensor.size)
        finally:
            file.close()
        say_left(work, copy_rest(base, work.out, keep_other_weights=False))
        after = (work.out / asked.file).stat().st_size
        return {"tensors": len(base.tensors), "bytes_before": base.size, "bytes_after": after}


def _vocabulary(base: Model) -> int:
    found = base.tensors.get("model.embed_tokens.weight")
    if found is None or len(found.shape) != 2:
        raise UsageError(
            "the model has no model.embed_tokens.weight", hint="only llama models can be converted"
        )
    return found.shape[0]


def _settings(folder: Path) -> tuple[dict[str, Any], str]:
    """Returns tokenizer_config.json and the chat template; empty where there is none."""
    name = "tokenizer_config.json"
    settings = read_object(folder, name) if (folder / name).is_file() else {}
    if (folder / _TEMPLATE).is_file():
        return settings, (folder / _TEMPLATE).read_text("utf-8")
    template = settings.get("chat_template")
    return settings, template if isinstance(template, str) else ""


class ConvertOnnxParameters(BaseModel):
    """To which precision."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    precision: Literal["fp32", "fp16", "int4"] = Field(
        default="fp32", description="the type of the weights; int4 is by blocks of 32"
    )


class ConvertOnnx:
    """Builds ONNX, which the light runtime serves without torch."""

    name = "convert-onnx"
    summary = "Convert a language model or a text classifier of safetensors to ONNX."
    inputs: tuple[Input, ...] = _BASE
    parameters: type[ConvertOnnxParameters] = ConvertOnnxParameters
    libraries: tuple[str, ...] = (
        "onnxruntime-genai", "onnx-ir", "onnxscript", "torch", "transformers",
    )  # fmt: skip
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes base's folder with ONNX in the place of its safetensors.

        Language models by the builder of onnxruntime-genai, text classifiers by torch's exporter
        (fp32 only; quantize them afterwards). Returns bytes before and after. Raises UsageError for
        a model that neither knows, and without their libraries.
        """
        asked: ConvertOnnxParameters = work.parameters
        base = open_model(work.one("base"))
        refuse_quantized(base)
        if classifier.is_classifier(read_object(base.folder, _CONFIG)):
            if asked.precision != "fp32":
                raise UsageError(
                    "a text classifier is converted to fp32",
                    hint="leave precision out, and quantize the result with kind: onnx-int8",
                )
            made = classifier.build(base.folder, work.scratch)
        else:
            made = onnx_model.build(base.folder, work.scratch, asked.precision)
        copy_rest(base, work.out, keep_other_weights=False)
        after = 0
        for form in onnx_model.MADE:
            for path in sorted(made.glob(form)):
                shutil.copyfile(path, work.out / path.name)
                after += path.stat().st_size
        return {"bytes_before": base.size, "bytes_after": after}

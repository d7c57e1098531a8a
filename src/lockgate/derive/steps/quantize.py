"""Quantizes the linear layers of a model, into the checkpoint format of compressed-tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lockgate.core.errors import UsageError
from lockgate.derive.api import Input, Metrics, Work
from lockgate.derive.steps.quantizing.calibrate import Calibration, Kept, calibrate
from lockgate.derive.steps.quantizing.checkpoint import (
    ROWS,
    Part,
    ignored,
    slots_of,
    write_layer,
)
from lockgate.derive.steps.quantizing.levels import (
    Scales,
    codes_of,
    levels_from,
    quantized,
    restored,
    scales_of,
)
from lockgate.derive.steps.quantizing.onnx import quantize_onnx
from lockgate.derive.steps.quantizing.scheme import Scheme
from lockgate.derive.steps.weights.floats import FLOATS, squares
from lockgate.derive.steps.weights.layers import linear_layers
from lockgate.derive.steps.weights.options import (
    KeepOthers,
    Progress,
    ShardBytes,
    changed,
    refuse_quantized,
    refuse_unused,
    say_left,
)
from lockgate.derive.steps.weights.reader import (
    Model,
    Tensor,
    open_model,
    raw_bytes,
    read_object,
    row_chunks,
    rows_of,
)
from lockgate.derive.steps.weights.writer import (
    SHARD_BYTES,
    ModelWriter,
    copy_rest,
    same,
    write_object,
)

_PART = 1 << 24
_CONFIG = "config.json"
_CALIBRATED = frozenset(("samples", "tokens", "damp"))
_WEIGHTS = frozenset(("activations", "search", "lm_head", "shard_bytes")) | _CALIBRATED
_USES = {
    "int8": _WEIGHTS | {"group_size"},
    "int4": _WEIGHTS - {"activations"} | {"group_size", "symmetric"},
    "fp8": _WEIGHTS | {"per_tensor"},
    "onnx-int8": frozenset[str](),
}


class QuantizeParameters(BaseModel):
    """What to quantize to, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["int8", "int4", "fp8", "onnx-int8"] = Field(
        description="what weights become; onnx-int8 is for folders of ONNX"
    )
    group_size: int = Field(
        default=-1, ge=-1, le=1 << 16, description="int: columns with one scale; -1: a whole row"
    )
    symmetric: bool = Field(default=True, description="int4: no zero points")
    per_tensor: bool = Field(default=False, description="fp8: one scale a tensor, not a row")
    activations: Literal["none", "dynamic"] = Field(
        default="none", description="int8 and fp8: quantize activations too, as the model runs"
    )
    search: bool = Field(
        default=False, description="try smaller ranges, and keep what has the least squared error"
    )
    lm_head: bool = Field(default=False, description="quantize the head too, where it has its own")
    samples: int = Field(default=128, ge=1, le=100_000, description="GPTQ: texts to calibrate on")
    tokens: int = Field(default=512, ge=1, le=32_768, description="GPTQ: tokens of a text, at most")
    damp: float = Field(
        default=0.01, gt=0, le=1, description="GPTQ: share of the mean added to H's diagonal"
    )
    shard_bytes: ShardBytes = SHARD_BYTES
    keep_other_weights: KeepOthers = False

    @model_validator(mode="after")
    def _fits(self) -> Self:
        refuse_unused(self, "kind", _USES)
        if self.group_size == 0 or (self.activations == "dynamic" and self.group_size != -1):
            raise ValueError("group_size is -1 or above 0, and -1 with dynamic activations")
        if self.per_tensor and self.search:
            raise ValueError("search is for scales of rows and groups, not of whole tensors")
        return self


class Quantize:
    """Quantizes weights: rounding to nearest, or GPTQ when calibration texts are given."""

    name = "quantize"
    summary = "Quantize a model's weights to int8, int4 or fp8 (GPTQ with texts), or ONNX to int8."
    inputs: tuple[Input, ...] = (
        Input(name="base", relation="quantized-from"),
        Input(name="calibration", relation="calibrated-on", required=False),
    )
    parameters: type[QuantizeParameters] = QuantizeParameters
    libraries: tuple[str, ...] = ("numpy", "torch", "transformers", "onnx", "onnxruntime")
    deterministic = True

    def run(self, work: Work) -> Metrics:
        """Writes base's folder, quantized; `config.json` says how.

        Returns bytes before and after, and the relative error of the weights, ‖W - Q‖ / ‖W‖, of all
        layers and of the worst; with GPTQ also that of the layers' outputs, and what rounding would
        have had. Raises UsageError for a model that can't be quantized so.
        """
        asked: QuantizeParameters = work.parameters
        calibrated = work.maybe("calibration") is not None
        if asked.kind == "onnx-int8":
            if calibrated:
                raise UsageError("onnx-int8 takes no calibration input", hint="leave it out")
            return quantize_onnx(work, keep_other_weights=asked.keep_other_weights)
        if not calibrated and (odd := changed(asked, _CALIBRATED)):
            raise UsageError(
                f"{', '.join(odd)} are for GPTQ, which needs a calibration input",
                hint="give a dataset as `calibration`, or leave them out",
            )
        return _quantize_model(work, asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Error:
    """Squared lengths of a layer's error and of the layer."""

    apart: float
    whole: float

    @property
    def relative(self) -> float:
        return sqrt(self.apart / self.whole) if self.whole else 0.0


def _scheme(asked: QuantizeParameters) -> Scheme:
    dynamic = asked.activations == "dynamic"
    if asked.kind == "fp8":
        strategy: Literal["tensor", "channel"] = "tensor" if asked.per_tensor else "channel"
        return Scheme(kind="float", bits=8, symmetric=True, strategy=strategy, dynamic=dynamic)
    return Scheme(
        kind="int",
        bits=4 if asked.kind == "int4" else 8,
        symmetric=asked.symmetric,
        strategy="channel" if asked.group_size == -1 else "group",
        group=max(asked.group_size, 0),
        dynamic=dynamic,
    )


def _quantize_model(work: Work, asked: QuantizeParameters) -> Metrics:
    base = open_model(work.one("base"))
    refuse_quantized(base)
    settings = read_object(base.folder, _CONFIG)
    scheme, layers = _scheme(asked), _layers(work, base, asked)
    slots = [slot for tensor in layers for slot in slots_of(tensor, scheme)]
    names = {tensor.name for tensor in layers}
    rest = [tensor for name, tensor in base.tensors.items() if name not in names]
    kept: Kept | None = None
    if work.maybe("calibration") is not None:
        how = Calibration(
            samples=asked.samples, tokens=asked.tokens, damp=asked.damp, search=asked.search
        )
        kept = calibrate(work, base.folder, layers, scheme, how)
    progress = Progress(work, base.size)
    errors: list[_Error] = []
    with ModelWriter(work.out, [*slots, *map(same, rest)], asked.shard_bytes) as writer:
        for tensor in layers:
            errors.append(_write(work, writer, tensor, _parts(tensor, scheme, asked, kept), scheme))
            progress.add(tensor.size)
        for tensor in rest:
            for begin in range(0, tensor.size, _PART):
                writer.append(
                    tensor.name, raw_bytes(tensor, begin, min(begin + _PART, tensor.size))
                )
            progress.add(tensor.size)
    skip = frozenset((_CONFIG,))
    left = copy_rest(base, work.out, keep_other_weights=asked.keep_other_weights, skip=skip)
    say_left(work, left)
    how_loaded = scheme.settings(ignored(base, layers))
    write_object(work.out, _CONFIG, {**settings, "quantization_config": how_loaded})
    whole = _Error(apart=sum(e.apart for e in errors), whole=sum(e.whole for e in errors))
    return {
        "bytes_before": base.size,
        "bytes_after": writer.size,
        "layers": len(layers),
        "relative_error": whole.relative,
        "relative_error_worst": max(error.relative for error in errors),
        **_calibrated(work, layers, kept),
    }


def _layers(work: Work, base: Model, asked: QuantizeParameters) -> list[Tensor]:
    """Returns the layers to quantize; those of experts, which loaders fuse, stay as they are."""
    found = linear_layers(base, head=asked.lm_head)
    layers = [tensor for tensor in found if ".experts." not in tensor.name]
    if len(layers) < len(found):
        work.log(f"{len(found) - len(layers)} layers of experts stay as they are")
    odd = [tensor for tensor in layers if tensor.dtype not in FLOATS]
    if odd:
        raise UsageError(
            f"{odd[0].name} holds {odd[0].dtype}, not {', '.join(sorted(FLOATS))}",
            hint="start from the version with unquantized weights",
        )
    return layers


Parts = Iterator[tuple[Part, _Error]]


def _parts(tensor: Tensor, scheme: Scheme, asked: QuantizeParameters, kept: Kept | None) -> Parts:
    """Yields a layer quantized, some rows at a time, with the error of each part."""
    if kept is not None and kept.has(tensor.name):
        made = kept.get(tensor.name)[0]
        for begin, end in row_chunks(tensor, ROWS):
            part = Part(codes=made.codes[begin:end], scales=made.scales.rows(begin, end))
            yield part, _error(rows_of(tensor, begin, end), part, scheme)
        return
    scales_for = _scales(tensor, scheme, asked)
    for begin, end in row_chunks(tensor, ROWS):
        rows = rows_of(tensor, begin, end)
        scales = scales_for(rows)
        part = Part(codes=codes_of(quantized(rows, scales, scheme), scheme), scales=scales)
        yield part, _error(rows, part, scheme)


def _scales(
    tensor: Tensor, scheme: Scheme, asked: QuantizeParameters
) -> Callable[[np.ndarray], Scales]:
    """Returns what gives rows their scales; one for all needs a look at the whole tensor first."""

    def of_rows(rows: np.ndarray) -> Scales:
        return scales_of(rows, scheme, tensor.dtype, search=asked.search)

    if scheme.strategy != "tensor":
        return of_rows
    parts = (of_rows(rows_of(tensor, *part)).scale.max() for part in row_chunks(tensor, ROWS))
    top = np.float32(max(parts))

    def of_all(rows: np.ndarray) -> Scales:
        return Scales(scale=np.full((len(rows), 1), top), zero=np.zeros((len(rows), 1), "<f4"))

    return of_all


def _error(rows: np.ndarray, part: Part, scheme: Scheme) -> _Error:
    apart = rows - restored(levels_from(part.codes, scheme), part.scales)
    return _Error(apart=squares(apart), whole=squares(rows))


def _write(work: Work, writer: ModelWriter, tensor: Tensor, parts: Parts, scheme: Scheme) -> _Error:
    errors: list[_Error] = []

    def watched() -> Iterator[Part]:
        for part, error in parts:
            errors.append(error)
            yield part

    write_layer(writer, tensor, scheme, watched())
    total = _Error(apart=sum(e.apart for e in errors), whole=sum(e.whole for e in errors))
    work.log(f"{tensor.name}: relative error {total.relative:.3e}")
    return total


def _calibrated(work: Work, layers: Sequence[Tensor], kept: Kept | None) -> Metrics:
    """Returns the mean relative errors of outputs, GPTQ's and rounding's; logs those of layers."""
    if kept is None:
        return {}
    found = [(tensor.name, kept.get(tensor.name)[1]) for tensor in layers if kept.has(tensor.name)]
    for name, (error, plain) in found:
        work.log(f"{name}: output error {sqrt(error):.3e}, rounding's {sqrt(plain):.3e}")
    count = max(len(found), 1)
    return {
        "output_error": sum(sqrt(error) for _, (error, _) in found) / count,
        "output_error_rounded": sum(sqrt(plain) for _, (_, plain) in found) / count,
    }

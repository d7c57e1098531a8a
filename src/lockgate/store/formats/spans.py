"""A tensor and its bytes, the value that every reader of a format returns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpan:
    """A tensor and where its bytes are.

    `dtype` is the safetensors project's name where it has one (F32, BF16, I8, …), `GGML_Q8_0`
    and the like for GGUF's block types, C128, U4, I4, U2, I2 for ONNX's others. `shape` is
    outermost first. `begin` and `end` are bytes, counted from the start of the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def ordered(spans: Iterable[TensorSpan]) -> list[TensorSpan]:
    """Returns the spans in the order of their bytes."""
    return sorted(spans, key=lambda span: (span.begin, span.end))


def without_clashes(spans: Iterable[TensorSpan], size: int) -> tuple[TensorSpan, ...]:
    """Returns, in order, the spans that hold bytes of a file of `size` bytes that no other has.

    Of two that share a byte the one that begins first is kept; weights that are tied are such.
    """
    kept: list[TensorSpan] = []
    at = 0
    for span in ordered(spans):
        if at <= span.begin < span.end <= size:
            kept.append(span)
            at = span.end
    return tuple(kept)

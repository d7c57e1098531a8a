"""The format of a file is told by its magic number or suffix; siblings count for the rest."""

from __future__ import annotations

import io

import pytest

from lockgate.core.errors import IntegrityError
from lockgate.store.formats.api import TensorSpan, named_elsewhere, tensors_of

from .writers import gguf, onnx, tensor_proto, two_layers


def span(begin: int, end: int) -> TensorSpan:
    return TensorSpan(name=f"{begin}", dtype="U8", shape=(end - begin,), begin=begin, end=end)


def found(data: bytes, path: str, siblings: dict[str, list[TensorSpan]] | None = None) -> list[str]:
    spans = tensors_of(io.BytesIO(data), len(data), path, siblings or {})
    return [span.name for span in spans]


def test_each_format_is_told() -> None:
    raw = tensor_proto("o", [1], 1, bytes(4))
    assert found(gguf([("g", [1], 0, 0)], bytes(4)), "model") == ["g"]
    assert found(onnx(raw), "m.onnx") == ["o"]
    assert found(onnx(raw), "m.bin") == []
    assert found(two_layers(), "pytorch_model.bin") == ["layer.weight", "layer.bias"]
    with pytest.raises(IntegrityError):
        found(b"", "m.safetensors")


@pytest.mark.parametrize("data", [b"", b"PK", b"GGU", b"\x80\x02.", bytes(100)])
@pytest.mark.parametrize("path", ["m.gguf", "m.onnx", "m.pt", "m.bin", "m.txt", "m"])
def test_whatever_is_short_or_unknown_is_an_ordinary_file(data: bytes, path: str) -> None:
    assert found(data, path) == []
    assert named_elsewhere(io.BytesIO(data), len(data), path) == {}


def test_what_siblings_say_is_put_in_order_and_clashes_are_dropped() -> None:
    said = {"w.data": [span(8, 16), span(0, 8), span(12, 20), span(20, 101), span(30, 30)]}
    assert found(bytes(100), "w.data", said) == ["0", "8"]
    assert found(bytes(100), "other.data", said) == []


def test_what_siblings_say_does_not_count_for_a_file_with_a_format() -> None:
    data = gguf([("g", [1], 0, 0)], bytes(4))
    assert found(data, "w.data", {"w.data": [span(0, 4)]}) == ["g"]

"""The tensors of an ONNX file and of the files that it names, found in the wire format."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.store.formats.api import TensorSpan, named_elsewhere, tensors_of
from lockgate.store.formats.onnx import tensors

from .writers import field, onnx, tensor_proto, varint

F32, I64, U4 = 1, 7, 21
MODELS = Path(__file__).resolve().parents[4] / "src/lockgate/demo/models"


def read(data: bytes) -> tuple[TensorSpan, ...]:
    return tensors_of(io.BytesIO(data), len(data), "m.onnx", {})


def elsewhere(data: bytes, path: str = "sub/m.onnx") -> dict[str, Any]:
    return dict(named_elsewhere(io.BytesIO(data), len(data), path))


def in_node(attribute: bytes) -> bytes:
    return field(2, "y") + field(5, attribute) + field(4, "Constant")


def test_initializers_are_found_where_their_bytes_are() -> None:
    weight, half = bytes(range(24)), b"\x12\x34"
    data = onnx(tensor_proto("w", [2, 3], F32, weight), tensor_proto("n", [3], U4, half))
    w, n = read(data)
    assert (w.name, w.dtype, w.shape, data[w.begin : w.end]) == ("w", "F32", (2, 3), weight)
    assert (n.name, n.dtype, n.shape, data[n.begin : n.end]) == ("n", "U4", (3,), half)


def test_packed_dimensions_count_too() -> None:
    packed = field(1, varint(2) + varint(300)) + field(2, F32) + field(9, bytes(2400))
    (span,) = read(onnx(packed))
    assert span.shape == (2, 300)


def test_tensors_in_attributes_subgraphs_and_functions_are_found() -> None:
    inner = field(5, tensor_proto("inner", [1], I64, bytes(8)))
    constant = in_node(field(5, tensor_proto("", [1], I64, bytes(8))))
    branch = in_node(field(6, inner) + field(11, inner))
    function = field(25, field(7, in_node(field(10, tensor_proto("f", [2], I64, bytes(16))))))
    spans = read(onnx(nodes=[constant, branch], more=function))
    assert [span.name for span in spans] == ["constant/0", "inner", "inner", "f"]


def test_what_has_no_bytes_or_an_unknown_type_is_left_out() -> None:
    floats = field(1, 1) + field(2, F32) + field(8, "floats") + field(4, bytes(4))
    others = (tensor_proto("new", [1], 77, bytes(4)), tensor_proto("empty", [0], F32, b""))
    kept = tensor_proto("w", [1], F32, bytes(4))
    assert [span.name for span in read(onnx(floats, *others, kept))] == ["w"]


SOUND = tensor_proto("w", [1], F32, bytes(4))
ODD = {
    "empty": b"",
    "text": b"this is no model at all, it is a text",
    "a shape that does not fill the bytes": onnx(tensor_proto("w", [2], F32, bytes(4))),
    "a negative dimension": onnx(tensor_proto("w", [2**64 - 1], F32, bytes(4))),
    "too many dimensions": onnx(tensor_proto("w", [1] * 65, F32, bytes(4))),
    "packed dimensions without end": onnx(field(1, b"\1" * 10_000) + SOUND),
    "a name that is too long": onnx(tensor_proto("n" * 5000, [1], F32, bytes(4))),
    "a name not in UTF-8": onnx(field(8, b"\xff") + SOUND),
    "cut in the middle": onnx(SOUND)[:-3],
    "a field longer than its message": onnx(SOUND[:-5] + b"\x05" + bytes(4)),
    "a group": onnx(SOUND, more=varint(9 << 3 | 3)),
    "field number 0": onnx(SOUND, more=b"\x02\x00"),
    "a number without end": onnx(SOUND, more=b"\x08" + b"\xff" * 12),
    "a length beyond the file": onnx(SOUND, more=varint(7 << 3 | 2) + varint(2**63)),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_malformed_is_an_ordinary_file(name: str) -> None:
    assert read(ODD[name]) == ()
    assert elsewhere(ODD[name]) == {}


def test_nesting_has_an_end() -> None:
    graph = field(5, SOUND)
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    assert read(field(7, graph)) == ()


def test_weights_in_another_file_are_spans_of_that_file() -> None:
    data = onnx(
        tensor_proto("a", [2], F32, location="m.data"),
        tensor_proto("b", [4], I64, location="./m.data", offset="64", length="32"),
        tensor_proto("tied", [4], I64, location="m.data", offset="64"),
        tensor_proto("late", [4], I64, location="m.data", offset="90"),
        tensor_proto("beyond", [4], I64, location="m.data", offset="4096"),
        tensor_proto("c", [1], F32, location="deep/er.bin"),
    )
    found = elsewhere(data)
    assert set(found) == {"sub/m.data", "sub/deep/er.bin"}
    other = bytes(200)
    spans = tensors_of(io.BytesIO(other), 200, "sub/m.data", found)
    assert [(s.name, s.begin, s.end) for s in spans] == [("a", 0, 8), ("b", 64, 96)]
    assert tensors_of(io.BytesIO(other), 200, "m.data", found) == ()
    assert read(data) == ()


LOCATIONS = [
    "", ".", "..", "/etc/passwd", "../up", "a/../../b", "a//b", "a/./b", "C:\\x", "a\\b", "a\0b",
    "a/", "file:x", "./../x", "n" * 2000,
]  # fmt: skip


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_location_that_is_no_plain_path_below_is_ignored(location: str) -> None:
    assert elsewhere(onnx(tensor_proto("a", [2], F32, location=location))) == {}


@pytest.mark.parametrize(
    "said", [{"offset": "-1"}, {"offset": "1" * 30}, {"offset": "²"}, {"length": "9"}, {}]
)
def test_what_does_not_fit_together_is_ignored(said: dict[str, str]) -> None:
    kind = F32 if said else 99
    assert elsewhere(onnx(tensor_proto("a", [2], kind, location="x", **said))) == {}


def test_only_onnx_files_name_others() -> None:
    data = onnx(tensor_proto("a", [2], F32, location="x"))
    assert elsewhere(data, "m.txt") == {}


@given(noise=st.binary(max_size=60), at=st.integers(0, 200))
def test_noise_never_crashes(noise: bytes, at: int) -> None:
    data = bytearray(onnx(SOUND, tensor_proto("b", [4], I64, location="m.data", offset="64")))
    data[at : at + len(noise)] = noise
    end = 0
    for span in tensors(io.BytesIO(data), len(data), "m.onnx").own:
        assert end <= span.begin < span.end <= len(data)
        end = span.end


def test_a_large_file_costs_its_headers_only(tmp_path: Path) -> None:
    head = onnx(SOUND)
    raw = 2**31
    tensor = field(1, raw // 4) + field(2, F32) + field(8, "big") + varint(9 << 3 | 2) + varint(raw)
    graph = varint(5 << 3 | 2) + varint(len(tensor) + raw) + tensor
    prefix = head + varint(7 << 3 | 2) + varint(len(graph) + raw) + graph
    with (tmp_path / "m.onnx").open("wb") as file:  # sparse
        file.write(prefix)
        file.truncate(len(prefix) + raw)
    with (tmp_path / "m.onnx").open("rb") as file:
        spans = tensors_of(file, len(prefix) + raw, "m.onnx", {})
    assert [(s.name, s.end - s.begin) for s in spans] == [("w", 4), ("big", raw)]


def test_the_demo_models_are_all_tensors() -> None:
    for model in ("chat-v1", "chat-v2", "chat-v3"):
        path = MODELS / model / "model.onnx"
        found = elsewhere(path.read_bytes(), f"{model}/model.onnx")
        data = path.with_name("model.onnx.data").read_bytes()
        spans = tensors_of(io.BytesIO(data), len(data), f"{model}/model.onnx.data", found)
        assert sum(span.end - span.begin for span in spans) == len(data)


def test_what_the_real_library_writes(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("onnx")
    rng = np.random.default_rng(0)
    arrays = {
        kind: rng.integers(0, 99, (2, 3)).astype(kind)
        for kind in ("float32", "float16", "float64", "int8", "uint8", "int64", "bool")
    }
    initializers = [library.numpy_helper.from_array(value, kind) for kind, value in arrays.items()]
    graph = library.helper.make_graph([], "g", [], [], initializers)
    model = library.helper.make_model(graph)
    data = model.SerializeToString()
    assert {s.name: data[s.begin : s.end] for s in read(data)} == {
        kind: value.tobytes() for kind, value in arrays.items()
    }
    library.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    found = elsewhere((tmp_path / "m.onnx").read_bytes(), "m.onnx")
    other = (tmp_path / "w.bin").read_bytes()
    spans = tensors_of(io.BytesIO(other), len(other), "w.bin", found)
    assert {s.name: (s.shape, other[s.begin : s.end]) for s in spans} == {
        kind: ((2, 3), value.tobytes()) for kind, value in arrays.items()
    }

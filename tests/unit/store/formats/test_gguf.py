"""The GGUF header, read as a stranger's."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lockgate.core.errors import IntegrityError
from lockgate.store.formats.api import TensorSpan, tensors_of

from .writers import array, gguf, text

F32, Q8_0 = 0, 8
ALIGNMENT = "general.alignment"


def read(data: bytes, path: str = "sub/m.gguf") -> tuple[TensorSpan, ...]:
    return tensors_of(io.BytesIO(data), len(data), path, {})


@pytest.mark.parametrize("version", [2, 3])
def test_tensors_are_found_with_their_outermost_dimension_first(version: int) -> None:
    nested = array(9, [array(8, [text("a"), text("b")]), array(0, [b"\1"] * 3)])
    pairs = [("name", 8, text("x")), ("nested", 9, nested), ("f", 12, bytes(8))]
    data = gguf([("q", [64, 2], Q8_0, 32), ("w", [5], F32, 0)], bytes(168), pairs, version=version)
    begin = len(data) - 168
    assert read(data) == (
        TensorSpan(name="w", dtype="F32", shape=(5,), begin=begin, end=begin + 20),
        TensorSpan(name="q", dtype="GGML_Q8_0", shape=(2, 64), begin=begin + 32, end=len(data)),
    )


def test_the_alignment_of_the_file_counts() -> None:
    pairs = [(ALIGNMENT, 4, struct.pack("<I", 256))]
    data = gguf([("w", [1], F32, 256)], bytes(260), pairs, alignment=256)
    (span,) = read(data)
    assert (span.begin % 256, span.end) == (0, len(data))


def test_a_scalar_an_empty_tensor_and_a_file_of_pairs_only() -> None:
    spans = read(gguf([("s", [], F32, 0), ("e", [0], F32, 32)], bytes(32)))
    assert [(span.shape, span.end - span.begin) for span in spans] == [((), 4), ((0,), 0)]
    assert read(gguf(pairs=[("a", 7, b"\1")])) == ()


def test_a_tensor_of_an_unknown_type_is_left_out() -> None:
    data = gguf([("new", [32], 99, 0), ("w", [2], F32, 32)], bytes(40))
    assert [span.name for span in read(data)] == ["w"]


ORDINARY = {
    "version 1": gguf([("w", [1], F32, 0)], bytes(4), version=1),
    "a later version": gguf(version=4),
    "big endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "the magic number alone": b"GGUF",
    "another magic number": b"GGJT" + bytes(100),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_is_not_read_is_an_ordinary_file(name: str) -> None:
    assert read(ORDINARY[name]) == ()


BAD = {
    "no counts": b"GGUF" + struct.pack("<I", 3),
    "more tensors than bytes": gguf(counts=(1000, 0)),
    "2^64 - 1 tensors": gguf(counts=(2**64 - 1, 0)),
    "2^64 - 1 pairs": gguf(counts=(0, 2**64 - 1)),
    "cut in a pair": gguf(pairs=[("a", 4, bytes(4))])[:38],
    "a key that is too long": gguf(pairs=[("a" * 65536, 7, b"\1")]),
    "a key not in UTF-8": gguf(pairs=[("a", 7, b"\1")]).replace(b"a\7", b"\xff\7"),
    "a text beyond the end": gguf(pairs=[("a", 8, struct.pack("<Q", 2**63))]),
    "an unknown type": gguf(pairs=[("a", 13, bytes(8))]),
    "an array beyond the end": gguf(pairs=[("a", 9, array(10, [], count=2**61))]),
    "texts beyond the end": gguf(pairs=[("a", 9, array(8, [], count=2**40))]),
    "arrays nested too deep": gguf(pairs=[("a", 9, array(9, [b""]) * 9 + bytes(90))]),
    "alignment 0": gguf(pairs=[(ALIGNMENT, 4, bytes(4))]),
    "alignment 3": gguf(pairs=[(ALIGNMENT, 4, struct.pack("<I", 3))]),
    "alignment 2^31": gguf(pairs=[(ALIGNMENT, 4, struct.pack("<I", 2**31))]),
    "alignment as text": gguf(pairs=[(ALIGNMENT, 8, text("32"))]),
    "a name that is too long": gguf([("n" * 5000, [1], F32, 0)], bytes(4)),
    "too many dimensions": gguf([("w", [1] * 9, F32, 0)], bytes(4)),
    "2^64 - 1 weights": gguf([("w", [2**64 - 1], F32, 0)], bytes(4)),
    "weights beyond the end": gguf([("w", [2], F32, 0)], bytes(4)),
    "a product beyond any file": gguf([("w", [2**62] * 8, F32, 0)], bytes(4)),
    "an offset beyond the end": gguf([("w", [1], F32, 2**40)], bytes(4)),
    "an offset that is not aligned": gguf([("w", [1], F32, 4)], bytes(8)),
    "an overlap": gguf([("a", [9], F32, 0), ("b", [1], F32, 32)], bytes(64)),
    "one name twice": gguf([("a", [1], F32, 0), ("a", [1], F32, 32)], bytes(64)),
    "half a block": gguf([("q", [48], Q8_0, 0)], bytes(64)),
    "a block as a scalar": gguf([("q", [], Q8_0, 0)], bytes(64)),
}


@pytest.mark.parametrize("name", BAD)
def test_a_corrupt_file_is_refused_by_name(name: str) -> None:
    with pytest.raises(IntegrityError, match=r"^sub/m.gguf is not a sound GGUF file: ") as caught:
        read(BAD[name])
    assert caught.value.hint


def test_the_file_is_told_by_its_magic_number() -> None:
    with pytest.raises(IntegrityError):
        read(BAD["2^64 - 1 pairs"], "model")


def test_a_file_that_is_cut_anywhere_is_refused_or_has_fewer_bytes_only() -> None:
    data = gguf([("w", [2], F32, 0)], bytes(8), [("a", 8, text("abc"))])
    for length in range(8, len(data)):
        with pytest.raises(IntegrityError):
            read(data[:length])


@given(noise=st.binary(max_size=200), version=st.sampled_from([2, 3]))
def test_noise_never_crashes(noise: bytes, version: int) -> None:
    with suppress(IntegrityError):
        read(b"GGUF" + struct.pack("<I", version) + noise)


def test_the_reading_costs_no_weights() -> None:
    class Counting(io.BytesIO):
        count = 0

        def read(self, size: Any = -1) -> bytes:
            data = super().read(size)
            self.count += len(data)
            return data

    vocabulary = array(8, [text("token")] * 5000)
    data = gguf([("w", [2**20], F32, 0)], bytes(2**22), [("tokens", 9, vocabulary)])
    source = Counting(data)
    assert len(tensors_of(source, len(data), "m", {})) == 1
    assert source.count < len(data) - 2**22 + 20_000


def test_what_the_real_library_writes(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("gguf")
    writer = library.GGUFWriter(str(tmp_path / "m.gguf"), "llama")
    writer.add_array("tokens", ["a", "b"])
    arrays = {"w": np.arange(15, dtype=np.float32).reshape(3, 5), "i": np.ones(7, np.int8)}
    for name, values in arrays.items():
        writer.add_tensor(name, values)
    kinds = [kind for kind in library.GGMLQuantizationType if kind.name in QUANTIZED]
    for kind in kinds:
        blocks = library.quants.quantize(np.ones((2, 256), np.float32), kind)
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = (tmp_path / "m.gguf").read_bytes()
    expected = {
        tensor.name: (tensor.data_offset, tensor.n_bytes, tuple(reversed(tensor.shape)))
        for tensor in library.GGUFReader(tmp_path / "m.gguf").tensors
    }
    found = {span.name: (span.begin, span.end - span.begin, span.shape) for span in read(data)}
    assert found == expected
    assert len(found) == 2 + len(QUANTIZED)


QUANTIZED = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "BF16", "MXFP4"}


def test_the_block_sizes_are_those_of_the_real_library() -> None:
    constants: Any = pytest.importorskip("gguf.constants")
    for kind, (weights, length) in constants.GGML_QUANT_SIZES.items():
        spans = read(gguf([("t", [weights], int(kind), 0)], bytes(length)))
        if spans and kind.name != "Q8_1":  # never in a file; 36 bytes in ggml, 40 in the library
            assert spans[0].end - spans[0].begin == length, kind
            assert spans[0].dtype.removeprefix("GGML_") == kind.name

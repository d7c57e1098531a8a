"""Weights as a stream: floats by bits, hostile folders, the same bytes for the same input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lockgate.core.errors import IntegrityError, UsageError
from lockgate.derive.steps.shard import Shard
from lockgate.derive.steps.weights.floats import (
    decode_e4m3,
    encode_e4m3,
    narrow,
    rounded,
    widen,
)
from lockgate.derive.steps.weights.reader import (
    INDEX,
    SINGLE,
    open_model,
    raw_bytes,
    row_chunks,
    rows_of,
    values,
)
from lockgate.derive.steps.weights.select import cut, is_small
from lockgate.derive.steps.weights.writer import ModelWriter, slot

from .bench import MODELS, Run, blocks, digest, logits, read, write_model

FLOATS = arrays.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32))
FINITE = arrays.arrays(
    np.float32, st.integers(1, 60), elements=st.floats(-(2.0**90), 2.0**90, width=32)
)


def test_e4m3_decodes_and_encodes_every_byte() -> None:
    every = np.arange(256, dtype=np.uint8)
    wide = decode_e4m3(every)
    again = encode_e4m3(wide)
    assert ((again == every) | np.isnan(wide)).all()
    assert np.nanmax(wide) == 448
    assert wide[1] == 2.0**-9
    assert np.isnan(wide[[0x7F, 0xFF]]).all()


@settings(deadline=None)  # the first example imports torch
@given(FLOATS)
def test_e4m3_is_what_torch_makes_within_its_range(numbers: Any) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    numbers = np.clip(numbers, -448, 448)
    theirs = torch.from_numpy(numbers).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    ours = encode_e4m3(numbers)
    assert (ours[~np.isnan(numbers)] == theirs[~np.isnan(numbers)]).all()
    assert np.isnan(decode_e4m3(ours[np.isnan(numbers)])).all()


@settings(deadline=None)
@given(FLOATS, st.sampled_from(["F16", "BF16", "F32"]))
def test_narrowing_rounds_as_torch_does(numbers: Any, dtype: str) -> None:
    torch: Any = pytest.importorskip("torch", reason="torch is not installed")
    kind = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}[dtype]
    theirs = torch.from_numpy(numbers).to(kind).to(torch.float32).numpy()
    assert np.array_equal(rounded(numbers, dtype), theirs, equal_nan=True)
    again = narrow(rounded(numbers, dtype), dtype)
    assert np.array_equal(
        widen(np.frombuffer(again, np.uint8), dtype), rounded(numbers, dtype), equal_nan=True
    )


@given(FINITE, st.data())
def test_a_cut_takes_exactly_as_many_of_the_smallest(numbers: Any, data: st.DataObject) -> None:
    small = data.draw(st.integers(0, len(numbers)))
    step = data.draw(st.integers(1, 10))
    parts = [numbers[at : at + step] for at in range(0, len(numbers), step)]
    where, seen, found = cut(lambda: parts, small), 0, []
    for part in parts:
        mask, seen = is_small(part, where, seen)
        found.append(mask)
    mask = np.concatenate(found)
    assert mask.sum() == small
    if 0 < small < len(numbers):
        assert np.abs(numbers[mask]).max() <= np.abs(numbers[~mask]).min()


def test_the_writer_writes_what_the_safetensors_project_reads(tmp_path: Path) -> None:
    library: Any = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    numbers = np.arange(6, dtype=np.int64).reshape(2, 3)
    slots = [slot("b", "I8", (5,)), slot("a", "I64", (2, 3)), slot("e", "F32", (0, 2))]
    with ModelWriter(tmp_path, slots) as writer:
        writer.append("b", bytes([1, 2]))
        writer.append("a", numbers.tobytes())
        writer.append("b", bytes([3, 4, 255]))
    found = library.load_file(tmp_path / SINGLE)
    assert (found["a"] == numbers).all()
    assert found["b"].tolist() == [1, 2, 3, 4, -1]
    assert found["e"].shape == (0, 2)


def test_the_writer_refuses_too_much_and_too_little(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="more bytes"),
        ModelWriter(tmp_path, [slot("a", "I8", (2,))]) as writer,
    ):
        writer.append("a", b"123")
    with (
        pytest.raises(ValueError, match="did not get all"),
        ModelWriter(tmp_path, [slot("a", "I8", (2,))]) as writer,
    ):
        writer.append("a", b"1")


def test_resharding_keeps_every_bit_and_joins_again(tmp_path: Path) -> None:
    run = Run(tmp_path)
    source = MODELS / "chat-v1"
    small = run(Shard(), {"base": source}, shard_bytes=50_000)
    assert run.metrics["files"] > 3
    assert run.reports[-1].done == run.reports[-1].total == run.metrics["bytes"]
    assert all(file.stat().st_size < 60_000 for file in small.glob("model-*.safetensors"))
    index = json.loads((small / INDEX).read_text())
    assert index["metadata"]["total_size"] == run.metrics["bytes"]
    assert digest(small) == digest(run(Shard(), {"base": source}, shard_bytes=50_000))
    joined = run(Shard(), {"base": small})
    assert run.metrics["files"] == 1
    assert not (joined / INDEX).exists()
    before, after = open_model(source).tensors, open_model(joined).tensors
    assert list(before) == list(after)
    for name, tensor in before.items():
        other = after[name]
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        assert (raw_bytes(tensor, 0, tensor.size) == raw_bytes(other, 0, other.size)).all()
    for name in ("config.json", "model.onnx", "tokenizer.json"):
        assert (joined / name).read_bytes() == (source / name).read_bytes()


def test_transformers_loads_shards(tmp_path: Path) -> None:
    small = Run(tmp_path)(Shard(), {"base": MODELS / "chat-v1"}, shard_bytes=50_000)
    assert (logits(small) == logits(MODELS / "chat-v1")).all()


def sharded(folder: Path) -> tuple[Path, dict[str, Any]]:
    write_model(folder / "one", blocks())
    many = Run(folder)(Shard(), {"base": folder / "one"}, shard_bytes=4_000)
    return many, json.loads((many / INDEX).read_text())


def test_an_index_may_not_point_out_of_its_folder(tmp_path: Path) -> None:
    many, index = sharded(tmp_path)
    for bad in ("../x", "../one/model.safetensors", "/etc/passwd", "a/b.safetensors", "..", 7):
        index["weight_map"]["model.norm.weight"] = bad
        (many / INDEX).write_text(json.dumps(index))
        with pytest.raises(UsageError, match="does not map tensors to files of the same folder"):
            open_model(many)


def test_an_index_must_be_of_its_files(tmp_path: Path) -> None:
    many, index = sharded(tmp_path)
    whole = dict(index["weight_map"])
    for change, said in (
        ({"ghost": whole["model.norm.weight"]}, "no such tensor"),
        ({"model.norm.weight": "model-00009-of-00001.safetensors"}, "not there"),
    ):
        (many / INDEX).write_text(json.dumps({"weight_map": whole | change}))
        with pytest.raises(UsageError, match=said):
            open_model(many)
    del whole["model.norm.weight"]
    (many / INDEX).write_text(json.dumps({"weight_map": whole}))
    with pytest.raises(UsageError, match="the index does not say"):
        open_model(many)
    for text in ("[]", "{", "[" * 100_000, "{}"):
        (many / INDEX).write_text(text)
        with pytest.raises(UsageError):
            open_model(many)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "one", blocks())
    data = (folder / SINGLE).read_bytes()
    for length in (0, 7, 100, len(data) - 1):
        (folder / SINGLE).write_bytes(data[:length])
        with pytest.raises(IntegrityError):
            open_model(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has neither"):
        Run(tmp_path)(Shard(), {"base": MODELS / "credit-v1"})


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_what_is_no_number_is_refused(tmp_path: Path, bad: float, dtype: str) -> None:
    folder = write_model(tmp_path / "one", {"x": np.array([1, bad], "<f4")}, dtype)
    with pytest.raises(UsageError, match="x holds NaN or infinity"):
        values(open_model(folder).tensors["x"])


def test_rows_come_in_parts_that_cover_the_tensor(tmp_path: Path) -> None:
    matrix = np.arange(7 * 5, dtype="<f4").reshape(7, 5)
    tensor = open_model(write_model(tmp_path / "one", {"x": matrix})).tensors["x"]
    parts = list(row_chunks(tensor, multiple=2, size=11))
    assert parts == [(0, 2), (2, 4), (4, 6), (6, 7)]
    assert (np.concatenate([rows_of(tensor, *part) for part in parts]) == matrix).all()
    assert read(tmp_path / "one")["x"].shape == (7, 5)

"""The safetensors header, read as a stranger's; the real library is the judge of what is sound."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save, save_file

from lockgate.core.errors import IntegrityError, LockgateError
from lockgate.store.formats.api import tensors_of
from lockgate.store.formats.safetensors import header_length, parse_header
from lockgate.store.split import plan_file


def tensor(
    begin: int, end: int, dtype: str = "U8", shape: list[int] | None = None
) -> dict[str, Any]:
    size = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": size, "data_offsets": [begin, end]}


def blob(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_a_real_file_is_cut_at_its_tensors(tmp_path: Path) -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "empty": np.zeros((0, 4), np.float16),
        "scalar": np.array(7, np.int64),
    }
    save_file(arrays, tmp_path / "m.safetensors", metadata={"format": "np"})
    data = (tmp_path / "m.safetensors").read_bytes()
    spans = tensors_of(io.BytesIO(data), len(data), "m.safetensors", {})
    assert {span.name: (span.dtype, span.shape, span.end - span.begin) for span in spans} == {
        "a": ("F32", (2, 3), 24),
        "empty": ("F16", (0, 4), 0),
        "scalar": ("I64", (), 8),
    }
    assert all(data[s.begin : s.end] == arrays[s.name].tobytes() for s in spans)


def test_spans_count_from_the_start_of_the_file() -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    data = save({"a": values})
    (span,) = tensors_of(io.BytesIO(data), len(data), "m.safetensors", {})
    assert (span.name, span.dtype, span.shape) == ("a", "F32", (2, 3))
    assert data[span.begin : span.end] == values.tobytes()


def test_a_file_that_shrinks_while_it_is_read_is_refused() -> None:
    data = blob({"a": tensor(0, 4)}, b"xxxx")
    with pytest.raises(IntegrityError, match="middle of its header"):
        tensors_of(io.BytesIO(data[:20]), len(data), "m.safetensors", {})


BAD = {
    "short": b"\x01\x02",
    "header longer than the file": blob({}, length=1000),
    "header beyond the limit": struct.pack("<Q", 2**63),
    "not JSON": blob(b"{nope"),
    "not UTF-8": blob(b'{"\xff": 1}'),
    "a list": blob([]),
    "deep nesting": blob(b'{"a":' * 5000 + b"1" + b"}" * 5000),
    "double key": blob(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
    "unknown dtype": blob({"a": tensor(0, 1, "Q7")}, b"x"),
    "dtype is a list": blob({"a": {**tensor(0, 1), "dtype": ["U8"]}}, b"x"),
    "negative shape": blob({"a": tensor(0, 1, shape=[-1])}, b"x"),
    "bool shape": blob({"a": tensor(0, 1, shape=[True])}, b"x"),  # type: ignore[list-item]
    "overflowing shape": blob({"a": tensor(0, 0, shape=[2**62, 2**62, 4])}),
    "too many dimensions": blob({"a": tensor(0, 1, shape=[1] * 1000)}, b"x"),
    "size differs": blob({"a": tensor(0, 3, "F32", [1])}, b"xxx"),
    "offsets backwards": blob({"a": tensor(4, 0, shape=[0])}, b"xxxx"),
    "offset beyond the end": blob({"a": tensor(0, 9)}, b"xxxx"),
    "hole": blob({"a": tensor(0, 1), "b": tensor(2, 3)}, b"xxx"),
    "overlap": blob({"a": tensor(0, 2), "b": tensor(1, 3)}, b"xxx"),
    "bytes nobody owns": blob({"a": tensor(0, 1)}, b"xx"),
    "a name that is not Unicode": blob(
        b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "more values than tensors need": blob(b"[" + b"0," * 6_000_000 + b"0]"),
    "metadata of numbers": blob({"__metadata__": {"a": 1}}),
}


@pytest.mark.parametrize("name", BAD)
def test_a_corrupt_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(BAD[name])
    with pytest.raises(IntegrityError, match=r"^sub/model.safetensors is not a sound"):
        plan_file(tmp_path / "model.safetensors", "sub/model.safetensors")


def test_an_empty_header_is_sound(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(blob({}))
    assert plan_file(tmp_path / "m.safetensors", "m").size == 10


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["U8", "F32"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "a", "__metadata__"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
near_misses = st.dictionaries(
    st.text(max_size=3),
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["U8", "F32", "BF16", "F4"]),
            "shape": st.lists(st.integers(0, 3), max_size=3),
            "data_offsets": st.lists(st.integers(0, 12), min_size=2, max_size=2),
        }
    ),
    max_size=3,
)


@given(header=json_values | near_misses, size=st.integers(0, 40))
def test_whatever_is_accepted_covers_the_data_exactly(header: object, size: int) -> None:
    try:
        spans = parse_header(json.dumps(header).encode(), size, "m")
    except LockgateError:
        return
    assert sum(span.end - span.begin for span in spans) == size
    assert all(span.begin >= 8 + len(json.dumps(header)) for span in spans)


@given(data=st.binary(max_size=200))
def test_noise_never_crashes(data: bytes) -> None:
    try:
        length = header_length(data[:8], len(data), "m")
        parse_header(data[8 : 8 + length], len(data) - 8 - length, "m")
    except IntegrityError:
        pass


@given(header=near_misses, size=st.integers(0, 12))
def test_what_the_real_library_opens_is_never_refused(
    header: dict[str, Any], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("st") / "m.safetensors"
    path.write_bytes(blob(header, bytes(size)))
    try:
        with safe_open(path, "np"):  # type: ignore[no-untyped-call]
            pass
    except (SafetensorError, ValueError):
        return
    plan_file(path, "m.safetensors")

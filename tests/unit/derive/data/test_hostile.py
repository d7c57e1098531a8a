"""What an attacker, or an old export, puts into a dataset: told in one sentence, by its place."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.derive.data.bench import WHY, Room, rows_of

from lockgate.core.errors import UsageError
from lockgate.derive.api import Step
from lockgate.derive.steps.data.clean import Clean
from lockgate.derive.steps.data.ingest import Ingest
from lockgate.derive.steps.data.split import Split

pa = pytest.importorskip("pyarrow", reason=WHY)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def refused(room: Room, step: Step, **asked: Any) -> str:
    name = "source" if step.name == "ingest" else "data"
    with pytest.raises(UsageError) as caught:
        room.run(step, {name: room.raw}, **asked)
    assert caught.value.message.isprintable()
    return caught.value.message


def parquet(room: Room, column: Any, name: str = "t") -> Room:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: column}), room.raw / "rows.parquet")
    return room


FAR = {
    "microseconds": lambda: pa.array([0, 2**61], pa.timestamp("us", tz="UTC")),
    "seconds": lambda: pa.array([0, 2**50], pa.timestamp("s")),
    "days": lambda: pa.array([0, 2**31 - 1], pa.date32()),
    "before": lambda: pa.array([0, -(2**61)], pa.timestamp("us")),
}


@pytest.mark.parametrize("far", FAR.values(), ids=FAR.keys())
@pytest.mark.parametrize("step", [Ingest(), Clean(), Split()], ids=lambda step: step.name)
def test_a_time_that_no_calendar_has_is_refused(
    room: Room, far: Callable[[], Any], step: Step
) -> None:
    message = refused(parquet(room, far()), step)
    assert "rows.parquet, row 2, column 't': " in message


def test_a_time_of_a_csv_that_leaves_the_calendar_in_utc_is_refused(room: Room) -> None:
    room.file("a.csv", "t\n2031-01-01T00:00:00Z\n9999-12-31T23:59:59-23:00\n")
    message = refused(room, Ingest())
    assert message.startswith("a.csv, row 2, column 't': it is outside of the years 1 to 9999")


def test_a_number_that_is_no_time_is_refused(room: Room) -> None:
    message = refused(parquet(room, pa.array([0, 2**62])), Ingest(), columns={"t": "timestamp"})
    assert "row 2, column 't'" in message


def test_a_number_that_is_no_time_becomes_null_where_that_is_asked_for(room: Room) -> None:
    parquet(room, pa.array([0, 2**62]))
    asked: dict[str, Any] = {"cast": {"t": "timestamp"}, "bad_casts": "null"}
    out = room.run(Clean(), {"data": room.raw}, **asked)
    assert [row["t"] is None for row in rows_of(out)] == [False, True]


def test_times_finer_than_a_microsecond_are_not_bent(room: Room) -> None:
    parquet(room, pa.array([1000, 1001], pa.timestamp("ns")))
    message = refused(room, Ingest())
    assert "row 2, column 't': " in message
    assert "1970-01-01 00:00:00.000001001" in message


ODD = {
    "nested": lambda: pa.array([[1], [2]]),
    "nanoseconds": lambda: pa.array([1, 2], pa.timestamp("ns")),
    "dictionary": lambda: pa.array(["a", "b"]).dictionary_encode(),
    "decimal": lambda: pa.array([1, 2], pa.decimal128(9, 2)),
    "bytes": lambda: pa.array([b"\xff", b"a"]),
    "large text": lambda: pa.array(["a", "b"], pa.large_string()),
    "unsigned": lambda: pa.array([1, 2**64 - 1], pa.uint64()),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("step", [Clean(), Split()], ids=lambda step: step.name)
def test_a_type_that_only_ingest_reads_is_refused(
    room: Room, odd: Callable[[], Any], step: Step
) -> None:
    asked = {} if step.name == "split" else {"drop_duplicates": "row"}
    message = refused(parquet(room, odd()), step, **asked)
    assert "rows.parquet, column 't' is " in message


@pytest.mark.parametrize("kind", ["float16", "float32", "int8", "uint32", "date32"])
def test_narrow_numbers_are_split(room: Room, kind: str) -> None:
    import numpy as np

    numbers = pa.array(np.arange(100), pa.int32()) if kind == "date32" else pa.array(range(100))
    parquet(room, numbers.cast(getattr(pa, kind)()))
    out = room.run(Split(), {"data": room.raw}, by=["t"])
    sides = [{row["t"] for row in rows_of(out / f"{n}.parquet")} for n in ("train", "test")]
    assert not sides[0] & sides[1]


def test_names_that_stand_twice_or_collide_are_refused(room: Room) -> None:
    import pyarrow.parquet as pq

    two = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    pq.write_table(two, room.raw / "rows.parquet")
    assert "columns 1 and 2 are both named 'a'" in refused(room, Split())
    assert "has the name" in refused(parquet(room, pa.array([1]), "\0at"), Split(), by=["\0at"])
    pq.write_table(pa.table({}), room.raw / "rows.parquet")
    assert "no header" in refused(room, Split())


def test_nan_is_a_stratum_like_any_other(room: Room) -> None:
    import pyarrow.parquet as pq

    table = pa.table({"n": range(400), "f": [1.0, float("nan")] * 200})
    pq.write_table(table, room.raw / "rows.parquet")
    out = room.run(Split(), {"data": room.raw}, stratify="f")
    nans = [row for row in rows_of(out / "train.parquet") if row["f"] != row["f"]]
    assert len(nans) == 160


@pytest.mark.parametrize(
    "asked",
    [{"fill": {"t": 1e30}}, {"fill": {"t": 2**70}}, {"clip": {"t": [0, 1e30]}}],
    ids=str,
)
def test_a_number_that_is_no_int64_fills_and_clips_nothing(
    room: Room, asked: dict[str, Any]
) -> None:
    assert "column 't' is int64" in refused(parquet(room, pa.array([1, None])), Clean(), **asked)


LINES = [
    ("[1]\n", "a.jsonl, row 1: it is no JSON object"),
    ('{\n "x": 1\n}\n', "a.jsonl, row 1: it is not JSON"),
    ('{"x": 1, "x": 2}\n', "a.jsonl, row 1: a name stands in it twice"),
    ('{"x": ' + "[" * 100_000, "a.jsonl, row 1: it is"),
    ("{}\n{}\n", "a.jsonl has no names: its rows are empty"),
]


@pytest.mark.parametrize(("content", "said"), LINES, ids=range(len(LINES)))
def test_a_first_line_that_is_no_row_is_named(room: Room, content: str, said: str) -> None:
    room.file("a.jsonl", content)
    assert refused(room, Ingest()).startswith(said)


def packed(*members: tuple[str, str]) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, text in members:
            info = zipfile.ZipInfo("x.csv")
            info.filename = name
            archive.writestr(info, text)
    return held.getvalue()


@pytest.mark.parametrize("name", ["", ".", "./"])
def test_a_member_without_a_name_is_refused(room: Room, name: str) -> None:
    room.file("a.zip", packed((name, "x\n1\n")))
    assert "a.zip" in refused(room, Ingest()) or name == "./"


def test_a_member_that_lies_before_the_file_is_refused(room: Room) -> None:
    whole = bytearray(packed(("x.csv", "x\n1\n")))
    directory = whole.rindex(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    whole[end + 16 : end + 20] = (directory + 900).to_bytes(4, "little")  # shifts every offset
    room.file("a.zip", bytes(whole))
    assert "a.zip" in refused(room, Ingest())


def test_a_name_with_a_line_end_does_not_break_the_sentence(room: Room) -> None:
    room.file("a.zip", packed(("x\n\x1b[31m.csv", "t\nq\n")))
    assert r"a.zip/x\n\x1b[31m.csv, row 1" in refused(room, Ingest(), columns={"t": "int64"})
    (room.raw / "a.zip").unlink()
    room.file("y\nz.csv", "t\nq\n")
    assert r"y\nz.csv, row 1" in refused(room, Ingest(), columns={"t": "int64"})


FORMULAS = ["=1+1", '="x"', "\t=cmd|' /C calc'!A0", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "+a"]


@pytest.mark.parametrize("text", FORMULAS)
def test_what_a_spreadsheet_would_run_is_refused(room: Room, text: str) -> None:
    import json

    room.file("a.jsonl", json.dumps({"t": text}))
    assert "would run" in refused(room, Ingest(), formulas="refuse")


def test_numbers_and_phrases_are_no_formulas(room: Room) -> None:
    room.file("a.csv", "t\n+49 (30) 1234\n-5 (estimated)\n- yes | no\n@ 3\nx\n")
    room.run(Ingest(), formulas="refuse")
    assert room.metrics["formulas"] == 0


def test_another_delimiter_is_guessed_at_in_the_log(room: Room) -> None:
    room.file("a.csv", "name;age\nAnn;3\n")
    room.run(Ingest())
    assert any("delimiter" in line for line in room.said)


def test_broken_texts_of_parquet_name_file_and_column(room: Room) -> None:
    letters = pa.array(["xx"]).buffers()[1]
    broken = pa.Array.from_buffers(pa.string(), 1, [None, letters, pa.py_buffer(b"\xff\xfe")])
    assert "rows.parquet, column 't' is not sound" in refused(parquet(room, broken), Ingest())

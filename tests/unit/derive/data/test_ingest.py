"""Raw files become typed rows, and what does not fit is named by row and column."""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import gzip
import hashlib
import io
import json
import math
import sqlite3
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.derive.data.bench import WHY, Room, profile_of, rows_of

from lockgate.core.errors import UsageError
from lockgate.derive.recipe import code_digest, make_recipe
from lockgate.derive.steps.data.ingest import Ingest, digest_of_file
from lockgate.derive.steps.data.reading import files, tables

pytest.importorskip("pyarrow", reason=WHY)
INGEST = Ingest()


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def refused(room: Room, **asked: Any) -> str:
    with pytest.raises(UsageError) as caught:
        room.run(INGEST, **asked)
    return caught.value.message


def test_types_are_inferred(room: Room) -> None:
    room.file(
        "a.csv",
        "n,x,name,ok,day,at,zip\n1,1.5,Ann,true,2031-01-02,2031-01-02T03:04:05Z,0123\n"
        '-2,,"B, b",false,2031-01-03,2031-01-02 03:04,0456\n',
    )
    rows = rows_of(room.run(INGEST))
    utc = dt.UTC
    assert rows[0] == {
        "n": 1, "x": 1.5, "name": "Ann", "ok": True, "day": dt.date(2031, 1, 2),
        "at": dt.datetime(2031, 1, 2, 3, 4, 5, tzinfo=utc), "zip": "0123",
    }  # fmt: skip
    assert rows[1]["x"] is None
    assert rows[1]["name"] == "B, b"
    assert rows[1]["at"] == dt.datetime(2031, 1, 2, 3, 4, tzinfo=utc)
    assert room.metrics["rows"] == 2


def test_declared_types_are_kept(room: Room) -> None:
    room.file("a.csv", "age,income,name\n007,1,1\n+8,+2.5e3,2\n")
    asked = {"age": "int64", "income": "float64", "name": "string"}
    assert rows_of(room.run(INGEST, columns=asked)) == [
        {"age": 7, "income": 1.0, "name": "1"}, {"age": 8, "income": 2500.0, "name": "2"},
    ]  # fmt: skip


def test_several_files_and_packed_ones_are_one_table(room: Room) -> None:
    room.file("a.csv", "x,y\n1,a\n")
    room.file("b.csv.gz", gzip.compress(b"y,x\nb,2\n"))
    room.file("c.jsonl", '{"x": 3, "y": "c"}\n\n{"y": "d"}\n')
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("in/e.csv", "x,y\n5,e\n")
    room.file("d.zip", packed.getvalue())
    room.file("README.md", "not a table")
    found = [(row["x"], row["y"]) for row in rows_of(room.run(INGEST))]
    assert found == [(1, "a"), (2, "b"), (3, "c"), (None, "d"), (5, "e")]
    assert len(rows_of(room.run(INGEST, files=["a.*", "b.*"]))) == 2


def test_a_name_that_a_later_json_file_lacks_is_null(room: Room) -> None:
    room.file("a.jsonl", '{"x": 1, "y": "a"}\n')
    room.file("b.jsonl", '{"x": 2}\n')
    assert rows_of(room.run(INGEST))[1] == {"x": 2, "y": None}
    room.file("c.jsonl", '{"z": 2}\n')
    assert "c.jsonl has other columns than the file before: 'z'" in refused(room)


def test_types_are_inferred_from_the_first_file_with_rows(room: Room) -> None:
    room.file("a.csv", "x\n")
    room.file("b.csv", "x\n5\n")
    assert rows_of(room.run(INGEST)) == [{"x": 5}]


def test_parquet_goes_in_and_comes_out(room: Room) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({
        "a": pa.array([1, None], pa.int16()), "b": pa.array(["x", "y"]).dictionary_encode(),
        "c": pa.array([1.5, 2.5], pa.float32()),
    })  # fmt: skip
    pq.write_table(table, room.raw / "a.parquet")
    out = room.run(INGEST)
    assert rows_of(out) == [{"a": 1, "b": "x", "c": 1.5}, {"a": None, "b": "y", "c": 2.5}]
    column = pq.ParquetFile(out / "rows.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert "row 2, column 'a'" in refused(
        _parquet(room, pa.table({"a": [1.0, 1.5]})), columns={"a": "int64"}
    )
    assert "no place in a flat table" in refused(_parquet(room, pa.table({"a": [[1]]})))
    (room.raw / "a.parquet").write_bytes(b"PAR1nonsensePAR1")
    assert "no sound Parquet" in refused(room)


def test_texts_of_a_dictionary_do_not_fill_the_memory(room: Room) -> None:
    import pyarrow as pa

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), ["y" * 100_000])
    out = _parquet(room, pa.table({"s": texts})).run(INGEST)
    assert room.metrics["rows"] == 3000
    column = profile_of(out)["columns"]["s"]
    assert (column["distinct"], column["top"][0][1]) == (1, 3000)
    assert len(column["top"][0][0]) <= 200


def test_many_columns_share_the_room_of_a_profile(room: Room) -> None:
    header = ",".join(f"c{n}" for n in range(640))
    rows = "".join(",".join(str(n * k) for n in range(640)) + "\n" for k in range(300))
    room.file("a.csv", f"{header}\n{rows}")
    column = profile_of(room.run(INGEST, distinct_exact=1000))["columns"]["c9"]
    assert column["distinct"] == pytest.approx(300, rel=0.2)
    assert column["distinct_is"] == "estimate, standard error 5.0%"


def _parquet(room: Room, table: Any) -> Room:
    import pyarrow.parquet as pq

    pq.write_table(table, room.raw / "a.parquet")
    return room


HOSTILE = [
    ("x,y\n1,a\nzwei,b\n", {"columns": {"x": "int64"}}, "row 2, column 'x': 'zwei' is not an int"),
    ("x\n1\n99999999999999999999\n", {"columns": {"x": "int64"}}, "row 2, column 'x'"),
    ("x\n1\n9223372036854775808\n", {"columns": {"x": "int64"}}, "row 2, column 'x'"),
    ("x\n1\n0x1F\n", {"columns": {"x": "int64"}}, "row 2, column 'x'"),
    ("x\n1\n1.0\n", {"columns": {"x": "int64"}}, "row 2, column 'x'"),
    ("x\n1.5\n1e999\n", {}, "row 2, column 'x'"),
    ("x\n1.5\nnan\n", {"columns": {"x": "float64"}}, "row 2, column 'x': nan is not finite"),
    ("x\n1.5\n-inf\n", {"columns": {"x": "float64"}}, "row 2, column 'x': -inf is not finite"),
    ("x\ntrue\nyes\n", {"columns": {"x": "bool"}}, "row 2, column 'x'"),
    ("x\n2031-02-29\n", {"columns": {"x": "date"}}, "row 1, column 'x': '2031-02-29' is not a d"),
    ("x\n2031-01-01T25:00\n", {"columns": {"x": "timestamp"}}, "row 1, column 'x'"),
    ("x,y\n1,2\n1,2,3\n", {}, "row 2: it has 3 fields, the header has 2"),
    ("x,y\n1,2\n1\n", {}, "row 2, column 'y': it has 1 fields"),
    (b"x,y\na,b\nc,\xff\xfe\n", {}, "row 2, column 'y': it is not UTF-8"),
    (b"x,y\na,b\nc,d\0e\n", {}, "row 2, column 'y': it has a NUL byte"),
    (b"\xff\xfex\0", {}, "UTF-16"),
    ("x,y,x\n1,2,3\n", {}, "columns 1 and 3 are both named 'x'"),
    ("x,,y\n1,2,3\n", {}, "column 2 has the name ''"),
    (b"x,\xff\n1,2\n", {}, "header, column 2"),
    ('x,y\n1,"abc\n2,b\n', {}, "row 1 (up to line 3) is no CSV record"),
    ('x,y\n1,"abc"d\n', {}, "row 1 (up to line 2) is no CSV record"),
    ("x\n" + "a" * 300 + "\n", {"longest": 200}, "row 1, column 'x': it has 300 bytes"),
    ("x\nok\n=cmd|' /C calc'!A0\n", {"formulas": "refuse"}, "row 2, column 'x': a spreadsheet"),
    ("", {}, "has no header"),
    ("x,y\n", {}, "no rows"),
    ("x\n1\n", {"columns": {"z": "int64"}}, "no column 'z'"),
]


@pytest.mark.parametrize(("content", "asked", "said"), HOSTILE)
def test_bad_csv_is_refused_by_row_and_column(
    room: Room, content: str | bytes, asked: dict[str, Any], said: str
) -> None:
    room.file("a.csv", content)
    message = refused(room, **asked)
    assert "a.csv" in message or said == "no rows"
    assert said in message
    assert message.isprintable()


JSON = [
    ('{"x": 1}\n[1]\n', "row 2: it is no JSON object"),
    ('{"x": 1}\n{"x": 1, "x": 2}\n', "row 2: a name stands in it twice"),
    ('{"x": 1}\n{"x":\n', "row 2: it is not JSON"),
    ('{"x": 1}\n{"x": true}\n', "row 2, column 'x': True is not an int64"),
    ('{"x": 1}\n{"x": 1.0}\n', "row 2, column 'x': 1.0 is not an int64"),
    ('{"x": 1}\n{"x": 99999999999999999999}\n', "row 2, column 'x'"),
    ('{"x": 1.5}\n{"x": NaN}\n', "row 2, column 'x': nan is not finite"),
    ('{"x": 1.5}\n{"x": 1' + "0" * 400 + "}\n", "row 2, column 'x'"),
    ('{"x": "a"}\n{"x": {"y": 1}}\n', "row 2, column 'x'"),
    ('{"x": "a"}\n{"x": "\\ud800"}\n', "row 2, column 'x': it is not UTF-8"),
    ('{"x": "a"}\n' + "[" * 100_000 + "\n", "row 2: it is"),
    (b'{"x": "a"}\n{"x": "\xff"}\n', "row 2: it is not UTF-8"),
]


@pytest.mark.parametrize(("content", "said"), JSON)
def test_bad_json_is_refused_by_row_and_column(room: Room, content: str | bytes, said: str) -> None:
    room.file("a.jsonl", content)
    kinds = {'{"x": 1}': "int64", '{"x": 1.5}': "float64"}
    kind = kinds.get(str(content).partition("\n")[0], "string")
    assert said in refused(room, columns={"x": kind})


def test_a_quote_that_never_closes_does_not_fill_the_memory(room: Room) -> None:
    room.file("a.csv", b'x,y\n1,2\n3,"' + b'","\n' * 8_000_000)
    assert "row 2 (up to line" in refused(room)
    room.file("a.csv", b"x" * (1 << 25))
    assert "line 1 is longer than" in refused(room)


def test_bad_rows_can_be_skipped_and_are_written_down(room: Room) -> None:
    lines = [f"{n},a" for n in range(100)]
    lines[10], lines[20], lines[30] = "x,a", "1,2,3", "5,\0"
    room.file("a.csv", "n,s\n" + "\n".join(lines) + "\n")
    out = room.run(INGEST, columns={"n": "int64"}, on_bad="skip", skip_at_most=0.03)
    assert room.metrics["rows"] == 97
    assert room.metrics["skipped"] == 3
    rejected = [json.loads(line) for line in (out / "rejected.jsonl").open()]
    assert [(r["row"], r["column"]) for r in rejected] == [(11, "n"), (21, None), (31, "s")]
    assert len(rows_of(out)) == 97
    assert "3 of 100 rows don't fit" in refused(
        room, columns={"n": "int64"}, on_bad="skip", skip_at_most=0.02
    )


def test_formulas_are_reported(room: Room) -> None:
    room.file("a.csv", "s\n=SUM(A1)\n-5\n+x\n@y\n- z\n")
    room.run(INGEST)
    assert room.metrics["formulas"] == 3
    assert any("row 1, column 's' looks like a formula" in line for line in room.said)


def test_nonfinite_numbers_may_be_allowed(room: Room) -> None:
    room.file("a.csv", "x\n1\nNaN\n-Infinity\n")
    out = room.run(INGEST, nonfinite="allow", columns={"x": "float64"})
    assert math.isnan(rows_of(out)[1]["x"])
    column = profile_of(out)["columns"]["x"]
    assert (column["nonfinite"], column["max"]) == (2, 1.0)


def test_a_bomb_is_refused(room: Room) -> None:
    room.file("a.csv.gz", gzip.compress(b"x\n" + (b"0" * 999 + b"\n") * 60_000))
    assert "looks like a bomb" in refused(room)
    (room.raw / "a.csv.gz").write_bytes(gzip.compress(b"x\n1\n2\n" * 1000)[:-20])
    assert "broken archive" in refused(room)


@pytest.mark.parametrize("inner", ["../a.csv", "/etc/a.csv", "x/../../a.csv", "C:/a.csv"])
def test_a_path_that_leaves_the_folder_is_refused(room: Room, inner: str) -> None:
    with zipfile.ZipFile(room.raw / "a.zip", "w") as archive:
        archive.writestr(inner, "x\n1\n")
    assert "leaves the folder" in refused(room)


def test_links_are_refused(room: Room) -> None:
    (room.raw / "a.csv").symlink_to("/etc/passwd")
    assert "link that leaves" in refused(room)
    (room.raw / "a.csv").unlink()
    info = zipfile.ZipInfo("a.csv")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(room.raw / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert "has a link in it" in refused(room)


def test_a_zip_bomb_and_a_broken_zip_are_refused(room: Room) -> None:
    with zipfile.ZipFile(room.raw / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", b"x\n" + b"0\n" * 30_000_000)
    assert "looks like a bomb" in refused(room)
    (room.raw / "a.zip").write_bytes(b"PK\3\4 no zip")
    assert "no sound zip" in refused(room)


def database(room: Room) -> None:
    with sqlite3.connect(room.raw / "a.db") as base:
        base.execute("create table t (n integer, s text, b blob)")
        rows = [(n, f"s{n}", b"x") for n in range(20_000)]
        base.executemany("insert into t values (?, ?, ?)", rows)
    base.close()


def test_a_query_reads_a_database(room: Room) -> None:
    database(room)
    query = "select n, s, n / 2.0 as half from t where n < 10000 order by n desc"
    rows = rows_of(room.run(INGEST, query=query))
    assert len(rows) == 10_000
    assert rows[0] == {"n": 9999, "s": "s9999", "half": 4999.5}
    assert "row 1, column 'b'" in refused(room, query="select b from t")
    assert "there is no query" in refused(room)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("delete from t", "more than read rows"),
        ("create table u (x)", "more than read rows"),
        ("attach '/tmp/x.db' as x", "more than read rows"),
        ("pragma journal_mode = wal", "more than read rows"),
        ("select random()", "more than read rows"),
        ("select load_extension('x')", "more than read rows"),
        ("select datetime('now')", "depends on the clock"),
        ("select current_timestamp", "depends on the clock"),
        ("select 1; delete from t", "fails"),
        ("select nope from t", "no such column"),
        ("select n, n from t", "both named 'n'"),
        ("with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) m from c",
         "took more than"),
    ],
)  # fmt: skip
def test_a_query_may_read_only_and_not_for_ever(room: Room, query: str, said: str) -> None:
    database(room)
    before = hashlib.sha256((room.raw / "a.db").read_bytes()).hexdigest()
    assert said in refused(room, query=query, query_seconds=0.3)
    assert [path.name for path in room.raw.iterdir()] == ["a.db"]
    assert hashlib.sha256((room.raw / "a.db").read_bytes()).hexdigest() == before


def test_a_file_of_this_machine_is_named_by_its_digest(room: Room) -> None:
    path = room.file("a.csv", "x\n1\n")
    digest = digest_of_file(path)
    out = room.run(INGEST, {}, path=str(path), digest=digest)
    assert rows_of(out) == [{"x": 1}]
    path.write_text("x\n2\n")
    with pytest.raises(UsageError, match="has the digest"):
        room.run(INGEST, {}, path=str(path), digest=digest)
    with pytest.raises(UsageError, match="reads a version or a file"):
        room.run(INGEST, {})


def test_the_profile_says_what_is_in_the_columns(room: Room) -> None:
    lines = "".join(f"{n},{'ab'[n % 2]},{n % 7 or ''}\n" for n in range(20_000))
    room.file("a.csv", "n,s,k\n" + lines)
    profile = profile_of(room.run(INGEST, distinct_exact=1000))
    n, s, k = (profile["columns"][name] for name in "nsk")
    assert profile["rows"] == 20_000
    assert (n["type"], n["min"], n["max"], n["mean"]) == ("int64", 0, 19_999, 9999.5)
    assert n["std"] == pytest.approx(math.sqrt(20_000 * 20_001 / 12))
    assert n["distinct_is"] == "estimate, standard error 1.6%"
    assert n["distinct"] == pytest.approx(20_000, rel=0.07)
    assert n["quantiles"]["0.5"] == pytest.approx(10_000, rel=0.05)
    assert n["quantiles_are"] == "of 8192 values"
    assert (s["distinct"], s["distinct_is"], s["top"]) == (2, "exact", [["a", 10000], ["b", 10000]])
    assert k["nulls"] == 2858
    assert sum(count for _, count in k["top"]) + k["nulls"] == 20_000


def test_the_same_recipe_gives_the_same_bytes(room: Room) -> None:
    rows = "".join(f"{n},{n * n % 1013},name {n % 997}\n" for n in range(50_000))
    room.file("a.csv", "a,b,c\n" + rows)
    first, second = room.run(INGEST), room.run(INGEST)
    for name in ("rows.parquet", "profile.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    one = make_recipe(INGEST, {"query": "select 1"}, (), seed=1, threads=1)
    other = make_recipe(INGEST, {"query": "select 2"}, (), seed=1, threads=1)
    assert one.digest != other.digest
    assert one.libraries.keys() == {"numpy", "pyarrow", "xxhash"}
    assert code_digest(INGEST) == code_digest(Ingest())


TEXTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)
ROWS = st.lists(st.tuples(INTEGERS, FLOATS, TEXTS, st.none() | TEXTS), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=ROWS)
def test_what_csv_holds_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: Any) -> None:
    room = Room(tmp_path_factory.mktemp("trip"))
    with (room.raw / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["i", "f", "s", "t"])
        writer.writerows(rows)
    kinds = {"i": "int64", "f": "float64", "s": "string", "t": "string"}
    found = rows_of(room.run(INGEST, columns=kinds))
    assert [tuple(row.values()) for row in found] == rows


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=300), kind=st.sampled_from(["csv", "jsonl", "parquet", "csv.gz"]))
def test_any_bytes_are_read_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str
) -> None:
    room = Room(tmp_path_factory.mktemp("any"))
    room.file(f"a.{kind}", content)
    with contextlib.suppress(UsageError):
        room.run(INGEST)


CELLS = st.text(st.sampled_from('ab,"\n\r é'), max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=30), size=st.integers(1, 40),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)  # fmt: skip
def test_blocks_of_any_size_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: Any, size: int, quoting: Any
) -> None:
    room = Room(tmp_path_factory.mktemp("blocks"))
    with (room.raw / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=quoting)
        writer.writerow(["one,\n1", "two"])
        writer.writerows(rows)
    kinds = {"one,\n1": "string", "two": "string"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "BLOCK", size)
        patch.setattr(tables, "_HELD_BLOCKS", 1000)
        found = rows_of(room.run(INGEST, columns=kinds, nulls=[]))
    assert [tuple(row.values()) for row in found] == rows


@settings(max_examples=100, deadline=None)
@given(content=st.text(st.sampled_from("a1,;\n\r é"), max_size=40))
def test_arrow_and_the_standard_library_cut_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    room = Room(tmp_path_factory.mktemp("both"))
    room.file("a.csv", "x,y\n" + content)
    asked: dict[str, Any] = {
        "columns": {"x": "string", "y": "string"}, "on_bad": "skip", "skip_at_most": 1,
    }  # fmt: skip

    def read() -> Any:
        try:
            return rows_of(room.run(INGEST, **asked)), room.metrics["skipped"]
        except UsageError as error:
            return error.message

    quick = read()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables._CsvReader, "_quickly", lambda *_: None)
        assert read() == quick


PEAK = """
import re, sys
from pathlib import Path
from lockgate.derive.api import Work
from lockgate.derive.steps.data.reading import files, tables
from lockgate.derive.steps.data.ingest import Ingest, IngestParameters
raw, out = Path(sys.argv[1]), Path(sys.argv[2])
Ingest().run(Work(inputs={"source": [raw]}, out=out, scratch=out, seed=1, log=lambda _: None,
                  parameters=IngestParameters(), report=lambda _: None))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def test_memory_does_not_grow_with_the_file(room: Room) -> None:
    peaks = []
    for count in (20_000, 500_000):
        rows = "".join(f"{n},{n * 0.37:.4f},name of {n}\n" for n in range(count))
        room.file("a.csv", "id,x,name\n" + rows)
        out = room.root / f"peak-{count}"
        out.mkdir()
        ran = subprocess.run(
            [sys.executable, "-c", PEAK, room.raw, out], capture_output=True, check=True, text=True
        )
        peaks.append(int(ran.stdout))
    assert peaks[1] < 400_000
    assert peaks[1] - peaks[0] < 150_000

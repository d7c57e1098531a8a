"""The gate `data`: expectations by row, drift that is proven and large, and no cry of wolf."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.gates.world import Room

from lockgate.core.errors import UsageError
from lockgate.core.verdict import CheckResult, Verdict
from lockgate.gates.data import Data, DataSettings
from lockgate.gates.measure import rows as reading
from lockgate.gates.measure.drift import (
    chi_squared,
    compare_numbers,
    compare_words,
    holm,
    kolmogorov_smirnov,
    psi,
    upper_gamma,
)

WHY = "tables need pyarrow (pip install 'lockgate[data]')"
pa = pytest.importorskip("pyarrow", reason=WHY)
pq = pytest.importorskip("pyarrow.parquet", reason=WHY)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def write(room: Room, columns: Mapping[str, Any], name: str = "rows.parquet") -> str:
    pq.write_table(pa.table(dict(columns)), room.folder / name)
    return name


def judge(room: Room, **asked: Any) -> Verdict:
    asked = {"data": "rows.parquet", **asked}
    return Data().judge(DataSettings.model_validate(asked), room.asked())


def only(verdict: Verdict, check: str) -> CheckResult:
    found = [item for item in verdict.checks if item.check.startswith(check)]
    assert len(found) == 1, [item.check for item in verdict.checks]
    return found[0]


PEOPLE = {
    "id": pa.array([1, 2, 3, 2, None], pa.int64()),
    "age": pa.array([10, 200, 30, -1, None], pa.int64()),
    "x": pa.array([0.5, float("nan"), 0.7, 0.1, None]),
    "kind": ["a", "b", "c", None, "a"],
    "code": ["A-1", "A-22", "b", None, "A-1\n"],
    "day": [dt.date(2031, 1, n) for n in range(1, 6)],
    "at": pa.array([dt.datetime(2031, 1, n, tzinfo=dt.UTC) for n in range(1, 6)],
                   pa.timestamp("us", "UTC")),
    "ok": [True, False, True, True, None],
}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "wants", "outcome", "said"),
    [
        ("age", {"type": "int64"}, "pass", "is int64"),
        ("age", {"type": "float64"}, "fail", "is int64, not float64"),
        ("age", {"nulls_at_most": 0.2}, "pass", "1 of 5"),
        ("age", {"nulls_at_most": 0.1}, "fail", "rows 5 (None)"),
        ("age", {"between": [0, 150]}, "fail", "2 of 5 rows"),
        ("age", {"between": [0, 150]}, "fail", "rows 2 (200), 4 (-1)"),
        ("age", {"between": [-1.5, 200.5]}, "pass", "all 5 rows"),
        ("age", {"between": [-1.5, 199.5]}, "fail", "rows 2 (200)"),
        ("age", {"between": ["a", "b"]}, "fail", "no place"),
        ("x", {"between": [0, 1]}, "fail", "rows 2 (nan)"),
        ("kind", {"between": [0, 1]}, "fail", "is string, which has no place"),
        ("day", {"between": ["2031-01-01", "2031-01-04"]}, "fail", "rows 5 (datetime.date("),
        ("at", {"between": ["2031-01-01", "2031-01-05T00:00:00"]}, "pass", "all 5 rows"),
        ("at", {"between": ["2031-01-02T00:00:00Z", "2032-01-01T00:00:00Z"]}, "fail", "rows 1 ("),
        ("kind", {"one_of": ["a", "b"]}, "fail", "rows 3 ('c')"),
        ("kind", {"one_of": ["a", "b", "c"]}, "pass", "all 5"),
        ("kind", {"one_of": [1]}, "fail", "can't be one of"),
        ("ok", {"one_of": [True]}, "fail", "rows 2 (False)"),
        ("age", {"one_of": [10, 200, 30, -1]}, "pass", "all 5"),
        ("age", {"one_of": [True]}, "fail", "can't be one of"),
        ("id", {"unique": True}, "fail", "in 1 rows: 4"),
        ("day", {"unique": True}, "pass", "is unique"),
        ("code", {"matches": "[A-Z]-[0-9]+"}, "fail", "rows 3 ('b'), 5 ('A-1\\n')"),
        ("code", {"matches": "(?s).*"}, "pass", "all 5"),
        ("age", {"matches": ".*"}, "fail", "only texts"),
        ("gone", {"unique": True}, "fail", "there is no column 'gone'"),
    ],
)
def test_an_expectation(
    room: Room, column: str, wants: dict[str, Any], outcome: str, said: str
) -> None:
    write(room, PEOPLE)
    verdict = judge(room, columns={column: wants})
    check = only(verdict, column)
    assert check.outcome == outcome == verdict.outcome
    assert said in check.reason


def test_each_expectation_is_a_check_and_the_first_rows_are_named(room: Room) -> None:
    write(room, {"n": list(range(100_000)), "s": ["x"] * 100_000})
    wants = {"n": {"type": "int64", "between": [0, 70_000], "unique": True}, "s": {"one_of": ["y"]}}
    verdict = judge(room, columns=wants, rows_at_least=100_000, only=True)
    assert [check.outcome for check in verdict.checks] == [
        "pass",
        "pass",
        "pass",
        "fail",
        "pass",
        "fail",
    ]
    assert "rows 70002 (70001), 70003 (70002)" in only(verdict, "n is from").reason
    assert only(verdict, "s is one").value == 1.0
    assert judge(room, rows_at_least=100_001).outcome == "fail"
    assert "s" in only(judge(room, columns={"n": {"unique": True}}, only=True), "no other").reason
    assert Data.remedy == "change"


def test_unique_is_exact_in_parts_and_when_hashes_agree(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xxhash

    path = room.folder / write(room, {"s": [f"v{n % 990}" for n in range(1000)]})
    monkeypatch.setattr(reading, "_HELD", 100)
    assert reading.duplicates(path, "s") == (10, (991, 992, 993, 994, 995))
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", len)
    assert reading.duplicates(path, "s")[0] == 10


def test_settings_are_checked(room: Room) -> None:
    write(room, PEOPLE)
    for wrong in ({"nothing": 1}, {}, {"one_of": []}, {"nulls_at_most": 2}):
        with pytest.raises(ValidationError):
            DataSettings.model_validate({"data": "x", "columns": {"age": wrong}})
    with pytest.raises(UsageError, match="pattern '\\[' of column 'code'"):
        judge(room, columns={"code": {"matches": "["}})
    with pytest.raises(UsageError, match="no sound Parquet"):
        judge(room, data=room.text("a.csv", "x\n1\n"))


def test_a_dataset_is_named_without_its_file(room: Room) -> None:
    (room.folder / "acme").mkdir()
    (room.folder / "acme/rows:v1").mkdir()
    write(room, PEOPLE, "acme/rows:v1/rows.parquet")
    assert judge(room, data="acme/rows:v1").outcome == "pass"
    settings = DataSettings.model_validate(
        {"data": "acme/rows:v1", "drift": {"against": "acme/rows:v1"}}
    )
    assert [p.name for p in Data().reads(settings, room.asked())] == ["rows.parquet"] * 2


def columns_of(rng: np.random.Generator, rows: int, count: int) -> dict[str, Any]:
    """Columns of several laws, with ties and nulls among them."""
    made: dict[str, Any] = {}
    for number in range(count):
        law = number % 5
        values = [rng.normal(size=rows), rng.exponential(size=rows), rng.poisson(3, rows),
                  rng.integers(0, 2, rows), rng.lognormal(size=rows)][law]  # fmt: skip
        mask = rng.random(rows) < 0.1 if number % 3 == 0 else np.zeros(rows, bool)
        made[f"c{number}"] = pa.array(values, mask=mask)
    made["word"] = [f"w{n}" for n in rng.zipf(1.5, rows) % 1000]
    return made


def test_drift_is_found(room: Room) -> None:
    rng = np.random.default_rng(1)
    write(room, columns_of(rng, 4000, 10), "before.parquet")
    now = columns_of(rng, 4000, 10)
    now["c0"] = pa.array(rng.normal(0.8, 1, 4000))
    now["word"] = [f"w{n}" for n in rng.zipf(3.0, 4000) % 1000]
    now["c3"] = pa.array([str(n) for n in range(4000)])
    write(room, now)
    verdict = judge(room, drift={"against": "before.parquet"})
    failed = {check.check for check in verdict.checks if check.outcome == "fail"}
    assert failed == {"drift of c0", "drift of word", "drift of c3"}
    assert "it has drifted" in only(verdict, "drift of c0").reason
    assert "is string, and int64 before" in only(verdict, "drift of c3").reason
    gone = judge(room, drift={"against": "before.parquet", "columns": ["c1", "c99"]})
    assert "not there" in only(gone, "drift of c99").reason


def test_a_small_drift_is_proven_and_passes_and_few_rows_hold(room: Room) -> None:
    rng = np.random.default_rng(2)
    write(room, {"x": rng.normal(size=20_000)}, "before.parquet")
    write(room, {"x": rng.normal(0.1, 1, 20_000)})
    check = only(judge(room, drift={"against": "before.parquet"}), "drift")
    assert check.outcome == "pass"
    assert "less than matters" in check.reason
    write(room, {"x": rng.normal(0.3, 1, 40)})
    check = only(judge(room, drift={"against": "before.parquet"}), "drift")
    assert check.outcome == "hold"
    write(room, {"x": rng.normal(3, 1, 10)})
    assert judge(room, drift={"against": "before.parquet"}).outcome == "hold"
    write(room, {"y": [1]})
    assert judge(room, drift={"against": "before.parquet"}).outcome == "hold"


def test_fifty_columns_do_not_cry_wolf() -> None:
    """Any of 50 tests at 0.05 fires in most windows without drift; corrected ones in few."""
    rng = np.random.default_rng(3)
    windows, rows = 100, 300
    naive = corrected = 0
    for _ in range(windows):
        before, now = rng.normal(size=(50, rows)), rng.normal(size=(50, rows))
        ps = [kolmogorov_smirnov(a, b)[1] for a, b in zip(now, before, strict=True)]
        naive += min(ps) <= 0.05
        corrected += min(holm(ps)) <= 0.05
    assert naive >= 80  # 1 - 0.95^50 = 92 %
    assert corrected <= 11  # 5 expected; above 11 with chance 0.4 %


def test_the_gate_passes_windows_without_drift(room: Room) -> None:
    rng = np.random.default_rng(4)
    write(room, columns_of(rng, 3000, 50), "before.parquet")
    outcomes = []
    for _ in range(6):
        write(room, columns_of(rng, 3000, 50))
        outcomes.append(judge(room, drift={"against": "before.parquet"}).outcome)
    assert outcomes == ["pass"] * 6


def test_the_same_seed_draws_the_same_rows(room: Room) -> None:
    path = room.folder / write(room, {"x": np.arange(200_000), "y": np.arange(200_000) * 2})
    drawn = reading.sample(path, ["x", "y"], 1000, 5)
    assert drawn.num_rows == 1000
    assert drawn.equals(reading.sample(path, ["x", "y"], 1000, 5))
    x = drawn.column("x").to_numpy()
    assert (drawn.column("y").to_numpy() == 2 * x).all()
    assert kolmogorov_smirnov(x, np.arange(200_000.0))[1] > 0.001
    assert len(set(x)) == 1000


def test_statistics_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="a second opinion (pip install scipy)")
    special = pytest.importorskip("scipy.special", reason="a second opinion (pip install scipy)")
    rng = np.random.default_rng(5)
    for n, m, shift in ((50, 80, 0.0), (500, 300, 0.1), (2000, 2000, 0.2)):
        a, b = rng.normal(size=n), rng.normal(shift, 1, m)
        distance, p = kolmogorov_smirnov(a, b)
        there = stats.ks_2samp(a, b)
        assert distance == pytest.approx(there.statistic)
        assert p == pytest.approx(there.pvalue, rel=0.2, abs=0.002)
    for a, x in ((0.5, 0.1), (0.5, 3), (4.5, 2), (25, 30), (100, 70), (3, 500)):
        assert upper_gamma(a, x) == pytest.approx(special.gammaincc(a, x), rel=1e-10, abs=1e-300)
    pair = np.array([[30.0, 20, 50], [25, 40, 35]])
    there = stats.chi2_contingency(pair)
    assert chi_squared(pair[0], pair[1]) == pytest.approx((there.statistic, there.pvalue))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_holm_is_between_nothing_and_bonferroni(ps: list[float]) -> None:
    found = holm(ps)
    for p, adjusted in zip(ps, found, strict=True):
        assert p <= adjusted <= 1
        assert adjusted <= max(min(1.0, len(ps) * q) for q in ps)
    assert min(found) == pytest.approx(min(1.0, len(ps) * min(ps)))


def test_edges() -> None:
    none = np.array([np.nan] * 50)
    assert compare_numbers("x", none, none).p == 1.0
    assert compare_numbers("x", np.ones(50), none).p < 1e-9
    assert compare_words("x", ["a"] * 50, ["a"] * 50).psi == 0
    assert compare_words("x", [], []).p == 1.0
    assert compare_words("x", ["a", None] * 50, ["a", "b"] * 50).p < 1e-9
    assert psi(np.array([5.0, 5]), np.array([5.0, 5])) == 0

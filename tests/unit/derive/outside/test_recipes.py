"""What is outside may change: what is known by its recipe, and where no secret may be."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.derive.home import Home
from tests.unit.derive.outside.taking import Taking

from lockgate.core.errors import IntegrityError, StepFailedError, UsageError
from lockgate.derive.again import reproduce
from lockgate.derive.api import Outside
from lockgate.derive.connections import hidden, read_connection, secrets_of, shown, variable
from lockgate.derive.pipeline import Pipeline, parse_pipeline
from lockgate.derive.run import Made, derive, make_task
from lockgate.host.jobs.api import Limits
from lockgate.store.durable import write_durably

pytest.importorskip("obstore", reason="obstore is not installed")
COPY, SECRET = "acme/copy", "pa55word"
WINDOW = {"kind": "nats", "connection": "there", "stream": "s", "since": 1, "until": 5}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.csv").write_text("x\n1\n")
    monkeypatch.setenv("LOCKGATE_CONNECTION_THERE", f"file://{tmp_path}/there?key={SECRET}")
    monkeypatch.setenv("LOCKGATE_CONNECTION_OTHER", "postgresql://u:hush@elsewhere/db")
    made = Home(tmp_path / "home")
    yield made
    made.close()


def snapshot(home: Home, digest: str | None = None, **of: Any) -> Made:
    of = {"kind": "objects", "connection": "there"} | of
    asked: dict[str, Any] = {"of": of} | ({"digest": digest} if digest else {})
    return derive(make_task("snapshot", {}, asked, to=COPY), home.site, home.place)


def digest_of(home: Home, version: int) -> str:
    said: Any = home.read(COPY, f"v{version}", "snapshot.json")
    found: str = said["digest"]
    return found


def test_it_is_looked_at_again_unless_the_digest_is_said(home: Home, tmp_path: Path) -> None:
    assert (snapshot(home).version.number, snapshot(home).version.number) == (1, 1)
    (tmp_path / "there" / "a.csv").write_text("x\n2\n")
    made = snapshot(home)
    assert (made.reused, made.version.number) == (False, 2)
    pinned = snapshot(home, digest_of(home, 2))
    assert (pinned.reused, pinned.version.number) == (False, 2)  # another recipe, the same content
    (tmp_path / "there" / "a.csv").write_text("x\n3\n")
    again = snapshot(home, digest_of(home, 2))
    assert (again.reused, again.version.number) == (True, 2)
    with pytest.raises(IntegrityError, match="has the digest"):
        snapshot(home, digest_of(home, 1))
    with pytest.raises(IntegrityError, match="which is not"):
        reproduce(COPY, "v1", home.site, home.place, Limits())
    with pytest.raises(IntegrityError, match="has the digest"):
        reproduce(COPY, "v2", home.site, home.place, Limits())
    (tmp_path / "there" / "a.csv").write_text("x\n2\n")
    assert reproduce(COPY, "v2", home.site, home.place, Limits()).version.number == 2


def test_what_a_killed_run_left_is_not_taken_for_today_s(home: Home, tmp_path: Path) -> None:
    task = make_task("snapshot", {}, {"of": {"kind": "objects", "connection": "there"}}, to=COPY)
    folder = home.place.folder / task.recipe.digest.removeprefix("blake3:")[:32]
    (folder / "out").mkdir(parents=True)
    (folder / "out" / "a.csv").write_text("of last month")
    write_durably(folder / "result.json", json.dumps({"metrics": {}}).encode(), folder)
    made = derive(task, home.site, home.place)
    assert made.metrics["objects"] == 1
    assert digest_of(home, made.version.number)


def test_a_pipeline_takes_it_again_and_keeps_what_is_the_same(home: Home, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    spec = parse_pipeline(json.dumps({"pipeline": "daily", "stages": {
        "copy": {"step": "snapshot", "to": COPY,
                 "with": {"of": {"kind": "objects", "connection": "there"}}},
        "rows": {"step": "ingest", "from": {"source": "copy"}, "to": "acme/rows"},
    }}))  # fmt: skip

    def run() -> dict[str, tuple[int, bool]]:
        pipeline = Pipeline(spec, home.site)
        assert [stage.do for stage in pipeline.plan()] == ["run", "wait"]
        made = pipeline.run(home.place, lambda _: None)
        return {name: (m.version.number, m.reused) for name, m in made.items()}

    assert run() == {"copy": (1, False), "rows": (1, False)}
    assert run() == {"copy": (1, False), "rows": (1, True)}
    (tmp_path / "there" / "a.csv").write_text("x\n2\n")
    assert run() == {"copy": (2, False), "rows": (2, False)}


def test_a_window_is_pinned_when_it_is_whole() -> None:
    def outside(**of: Any) -> Outside:
        return make_task("snapshot", {}, {"of": WINDOW | of}, to=COPY).outside

    assert outside() == Outside(connections=("there",), pinned=True)
    assert not outside(gaps="allow").pinned
    rows = {"kind": "postgres", "connection": "other", "query": "SELECT 1"}
    assert not make_task("snapshot", {}, {"of": rows}, to=COPY).outside.pinned
    digest = "blake3:" + "0" * 64
    assert make_task("snapshot", {}, {"of": rows, "digest": digest}, to=COPY).outside.pinned


def test_a_step_gets_the_connections_that_it_names(home: Home, tmp_path: Path) -> None:
    task = make_task("snapshot", {}, {"of": {"kind": "objects", "connection": "there"}}, to=COPY)
    seen: list[dict[str, str]] = []
    real = home.place.jobs.run

    class Jobs:
        def run(self, job: Any, *more: Any) -> Any:
            seen.append(dict(job.env))
            return real(job, *more)

    object.__setattr__(home.place, "jobs", Jobs())
    derive(task, home.site, home.place)
    assert [name for name in seen[0] if name.startswith("LOCKGATE_")] == [variable("there")]


def test_a_connection_that_is_not_set_or_no_url(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="'nowhere' is not set") as caught:
        snapshot(home, connection="nowhere")
    assert "LOCKGATE_CONNECTION_NOWHERE" in str(caught.value.hint)
    for address in ("/tmp/x", "s3:/x", f"postgresql://u:{SECRET}@x@host/db", f"s3://b#{SECRET}",
                    f"nats://{SECRET} @h", f"postgresql://h/db?password={SECRET}@x"):  # fmt: skip
        monkeypatch.setenv(variable("there"), address)
        with pytest.raises(UsageError, match="is no proper URL") as caught:
            read_connection("there")
        assert SECRET not in f"{caught.value.message} {caught.value.hint}"
    with pytest.raises(UsageError):
        make_task("snapshot", {}, {"of": {"kind": "objects", "connection": "A B"}}, to=COPY)


def test_no_secret_is_kept(home: Home, tmp_path: Path) -> None:
    snapshot(home)
    of = {"kind": "objects", "connection": "there", "files": ["none"]}
    with pytest.raises(UsageError):
        derive(make_task("snapshot", {}, {"of": of}, to=COPY), home.site, home.place)
    version = home.registry.version(COPY, "v1").derived[0]
    for path in (tmp_path / "home").rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert version.recipe["parameters"] == {"of": {"kind": "objects", "connection": "there"}}


LEAK = """
import os, sys
from lockgate.derive.api import Outside
from pydantic import BaseModel
class Nothing(BaseModel):
    pass
class Leak:
    name, summary, inputs, libraries, deterministic = "leak", "", (), (), True
    parameters = Nothing
    def outside(self, parameters): return Outside(connections=("there",), pinned=False)
    def run(self, work):
        secret = os.environ["LOCKGATE_CONNECTION_THERE"]
        print(secret, file=sys.stderr, flush=True)
        work.log(secret)
        (work.out / "a").write_text("a")
        if work.seed == 1: raise ValueError(secret)
        if work.seed == 2: os._exit(3)
        return {}
"""


def test_what_a_step_of_one_s_own_says_is_searched_for_secrets(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaking.py").write_text(LEAK)
    about = tmp_path / "leaking-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: leaking\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[lockgate.steps]\nleak = leaking:Leak\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = derive(make_task("leak", {}, {}, to=COPY), home.site, home.place)
    told = home.registry.version(COPY, f"v{made.version.number}").derived[0].log
    assert "…" in told
    assert SECRET not in told
    for seed in (1, 2):
        with pytest.raises(StepFailedError) as caught:
            derive(make_task("leak", {}, {}, to=COPY, seed=seed), home.site, home.place)
        assert SECRET not in f"{caught.value.message} {caught.value.hint}"
        assert "…" in caught.value.message
    assert any("…" in heard.line for heard in home.heard)
    assert not any(SECRET in heard.line for heard in home.heard)


@pytest.mark.parametrize(("address", "known", "told"), [
    ("postgresql://ann:s%2Fcr%40t@db:5432/shop?sslmode=require", ["s%2Fcr%40t", "s/cr@t"],
     "postgresql://db:5432/shop"),
    ("nats://t0ken@h:4222", ["t0ken"], "nats://h:4222"),
    ("s3://b/p?region=eu&access_key_id=AKIA&secret_access_key=a%2Bb", ["AKIA", "a%2Bb", "a+b"],
     "s3://b/p"),
    ("postgresql://require@h/shop", [], "postgresql://h/shop"),
    ("postgresql://h/db?user=ann&password=hush", ["hush"], "postgresql://h/db"),
])  # fmt: skip
def test_secrets_of_an_address(address: str, known: list[str], told: str) -> None:
    assert shown(address) == told
    text = hidden(
        f"at {address}: " + ", ".join(f"<{secret}>" for secret in known), secrets_of(address)
    )
    assert not any(secret in text for secret in known)
    assert hidden("require eu 5432 shop", secrets_of(address)) == "require eu 5432 shop"


@pytest.mark.parametrize(("package", "address", "of"), [
    ("psycopg", "postgresql://h/db", {"kind": "postgres", "query": "SELECT 1"}),
    ("nats", "nats://h", {"kind": "nats", "stream": "s", "since": 1, "until": 2}),
    ("obstore", "s3://b", {"kind": "objects"}),
])  # fmt: skip
def test_a_driver_that_is_not_installed_is_named(
    package: str, address: str, of: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=f"the package {package}") as caught:
        Taking(tmp_path, address, monkeypatch).take(**of)
    assert "lockgate[sources]" in str(caught.value.hint)

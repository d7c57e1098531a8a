"""The loop before the lock, through the CLI: derive, admit, release what was admitted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from .calls import MODELS, Callers, chat_callers
from .conftest import CHAT, Site

pytestmark = pytest.mark.e2e

SUITE = """\
suite: core
tasks:
  sums: {kind: chat, data: "acme/questions:v1/chat-questions.jsonl", max_tokens: 40}
"""
GATES = """\
gates:
  - budget: {size: 5MB}
  - evaluation:
      suite: suite.yaml
      metrics:
        sums.score: {at_least: 0.7, worse_by_at_most: 3%}
  - approval: {}
"""
PIPELINE = """\
pipeline: mix
stages:
  mixed:
    step: merge
    from: {base: "acme/chat:v1", others: "acme/chat:v2"}
    with: {method: linear, weights: [0.0, 1.0]}
    to: acme/mixed
    alias: champion
  resharded:
    step: shard
    from: {base: mixed}
    with: {shard_bytes: 200000}
    to: acme/mixed
  small: {admit: resharded, gates: [{budget: {size: 2MB}}], target: local}
"""


def publish(site: Site, *names: str) -> None:
    for name in names:
        site.run("publish", str(MODELS / name), CHAT)
    folder = site.folder / "questions"
    folder.mkdir()
    lines = (MODELS / "chat-questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "chat-questions.jsonl").write_text("".join(lines[:120]))
    site.run("publish", str(folder), "acme/questions")
    (site.folder / "suite.yaml").write_text(SUITE)
    (site.folder / "gates.yaml").write_text(GATES)


def test_what_gates_let_pass_is_released_and_what_they_refuse_is_not(site: Site) -> None:
    publish(site, "chat-v1", "chat-v2")
    site.run("release", CHAT, "v1")

    held = site.json("admit", CHAT, "v2", code=12)
    assert held["baseline"] == "acme/chat:v1"
    outcomes = {gate["gate"]: gate["verdict"]["outcome"] for gate in held["gates"]}
    assert outcomes == {"budget": "pass", "evaluation": "pass", "approval": "hold"}

    spec = site.folder / "release.yaml"
    spec.write_text(json.dumps({
        "model": CHAT, "version": "v2", "gates": ["budget", "evaluation", "approval"],
        "bucket": "1s", "strategy": {"canary": [50, 100], "bake": "1s", "min_requests": 10},
        "checks": [{"signal": "error_rate", "worse_by_at_most": "100%", "floor": "5%"}],
    }))  # fmt: skip
    site.run("release", "release.yaml", "--watch", code=10)
    assert "refused: approval: 0 of 1 approvals" in site.run("audit")

    card = site.folder / "card.md"
    known = site.json("admit", CHAT, "v2", "--approve", "read it", "--card", str(card))
    assert [gate["known"] for gate in known["gates"]] == [True, True, False]
    assert re.search(r"\| evaluation \| sums.score at least 0.7 \| pass \| 0\.9", card.read_text())
    with Callers(site.address, chat_callers(4), pause_s=0.01) as callers:
        callers.wait_for(20)
        site.run("release", "release.yaml", "--watch")
    assert callers.failed == []

    site.run("release", CHAT, "v2")  # serves already: v1 is worse now
    worse = site.json("admit", CHAT, "v1", code=15)
    assert worse["outcome"] == "retrain"
    assert "sums.score" in worse["gates"][1]["verdict"]["reason"]
    assert list((site.home / "derive").glob("serve-*")) == []


def test_a_pipeline_through_the_command_line(site: Site) -> None:
    publish(site, "chat-v1", "chat-v2")
    (site.folder / "mix.yaml").write_text(PIPELINE)
    plan = site.json("derive", "mix.yaml", "--plan-only")
    assert [row["do"] for row in plan] == ["run", "wait", "wait"]
    made = site.json("derive", "mix.yaml")
    assert [stage["version"] for stage in made.values()] == ["v1", "v2"]
    assert "acme/chat v1" in site.run("lineage", "acme/mixed", "v1")
    assert site.json("show", "acme/mixed", "champion")["number"] == 1
    assert [row["do"] for row in site.json("derive", "mix.yaml", "--plan-only")] == [
        "reuse", "reuse", "judge"
    ]  # fmt: skip
    assert all(stage["reused"] for stage in site.json("derive", "mix.yaml").values())
    assert site.json("rerun", "acme/mixed", "v2")["same"] is True

    one = site.json("derive", "merge", "--from", "base=acme/chat:v1", "--from",
                    "others=acme/chat:v2", "--with", "method=linear", "--with",
                    "weights=[0.0, 1.0]", "--to", "acme/mixed")  # fmt: skip
    assert (one["reused"], one["version"]) == (True, "v1")
    site.run("derive", "merge", "--with", "metod=ties", "--to", "acme/x", code=2)
    site.run("derive", "tuna", "--to", "acme/x", code=3)
    said = site.run("steps", "merge")
    assert "merged-from" in said
    assert "density" in said
    assert "made by merge from acme/chat" in site.run("audit")
    site.run("audit", "--verify")


def test_a_script_of_ones_own_is_a_step(site: Site) -> None:
    script = site.folder / "count.py"
    script.write_text(
        "import json, os, pathlib\n"
        "rows = sum(1 for _ in open(os.environ['LOCKGATE_INPUT_DATA'] + '/chat-questions.jsonl'))\n"
        "print(json.dumps({'done': 1, 'total': 1, 'metrics': {'rows': rows}}))\n"
        "(pathlib.Path(os.environ['LOCKGATE_OUT']) / 'count.json').write_text(str(rows))\n"
    )
    publish(site)
    made = site.json("derive", "command", "--from", "data=acme/questions:v1", "--with",
                     "script=count.py", "--to", "acme/counts")  # fmt: skip
    assert made["metrics"] == {"rows": 120}
    site.run("restore", "acme/counts", "v1", str(site.folder / "out"))
    assert Path(site.folder / "out" / "count.json").read_text() == "120"
    script.write_text("raise SystemExit('no')")
    site.run("derive", "command", "--with", "script=count.py", "--to", "acme/counts", code=14)
    script.write_text("import time\nwhile True: time.sleep(1)")
    site.run("derive", "command", "--with", "script=count.py", "--to", "acme/counts",
             "--silent", "1s", code=14)  # fmt: skip
    assert len(site.json("models", "acme/counts")["versions"]) == 1


def test_a_dataset_is_ingested_split_and_judged(site: Site) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    raw = site.folder / "raw"
    raw.mkdir()
    rows = [f"{n},{20 + n % 50},{'yes' if n % 3 else 'no'}" for n in range(600)]
    (raw / "people.csv").write_text("\n".join(["id,age,member", *rows]) + "\n")
    site.run("publish", str(raw), "acme/raw")
    site.run("derive", "ingest", "--from", "source=acme/raw:v1", "--with",
             "columns={id: int64, age: int64, member: string}", "--to", "acme/people")  # fmt: skip
    made = site.json("derive", "split", "--from", "data=acme/people:v1", "--with", "by=[id]",
                     "--to", "acme/people")  # fmt: skip
    assert made["version"] == "v2"
    expected = {"data": "acme/people:v1", "rows_at_least": 500,
                "columns": {"age": {"type": "int64", "between": [20, 69]},
                            "id": {"unique": True}}}  # fmt: skip
    (site.folder / "data.yaml").write_text(json.dumps({"gates": [{"data": expected}]}))
    assert site.json("admit", "acme/people", "v1", "--gates", "data.yaml")["outcome"] == "pass"
    expected["columns"] = {"age": {"type": "int64", "between": [30, 69]}}
    (site.folder / "data.yaml").write_text(json.dumps({"gates": [{"data": expected}]}))
    refused = site.json("admit", "acme/people", "v1", "--gates", "data.yaml", code=10)
    assert "age" in refused["gates"][0]["verdict"]["reason"]

    (raw / "people.csv").write_text("id,age,member\n1,old,yes\n")
    site.run("publish", str(raw), "acme/raw")
    done = site.run("derive", "ingest", "--from", "source=acme/raw:v2", "--with",
                    "columns={id: int64, age: int64, member: string}", "--to", "acme/people",
                    code=2)  # fmt: skip
    assert done == ""
    assert "age" in site.said
    assert "row 1" in site.said

"""Tokens timed on the real runtime, started by the gate, and where it is served already."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lockgate.client.caller import Caller
from lockgate.fleet.replica import free_port

from .calls import MODELS
from .conftest import CHAT, Site, wait

pytestmark = pytest.mark.e2e

GATES = """\
gates:
  - performance:
      requests: load.jsonl
      rate: 8
      last: 3s
      stream: true
      seconds:
        ttft_p95: {at_most: 2}
        tpot_p50: {at_most: 0.5, worse_by_at_most: 500%}
      tokens_per_second: {at_least: 5}
"""


@contextmanager
def serving(name: str, model: str) -> Iterator[str]:
    """Serves a folder by the light runtime, as another machine would; gives its address."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "lockgate.fleet.runtimes.serve", "--kind=genai", f"--port={port}",
         f"--folder={MODELS / name}", f"--model={model}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    caller = Caller(f"http://127.0.0.1:{port}")
    try:
        wait(lambda: caller.passes("GET", "/health", None), 40)
        yield caller.url
    finally:
        caller.close()
        process.terminate()
        process.wait(30)


def test_tokens_are_timed_here_and_elsewhere(site: Site) -> None:
    for name in ("chat-v1", "chat-v2"):
        site.run("publish", str(MODELS / name), CHAT)
    asked = [json.loads(line) for line in (MODELS / "chat-questions.jsonl").open()][:20]
    rows = [{"body": {"model": CHAT, "max_tokens": 24, "temperature": 0,
                      "messages": [{"role": "user", "content": row["question"]}]}}
            for row in asked]  # fmt: skip
    (site.folder / "load.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (site.folder / "gates.yaml").write_text(GATES)

    baseline = ("--baseline", f"{CHAT}:v1")
    here = site.json("admit", CHAT, "v2", *baseline)
    (gate,) = here["gates"]
    checks = {check["check"]: check for check in gate["verdict"]["checks"]}
    timed = next(check for name, check in checks.items() if name.startswith("ttft_p95"))
    assert (timed["n"], timed["outcome"]) == (24, "pass")
    assert 0 < timed["value"] < 2
    token = next(check for name, check in checks.items() if name.startswith("tpot_p50"))
    assert 0 < token["value"] < timed["value"]  # a prompt takes longer than a token

    memory = GATES + "      memory: 8GB\n"
    with serving("chat-v2", CHAT) as url, serving("chat-v1", "other/chat") as wrong:
        there = site.json("admit", CHAT, "v2", *baseline, "--at", url)
        (gate,) = there["gates"]
        assert gate["known"] is False  # an address makes it another question
        assert gate["verdict"]["reason"].endswith(f"(asked at {url})")
        assert site.json("admit", CHAT, "v2", *baseline, "--at", url)["gates"][0]["known"] is True
        site.run("admit", CHAT, "v2", "--at", wrong, code=2)
        site.run("admit", CHAT, "v2", "--baseline-at", url, code=2)
        (site.folder / "gates.yaml").write_text(memory)
        held = site.json("admit", CHAT, "v2", "--at", url, code=12)
        reasons = [check["reason"] for check in held["gates"][0]["verdict"]["checks"]]
        assert "memory was not measured: its processes are not ours to see" in reasons
    assert f"asked at {url}" in site.run("audit")
    assert list((site.home / "derive").glob("serve-*")) == []

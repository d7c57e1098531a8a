"""A hostile machine: a frozen replica, a full disk, files that vanish or are damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.core.digests import hex_of

from .calls import MODELS, Callers, credit_callers
from .conftest import CREDIT, Site, end, wait
from .test_kills import kinds

pytestmark = pytest.mark.e2e

SLOW = {"canary": [10, 100], "bake": "60s", "min_requests": 50, "give_up_after": "5m"}


def shifted(site: Site, **settings: object) -> str:
    """Publishes v2 and opens its release; returns its id once it has traffic."""
    site.run("publish", str(MODELS / "credit-v2"), CREDIT)
    name = site.open(CREDIT, 2, **settings)
    wait(lambda: "TrafficShifted" in kinds(site, name), 30)
    return name


def candidate_pid(site: Site, release: str) -> int:
    with site.client() as client:
        short = hex_of(client.explain(release)["candidate"]["digest"])[:16]
    return int(next(site.home.glob(f"fleet/*{short}.0/lock")).read_text())


def test_a_frozen_candidate_is_judged_by_its_errors_and_ended(site: Site) -> None:
    """It holds its port and its lock, and answers nobody."""
    site.serve_first(CREDIT, "credit")
    with Callers(site.address, credit_callers(3), pause_s=0.02) as callers:
        callers.wait_for(50)
        name = shifted(site, strategy=SLOW)
        pid = candidate_pid(site, name)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert site.ended(name, 120)["phase"] == "reverted"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        before = len(callers.calls)
        callers.wait_for(before + 50)
        assert [call for call in callers.calls[before:] if call.status != 200] == []
    assert [row["state"] for row in site.json("fleet")] == ["ready"]


def test_restored_folders_that_vanish_are_restored_again(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    shutil.rmtree(site.home / "versions")
    with Callers(site.address, credit_callers(1), pause_s=0.02) as callers:
        callers.wait_for(20)  # what runs has its files open
    assert callers.failed == []
    (pid,) = site.pids("replica")
    os.kill(pid, signal.SIGKILL)
    wait(lambda: [r["state"] for r in site.json("fleet")] == ["ready"], 30)
    wait(lambda: site.pids("replica") not in ([], [pid]), 30)
    name = shifted(site, strategy={"blue-green": True, "bake": "0s", "min_requests": 0}, checks=[])
    assert site.ended(name)["phase"] == "promoted"


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"\xff"])
def test_a_damaged_replica_record_costs_a_restart_and_leaves_no_twin(
    site: Site, text: bytes
) -> None:
    site.serve_first(CREDIT, "credit")
    (pid,) = site.pids("replica")
    site.kill()
    next(site.home.glob("fleet/*/replica.json")).write_bytes(text)
    site.start()
    wait(lambda: site.pids("replica") not in ([], [pid]), 30)
    wait(lambda: [r["state"] for r in site.json("fleet")] == ["ready"], 30)
    with Callers(site.address, credit_callers(1), pause_s=0.02) as callers:
        callers.wait_for(20)
    assert len(site.pids("replica")) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB; only root can make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if os.getuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 4096, 1):
        with contextlib.suppress(OSError):
            while True:
                os.write(handle, b"x" * size)
    os.close(handle)


def test_a_full_disk_hurts_no_caller_and_no_record(small_disk: Path) -> None:
    site = Site(small_disk)
    try:
        site.start()
        site.serve_first(CREDIT, "credit")
        with Callers(site.address, credit_callers(2), pause_s=0.02) as callers:
            callers.wait_for(30)
            name = shifted(site, strategy=SLOW)
            fill(small_disk / "ballast")
            site.run("publish", str(MODELS / "chat-v1"), "acme/chat", code=2)
            assert "the disk is full" in site.said
            site.run("hold", name, "--reason", "wait", code=21)
            assert "disk" in site.said
            site.run("audit", "--verify")
            (small_disk / "ballast").unlink()
            site.run("audit", "--verify")
            site.run("rollback", CREDIT, "--reason", "enough", "--wait")
        assert callers.failed == []
        assert site.ended(name)["phase"] == "reverted"
    finally:
        (small_disk / "ballast").unlink(missing_ok=True)
        end(site)


def test_a_reader_that_goes_away_gets_no_traceback(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    for verb in ("audit --json | head -1", "audit | true", "status | true", "--help | true"):
        line = f"{sys.executable} -m lockgate.cli {verb}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=site.folder, capture_output=True, text=True, timeout=60
        )
        assert done.stderr == ""


def test_a_watch_goes_on_over_a_dead_server_until_its_time_is_up(site: Site) -> None:
    site.serve_first(CREDIT, "credit")
    with Callers(site.address, credit_callers(1), pause_s=0.02):
        name = shifted(site, strategy=SLOW)
        watch = subprocess.Popen(
            [sys.executable, "-m", "lockgate.cli", "watch", name, "--timeout", "6s", "--json"],
            cwd=site.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(1.5)
        site.kill()
        _, said = watch.communicate(timeout=30)
    assert watch.returncode == 13
    assert "Traceback" not in said

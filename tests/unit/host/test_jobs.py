"""A job that takes too much is stopped, with all that it forked, and lockgate's death ends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lockgate.core.errors import PermanentError
from lockgate.host.jobs.api import Ended, Job, Limits
from lockgate.host.jobs.local import LocalJobs

MARK = "lockgate-test-stray"
FOREVER = "import time\nwhile True: time.sleep(1)"


def run(folder: Path, source: str, **limits: float) -> Ended:
    job = Job(
        name="job", argv=(sys.executable, "-c", source, MARK + str(folder)), folder=folder,
        env=dict(os.environ), limits=replace(Limits(), **limits),
    )  # fmt: skip
    ended = LocalJobs().run(job, lambda line: None)
    assert strays(folder) == []
    return ended


def strays(folder: Path) -> list[str]:
    """Returns the processes of a test's job that are still there."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode("utf-8", "replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if MARK + str(folder) in line and state != "Z" and "jobs.warden" not in line:
                found.append(line)
    return found


def test_a_leak_is_stopped(tmp_path: Path) -> None:
    source = "import time\nkept = []\nwhile True: kept.append(bytearray(b'1' * 5_000_000))"
    ended = run(tmp_path, source, memory_bytes=300_000_000, seconds=60)
    assert ended.outcome == "memory"
    assert "300,000,000 bytes of memory" in ended.reason
    assert 300_000_000 < ended.peak_bytes < 3_000_000_000


def test_memory_that_forks_share_counts_once(tmp_path: Path) -> None:
    source = (
        "import os, time\nkept = bytearray(b'1' * 150_000_000)\n"
        "[os.fork() or (time.sleep(0.8), os._exit(0)) for _ in range(4)]\ntime.sleep(0.5)"
    )
    assert run(tmp_path, source, memory_bytes=500_000_000, seconds=60).outcome == "done"


def test_a_hang_is_stopped(tmp_path: Path) -> None:
    ended = run(tmp_path, FOREVER, silent_s=0.5, seconds=60)
    assert ended.outcome == "silent"
    assert "no sign of life" in ended.reason


def test_a_job_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    source = "import time\nwhile True: print('here', flush=True); time.sleep(0.05)"
    ended = run(tmp_path, source, seconds=0.5, silent_s=30)
    assert (ended.outcome, ended.code) == ("timeout", ended.code)
    assert ended.seconds < 20


@pytest.mark.parametrize("files", ["one file", "many files"])
def test_a_job_that_fills_the_disk_is_stopped(tmp_path: Path, files: str) -> None:
    one = "f = open('big', 'wb')\nwhile True: f.write(b'1' * 1_000_000); f.flush()"
    many = "i = 0\nwhile True:\n i += 1\n open(str(i), 'wb').write(b'1' * 900_000)"
    source = one if files == "one file" else many
    ended = run(tmp_path, source, disk_bytes=20_000_000, seconds=60)
    assert ended.outcome in ("disk", "failed")  # Python turns the signal into an OSError
    if ended.outcome == "failed":
        assert "File too large" in ended.log


def test_a_fork_bomb_is_stopped(tmp_path: Path) -> None:
    source = "import os, time\nfor _ in range(12): os.fork()\ntime.sleep(60)"
    ended = run(tmp_path, source, processes=40, seconds=60)
    assert ended.outcome == "processes"


def test_a_child_that_was_made_to_outlive_its_parent_does_not(tmp_path: Path) -> None:
    source = (
        "import subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {FOREVER!r}, sys.argv[1]], "
        "start_new_session=True)"
    )
    assert run(tmp_path, source).outcome == "done"


def test_the_end_of_lockgate_is_the_end_of_its_job(tmp_path: Path) -> None:
    job = {"name": "job", "argv": [sys.executable, "-c", FOREVER, MARK + str(tmp_path)]}
    source = (
        "import json, sys\nfrom pathlib import Path\n"
        "from lockgate.host.jobs.api import Job\nfrom lockgate.host.jobs.local import LocalJobs\n"
        f"job = json.loads({json.dumps(json.dumps(job))})\n"
        "job = Job(name=job['name'], argv=tuple(job['argv']), folder=Path(sys.argv[1]))\n"
        "LocalJobs().run(job, print)"
    )
    with subprocess.Popen([sys.executable, "-c", source, str(tmp_path)]) as ours:
        until(lambda: strays(tmp_path) != [])
        ours.send_signal(signal.SIGKILL)
    until(lambda: strays(tmp_path) == [])


def test_a_warden_that_is_killed_takes_its_job_along(tmp_path: Path) -> None:
    source = "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(60)"
    ended = run(tmp_path, source)
    assert ended.outcome == "failed"
    assert "warden was killed" in ended.reason


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    job = Job(name="job", argv=("/nowhere/at-all",), folder=tmp_path)
    ended = LocalJobs().run(job, print)
    assert ended.outcome == "failed"
    assert "No such file" in ended.log
    with pytest.raises((PermanentError, OSError)):
        LocalJobs().run(replace(job, folder=tmp_path / "absent"), print)


def until(what: object, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)

"""What every adapter of `Jobs` keeps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lockgate.host.jobs.api import Job, Jobs
from lockgate.host.jobs.local import LocalJobs
from lockgate.host.jobs.memory import MemoryJobs

HELLO = "print('one'); print('two', end='')"


def as_function(job: Job, hear: Callable[[str], None]) -> int:
    """What the programs of this suite do, for the adapter that has no processes."""
    source = job.argv[-1]
    if source == HELLO:
        hear("one")
        hear("two")
    return 3 if "exit(3)" in source else 0


@pytest.fixture(params=[LocalJobs, lambda: MemoryJobs(as_function)], ids=["local", "memory"])
def jobs(request: pytest.FixtureRequest) -> Jobs:
    made: Jobs = request.param()
    return made


def python(folder: Path, source: str) -> Job:
    return Job(name="job", argv=(sys.executable, "-c", source), folder=folder)


def test_a_job_that_ends_well_is_done_and_was_heard(jobs: Jobs, tmp_path: Path) -> None:
    heard: list[str] = []
    ended = jobs.run(python(tmp_path, HELLO), heard.append)
    assert (ended.outcome, ended.code) == ("done", 0)
    assert heard == ["one", "two"]


def test_a_job_that_ends_badly_says_with_what(jobs: Jobs, tmp_path: Path) -> None:
    ended = jobs.run(python(tmp_path, "raise SystemExit(3) if 0 else exit(3)"), print)
    assert (ended.outcome, ended.code) == ("failed", 3)
    assert "3" in ended.reason


def test_a_cancelled_job_ends(jobs: Jobs, tmp_path: Path) -> None:
    ended = jobs.run(python(tmp_path, "import time; time.sleep(60)"), print, lambda: True)
    assert (ended.outcome, ended.code) == ("cancelled", ended.code)

"""The port of jobs: a program is run to its end, within limits. Here, on a cluster, in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

Outcome = Literal["done", "failed", "timeout", "silent", "memory", "disk", "processes", "cancelled"]

_GB = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a job may take; 0 means no limit.

    `seconds` of wall clock, `silent_s` without a line said, `memory_bytes` of all its processes
    together, `disk_bytes` in its folder, `processes` at the same time.
    """

    seconds: float = 86_400.0
    silent_s: float = 3600.0
    memory_bytes: int = 0
    disk_bytes: int = 500 * _GB
    processes: int = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One program: `argv`, run in `folder`, which holds all that it writes.

    `name` is the same for the same work, so that an adapter may find a job that runs already.
    `env` is all of its environment.
    """

    name: str
    argv: tuple[str, ...]
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a job ended. `code` is its exit code (None: it was stopped); `reason` is a sentence.

    `seconds` of wall clock, `peak_bytes` of memory of all its processes, `log` the end of what it
    wrote to stderr.
    """

    outcome: Outcome
    reason: str
    code: int | None
    seconds: float
    peak_bytes: int
    log: str = ""


class Jobs(Protocol):
    """Runs jobs."""

    def run(
        self, job: Job, hear: Callable[[str], None], cancelled: Callable[[], bool] = lambda: False
    ) -> Ended:
        """Runs `job` to its end; `hear` gets each line that it writes to stdout, as it comes.

        `cancelled` is asked several times a second. When this returns no process of the job is
        left. Raises PermanentError when it can't be started.
        """
        ...

"""The ports of the fleet: `Fleet` (what release sees) and `Runtime` (what serves a version)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from lockgate.core.traffic import Endpoint

ReplicaState = Literal["starting", "warming", "ready", "draining", "backoff", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """How many replicas of `version` a route shall have, and how they run. Absolute.

    `count` 0 means: drain and stop them all. `runtime` names a runtime; None lets the version's
    files decide. `options` go to that runtime (for `command`: `argv`; for all: `env`, `threads`).
    `memory_mb` limits one replica's address space, `drain_s` the time its last requests get.
    """

    route: str
    version: str
    count: int
    runtime: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    memory_mb: int | None = None
    start_timeout_s: float = 120.0
    drain_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One serving process, as the fleet sees it now. `failed`: gave up, `message` says why.

    `crashes` holds when it was last started again, in seconds since the epoch, at most ten times.
    `index` counts the replicas of a version from 0; a smaller count takes the highest away.
    """

    name: str
    route: str
    version: str
    state: ReplicaState
    since: float
    endpoint: Endpoint | None = None
    restarts: int = 0
    crashes: tuple[float, ...] = ()
    runtime: str = ""
    message: str = ""
    index: int = 0


class Fleet(Protocol):
    """Runs replicas on one target. Every call may be repeated and says an absolute state."""

    def set_replicas(self, spec: ReplicaSpec) -> None:
        """Makes `spec` the wish for its route and version; returns at once.

        Fewer than there are: those with the highest `index` go.

        Raises PermanentError when it can never be met (no such runtime, no such version).
        """
        ...

    def replicas(self) -> Sequence[Replica]:
        """Returns every replica that exists, in any state, and fetches nothing."""
        ...

    def close(self, *, stop: bool) -> None:
        """Lets go; with `stop`, drains and stops every replica first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One HTTP request to a replica; it passes on a 2xx answer. `body` is sent as JSON."""

    path: str
    method: str = "GET"
    body: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a runtime is asked to serve: the restored folder, the model's name, where to listen."""

    folder: Path
    model: str
    version: str
    endpoint: Endpoint
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to run one replica.

    `ready` passes once the replica can answer; `warmups` are sent after that, before it counts as
    ready. `env` is added to the environment. SIGTERM must drain: finish streams, then exit.
    """

    argv: tuple[str, ...]
    ready: Probe
    env: Mapping[str, str] = field(default_factory=dict)
    warmups: tuple[Probe, ...] = ()


class Runtime(Protocol):
    """Knows how to serve one kind of version folder."""

    @property
    def name(self) -> str:
        """The name that a spec uses."""
        ...

    def refuses(self, folder: Path) -> str | None:
        """Returns None when it can serve `folder`, else the reason in a sentence."""
        ...

    def launch(self, job: Job) -> Launch:
        """Returns how to run it; raises UsageError when an option is missing or wrong."""
        ...

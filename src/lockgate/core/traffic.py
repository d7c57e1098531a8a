"""What gateway, fleet, observe and the judge share about serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lockgate.core.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Endpoint:
    """Where one replica listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as the gateway saw it, for the judge.

    `at` is the arrival in seconds since the epoch; `version` the digest that served it;
    `propensity` the probability with which the route chose that version, in (0, 1];
    `revision` the revision of the route's weights that chose it. Times are in seconds.
    `first_body_s` is the time from arrival to the first *body* byte from the replica, None when
    there was none; `status` is 0 when no response came. `tokens` are completion tokens where
    they could be read from the answer. `unit`: for a request that a session's key
    assigned, the hash by which the proxy chose, in [0, 2^64); None when each request was drawn.
    `mirrored`: a copy that no caller waits for.
    `scores`: what scorers said of the answer, by name; a row that has them is about a request that
    has a row of its own, and counts for those signals alone.
    """

    at: float
    route: str
    version: str
    propensity: float
    revision: int
    status: int
    duration_s: float
    first_body_s: float | None = None
    tokens: int | None = None
    bytes_out: int = 0
    bytes_in: int = 0
    flags: str = ""
    path: str = ""
    request_id: str = ""
    unit: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    mirrored: bool = False

    @property
    def failed(self) -> bool:
        """True for no response, a cut response or a 5xx."""
        return self.status == 0 or self.status >= 500 or bool(self.flags)


Weights = Mapping[str, int]
"""Version digest → weight; absolute; in hundredths of a percent (they add up to 10,000)."""

WHOLE = 10_000

_TWIN = "twin:"


def twin_of(version: str) -> str:
    """Returns the name under which fresh replicas of `version` are compared with a candidate."""
    return _TWIN + version


def without_twin(version: str) -> str:
    """Returns the version that a name of either kind stands for."""
    return version.removeprefix(_TWIN)


def check_weights(weights: Weights) -> Weights:
    """Returns `weights` when none is negative and they add up to 10,000; else UsageError."""
    if any(weight < 0 for weight in weights.values()) or sum(weights.values()) != WHOLE:
        raise UsageError(f"weights must be ≥ 0 and add up to {WHOLE}, not {dict(weights)}")
    return weights

"""What the parts of the Envoy adapter share: options, state, names. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from lockgate.core import canonical
from lockgate.core.digests import digest_of, hex_of
from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import RouteSpec

Json = dict[str, Any]
Resources = Mapping[str, Mapping[str, Json]]
"""Type → name → resource."""
EXT = "type.googleapis.com/envoy.extensions."
CFG = "type.googleapis.com/envoy.config."
CLUSTER = CFG + "cluster.v3.Cluster"
ENDPOINT = CFG + "endpoint.v3.ClusterLoadAssignment"
ROUTE = CFG + "route.v3.RouteConfiguration"
ORDER = (CLUSTER, ENDPOINT, ROUTE)
"""Make before break: a cluster and its endpoints are there before a route names them."""

TABLE = "lockgate"
MIRROR = "lockgate-mirror"
"""The cluster that leads back into the proxy, by which copies of requests become rows too."""
SCORES = "lockgate-scores"
"""The cluster of whoever scores answers; nobody need be there."""
SCORES_SOCKET = "scores.sock"
"""In the run folder: where copies to score go."""
MIRROR_POOL = "x-lockgate-mirror-pool"
MIRROR_ROUTE = "x-lockgate-mirror-route"
UNIT = "x-lockgate-unit"
USAGE = "lockgate.usage"
MODEL = "lockgate.model"


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyOptions:
    """Settings of the data plane; times in seconds.

    `first_byte_timeout_s` is how long one try may be silent before another replica is tried: keep
    it above the longest prefill. `retry_on` holds Envoy's retry conditions. `token_metadata`
    switches the (work in progress) filters that read token counts out of answers.
    """

    workers: int = 2
    connect_timeout_s: float = 1.0
    health_path: str = "/health"
    health_interval_s: float = 1.0
    health_timeout_s: float = 2.0
    stream_idle_s: float = 600.0
    first_byte_timeout_s: float = 300.0
    retries: int = 2
    retry_on: str = "connect-failure,refused-stream,reset-before-request,reset"
    max_requests: int = 65_536
    max_body_bytes: int = 64 << 20
    token_metadata: bool = True
    ack_timeout_s: float = 10.0
    ready_timeout_s: float = 15.0
    start_timeout_s: float = 20.0
    drain_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What should be in force: route name → (spec, revision), (route, version) → endpoints."""

    routes: Mapping[str, tuple[RouteSpec, int]] = field(default_factory=dict)
    pools: Mapping[tuple[str, str], tuple[Endpoint, ...]] = field(default_factory=dict)
    revision: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where Envoy gets its resources and sends its rows; each transport has its own.

    `cds` and `rds` are ConfigSource messages, `eds` gives one for a cluster's name, `access_log`
    an AccessLog for the fields of a row; `bootstrap` is what the transport adds to the start
    configuration.
    """

    cds: Json
    rds: Json
    eds: Callable[[str], Json]
    access_log: Callable[[Mapping[str, str]], Json]
    bootstrap: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """The paths of sockets: the proxy's administration, copies of requests, copies to score."""

    admin: str
    mirror: str
    scores: str


def pool_name(route: str, version: str) -> str:
    """Returns the cluster's name; `split_pool` reads it back."""
    return f"{route}|{version}"


def split_pool(name: str) -> tuple[str, str]:
    """Returns route and version of a cluster's name."""
    route, _, version = name.partition("|")
    return route, version


def pool_key(name: str) -> str:
    """Returns a short name of a cluster that is safe in statistics and file names."""
    return "pool-" + hex_of(digest_of(name.encode()))[:16]


def version_of(resources: Mapping[str, Json]) -> str:
    """Returns the version of a set of resources: the start of its digest."""
    return hex_of(digest_of(canonical.encode(dict(resources))))[:16]


def state_to_json(state: State) -> Json:
    """Returns `state` as JSON; `state_from_json` reads it back."""
    return {
        "revision": state.revision,
        "routes": [
            {
                "name": spec.name,
                "model": spec.model,
                "weights": dict(spec.weights),
                "baseline": spec.baseline,
                "sticky_header": spec.sticky_header,
                "variant": list(spec.variant),
                "mirror": dict(spec.mirror),
                "scored": spec.scored,
                "revision": revision,
            }
            for _, (spec, revision) in sorted(state.routes.items())
        ],
        "pools": [
            {"route": route, "version": version, "endpoints": [[e.host, e.port] for e in found]}
            for (route, version), found in sorted(state.pools.items())
        ],
    }


def state_from_json(value: Json) -> State:
    """Returns the state that `state_to_json` wrote."""
    routes = {}
    for row in value["routes"]:
        spec = {key: item for key, item in row.items() if key != "revision"}
        spec["variant"] = tuple(spec.get("variant", ()))
        routes[row["name"]] = (RouteSpec(**spec), row["revision"])
    pools = {
        (row["route"], row["version"]): tuple(
            Endpoint(host=host, port=port) for host, port in row["endpoints"]
        )
        for row in value["pools"]
    }
    return State(routes=routes, pools=pools, revision=value["revision"])


def short_reason(text: str) -> str:
    """Returns Envoy's reason for a refusal without the log's head or the resource it prints."""
    text = text.rpartition("rejected: ")[2]
    _, mark, rest = text.rpartition("Proto constraint validation failed")
    return (mark + rest)[:600].strip() if mark else text[-600:].strip()


def seconds(value: float) -> str:
    """Returns a duration as Envoy writes it."""
    return f"{value:g}s"


class Transport(Protocol):
    """Brings resources to the proxies and rows back."""

    def sources(self) -> Sources:
        """Returns what the configuration says about this transport."""
        ...

    def start(self, resources: Resources) -> None:
        """Begins to serve `resources`."""
        ...

    def apply(self, resources: Resources) -> None:
        """Returns when every proxy runs `resources`; PermanentError, TemporaryError."""
        ...

    def settled(self) -> bool:
        """Says whether every proxy runs the newest resources."""
        ...

    def proxies(self) -> int:
        """Returns how many proxies are connected."""
        ...

    def close(self) -> None:
        """Stops to serve."""
        ...

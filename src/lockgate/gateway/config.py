"""What Envoy is told, as pure functions from our state to proto-JSON dictionaries.

Nothing here does I/O. `docs/gateway.md` says why each setting has its value; the comments here
name the traps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lockgate.core import canonical
from lockgate.core.digests import digest_of, hex_of
from lockgate.core.traffic import WHOLE, Endpoint
from lockgate.gateway.api import RouteSpec

Json = dict[str, Any]
_EXT = "type.googleapis.com/envoy.extensions."
_CFG = "type.googleapis.com/envoy.config."
CLUSTER = _CFG + "cluster.v3.Cluster"
ENDPOINT = _CFG + "endpoint.v3.ClusterLoadAssignment"
ROUTE = _CFG + "route.v3.RouteConfiguration"
ORDER = (CLUSTER, ENDPOINT, ROUTE)
"""Make before break: a cluster and its endpoints are there before a route names them."""

TABLE = "lockgate"
_USAGE = "lockgate.usage"
_MODEL = "lockgate.model"

# Runtimes answer to their operators on the port that callers use; these never pass.
# Several, because Envoy limits the size of one expression's program to 100.
_ANY_MODEL = "(/[^/]+/[^/]+)?"
_ADMIN_PATHS = (
    _ANY_MODEL + "/v1/(un)?load_lora_adapter/?",
    _ANY_MODEL + "/v2/(repository|logging|trace)(/.*)?",
    _ANY_MODEL + "/v2/(cuda|system)sharedmemory(/.*)?",
    ".*/v2/models/.*/trace/setting/?",
    ".*/v2/.*sharedmemory/.*",
)

ROW = {
    "at": "%START_TIME(%s.%6f)%",
    "route": "%ROUTE_NAME%",
    # Not UPSTREAM_CLUSTER: that one shows alt_stat_name.
    "pool": "%UPSTREAM_CLUSTER_RAW%",
    "weights": "%METADATA(ROUTE:lockgate:weights)%",
    "status": "%RESPONSE_CODE%",
    "flags": "%RESPONSE_FLAGS%",
    "duration_ms": "%DURATION%",
    "duration_us": "%COMMON_DURATION(DS_RX_BEG:DS_TX_END:us)%",
    # Not the time to the first header: servers send SSE headers before the first token.
    "first_body_us": "%COMMON_DURATION(DS_RX_BEG:US_RX_BODY_BEG:us)%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "tokens": f"%DYNAMIC_METADATA({_USAGE}:completion_tokens)%",
}
"""Access-log row: field → Envoy's format. The same text in both logs, so one reader."""


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
    is an AccessLog, `bootstrap` what the transport adds to the start configuration.
    """

    cds: Json
    rds: Json
    eds: Callable[[str], Json]
    access_log: Json
    bootstrap: Json


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


def resources(state: State, options: EnvoyOptions, sources: Sources) -> dict[str, dict[str, Json]]:
    """Returns type → name → resource for the whole of `state`."""
    clusters = {pool_name(*key): key for key in sorted(state.pools)}
    return {
        CLUSTER: {name: cluster(name, options, sources) for name in clusters},
        ENDPOINT: {name: assignment(name, state.pools[key]) for name, key in clusters.items()},
        ROUTE: {TABLE: route_table(state, options)},
    }


def cluster(name: str, options: EnvoyOptions, sources: Sources) -> Json:
    """Returns the cluster of one pool; it never changes: a cluster that changes warms again."""
    limit = options.max_requests
    threshold = {
        "max_connections": limit,
        "max_pending_requests": limit,
        "max_requests": limit,
        "max_retries": max(3, limit // 16),
    }
    return {
        "@type": CLUSTER,
        "name": name,
        "alt_stat_name": pool_key(name),
        "type": "EDS",
        "eds_cluster_config": {
            "service_name": name,
            "eds_config": sources.eds(name),
        },
        "connect_timeout": _s(options.connect_timeout_s),
        "load_balancing_policy": {"policies": [_least_request()]},
        "common_lb_config": {
            # Panic off: never send to a replica that is still loading, fail fast instead.
            "healthy_panic_threshold": {"value": 0},
            # Default 1 s: the workers learn of a change of health that much later than admin says.
            "update_merge_window": "0s",
        },
        # Without it a removed replica is kept for as long as it is healthy.
        "ignore_health_on_host_removal": True,
        "health_checks": [_health_check(options)],
        "outlier_detection": _outliers(),
        "circuit_breakers": {"thresholds": [threshold, {**threshold, "priority": "HIGH"}]},
    }


def _least_request() -> Json:
    return {
        "typed_extension_config": {
            "name": "envoy.load_balancing_policies.least_request",
            "typed_config": {
                "@type": _EXT + "load_balancing_policies.least_request.v3.LeastRequest",
                "selection_method": "FULL_SCAN",
            },
        }
    }


def _health_check(options: EnvoyOptions) -> Json:
    interval = _s(options.health_interval_s)
    return {
        "timeout": _s(options.health_timeout_s),
        "interval": interval,
        # Default 60 s: a replica that was not ready at its first check would wait a minute.
        "no_traffic_interval": interval,
        "unhealthy_threshold": 3,
        "healthy_threshold": 1,
        "http_health_check": {"path": options.health_path},
    }


def _outliers() -> Json:
    # Only what the connection itself shows. A 500 is for the judge: ejecting for it would hide
    # a bad version, and one poisoned prompt would empty a good pool.
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 2,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_consecutive_5xx": 0,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": "5s",
        "max_ejection_percent": 100,
    }


def assignment(name: str, endpoints: tuple[Endpoint, ...]) -> Json:
    """Returns the endpoints of one pool."""
    hosts = [
        {"endpoint": {"address": _address(endpoint.host, endpoint.port)}}
        for endpoint in sorted(endpoints)
    ]
    return {"@type": ENDPOINT, "cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}


def route_table(state: State, options: EnvoyOptions) -> Json:
    """Returns the one table of routes; what it does not name is answered with 404."""
    rows = [
        _refusal({"safe_regex": {"regex": regex}}, "this path is not open to callers")
        for regex in _ADMIN_PATHS
    ]
    for _, (spec, revision) in sorted(state.routes.items()):
        rows += _routes_of(spec, revision, options)
    rows.append(_refusal({"prefix": "/"}, "no model is served here under this path or name"))
    host = {"name": TABLE, "domains": ["*"], "routes": rows}
    return {
        "@type": ROUTE,
        "name": TABLE,
        "virtual_hosts": [host],
        "ignore_path_parameters_in_path_matching": True,
    }


def _routes_of(spec: RouteSpec, revision: int, options: EnvoyOptions) -> list[Json]:
    shared = {
        "name": f"{spec.name}#{revision}",
        "metadata": {
            "filter_metadata": {"lockgate": {"weights": canonical.dumps(dict(spec.weights))}}
        },
    }
    action = _action(spec, options)
    header = {"name": "x-lockgate-model", "string_match": {"exact": spec.model}}
    body = {
        "filter": _MODEL,
        "path": [{"key": "model"}],
        "value": {"string_match": {"exact": spec.model}},
    }
    rows: list[Json] = [
        {
            **shared,
            "match": {"prefix": f"/{spec.model}{api}"},
            "route": {**action, "prefix_rewrite": api},
        }
        for api in ("/v1/", "/v2/")
    ]
    rows.append(_refusal({"prefix": f"/{spec.model}/"}, "only /v1/ and /v2/ are open to callers"))
    rows += [
        {**shared, "match": {"prefix": api, "headers": [header]}, "route": action}
        for api in ("/v1/", "/v2/")
    ]
    rows.append(
        {**shared, "match": {"prefix": "/v1/", "dynamic_metadata": [body]}, "route": action}
    )
    return rows


def _action(spec: RouteSpec, options: EnvoyOptions) -> Json:
    # The baseline first: a growing candidate then takes its share from the end, moving nobody back.
    versions = sorted(spec.weights, key=lambda version: (version != spec.baseline, version))
    split: Json = {
        "clusters": [
            {"name": pool_name(spec.name, version), "weight": spec.weights[version]}
            for version in versions
            if spec.weights[version]
        ]
    }
    action: Json = {
        "weighted_clusters": split,
        "timeout": "0s",  # the default cuts a stream after 15 s
        "idle_timeout": _s(options.stream_idle_s),
        "retry_policy": {
            "retry_on": options.retry_on,
            "num_retries": options.retries,
            "per_try_idle_timeout": _s(options.first_byte_timeout_s),
            "host_selection_retry_max_attempts": "5",
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": _EXT + "retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
        },
    }
    if spec.sticky_header:
        split["use_hash_policy"] = True
        action["hash_policy"] = [{"header": {"header_name": spec.sticky_header}}]
    return action


def _refusal(match: Json, sentence: str) -> Json:
    return {
        "name": "refused",
        "match": match,
        "direct_response": {"status": 404, "body": {"inline_string": sentence}},
    }


def bootstrap(
    *, host: str, port: int, admin_socket: str, options: EnvoyOptions, sources: Sources
) -> Json:
    """Returns Envoy's start configuration: one listener that no release ever touches."""
    static = sources.bootstrap.get("static_resources", {})
    return {
        "node": {"id": "lockgate", "cluster": "lockgate"},
        "admin": {"address": {"pipe": {"path": admin_socket, "mode": 0o600}}},
        **{key: value for key, value in sources.bootstrap.items() if key != "static_resources"},
        "static_resources": {**static, "listeners": [listener(host, port, options, sources)]},
    }


def listener(host: str, port: int, options: EnvoyOptions, sources: Sources) -> Json:
    """Returns the listener for callers."""
    manager = {
        "@type": _EXT + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "callers",
        "rds": {"route_config_name": TABLE, "config_source": sources.rds},
        "http_filters": _filters(options),
        "access_log": [sources.access_log],
        "local_reply_config": _own_replies(),
        "stream_idle_timeout": _s(options.stream_idle_s),
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "use_remote_address": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
    }
    chain = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": "callers",
        "address": _address(host, port),
        # With it two proxies could share a port in silence.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": options.max_body_bytes,
        "filter_chains": [{"filters": [chain]}],
    }


def _own_replies() -> Json:
    """Envoy's own answers in the shape of OpenAI's errors."""

    def shape(kind: str, code: str) -> Json:
        error = {"message": "%LOCAL_REPLY_BODY%", "type": kind, "param": None, "code": code}
        return {"json_format": {"error": error}}

    missing = {
        "status_code_filter": {
            "comparison": {"op": "EQ", "value": {"default_value": 404, "runtime_key": "none"}}
        }
    }
    return {
        "mappers": [
            {
                "filter": missing,
                "body_format_override": shape("invalid_request_error", "model_not_found"),
            }
        ],
        "body_format": shape("gateway_error", "%RESPONSE_CODE_DETAILS%"),
    }


def _filters(options: EnvoyOptions) -> list[Json]:
    usage = {
        "selectors": [{"key": "usage"}, {"key": "completion_tokens"}],
        "on_present": {
            "metadata_namespace": _USAGE,
            "key": "completion_tokens",
            "type": "NUMBER",
        },
    }
    model = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": _MODEL, "key": "model", "type": "STRING"},
    }
    body: Json = {
        "@type": _EXT + "filters.http.json_to_metadata.v3.JsonToMetadata",
        "request_rules": {"rules": [model]},
    }
    filters: list[Json] = [{"name": "model", "typed_config": body}]
    if options.token_metadata:
        body["response_rules"] = {"rules": [usage]}
        parser = {"@type": _EXT + "content_parsers.json.v3.JsonContentParser"}
        stream = {
            "@type": _EXT + "filters.http.sse_to_metadata.v3.SseToMetadata",
            "response_rules": {
                "content_parser": {
                    "name": "envoy.content_parsers.json",
                    "typed_config": {**parser, "rules": [{"rule": usage}]},
                }
            },
        }
        filters.append({"name": "usage", "typed_config": stream})
    router = {"@type": _EXT + "filters.http.router.v3.Router"}
    return [*filters, {"name": "envoy.filters.http.router", "typed_config": router}]


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
        routes[row["name"]] = (RouteSpec(**spec), row["revision"])
    pools = {
        (row["route"], row["version"]): tuple(
            Endpoint(host=host, port=port) for host, port in row["endpoints"]
        )
        for row in value["pools"]
    }
    return State(routes=routes, pools=pools, revision=value["revision"])


def propensity(weights: str, version: str) -> float:
    """Returns the probability of `version` under the logged weights (JSON); 0 when not known."""
    try:
        return float(json.loads(weights).get(version, 0)) / WHOLE
    except (ValueError, AttributeError):
        return 0.0


def short_reason(text: str) -> str:
    """Returns Envoy's reason for a refusal without the log's head or the resource it prints."""
    text = text.rpartition("rejected: ")[2]
    _, mark, rest = text.rpartition("Proto constraint validation failed")
    return (mark + rest)[:600].strip() if mark else text[-600:].strip()


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def _s(seconds: float) -> str:
    return f"{seconds:g}s"

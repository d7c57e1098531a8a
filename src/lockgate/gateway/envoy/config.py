"""What Envoy is told, as pure functions from our state to proto-JSON dictionaries.

Nothing here does I/O. `docs/gateway.md` says why each setting has its value; the comments here
name the traps.
"""

from __future__ import annotations

from lockgate.core.traffic import Endpoint
from lockgate.gateway.envoy.routing import route_table
from lockgate.gateway.envoy.samples import MIRROR_ROW, ROW
from lockgate.gateway.envoy.values import (
    CLUSTER,
    ENDPOINT,
    EXT,
    MIRROR,
    MIRROR_POOL,
    MODEL,
    ROUTE,
    SCORES,
    TABLE,
    USAGE,
    EnvoyOptions,
    Json,
    Sockets,
    Sources,
    State,
    pool_key,
    pool_name,
    seconds,
)


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
        "connect_timeout": seconds(options.connect_timeout_s),
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
                "@type": EXT + "load_balancing_policies.least_request.v3.LeastRequest",
                "selection_method": "FULL_SCAN",
            },
        }
    }


def _health_check(options: EnvoyOptions) -> Json:
    interval = seconds(options.health_interval_s)
    return {
        "timeout": seconds(options.health_timeout_s),
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


def bootstrap(
    *, host: str, port: int, sockets: Sockets, options: EnvoyOptions, sources: Sources
) -> Json:
    """Returns Envoy's start configuration: two listeners that no release ever touches.

    One is for callers; the other takes the copies of requests, so that they are rows as well.
    """
    static = sources.bootstrap.get("static_resources", {})
    clusters = [
        *static.get("clusters", ()),
        _own_cluster(MIRROR, sockets.mirror),
        _own_cluster(SCORES, sockets.scores),
    ]
    listeners = [
        listener(_address(host, port), options, sources),
        mirror_listener(sockets.mirror, options, sources),
    ]
    return {
        "node": {"id": "lockgate", "cluster": "lockgate"},
        "admin": {"address": {"pipe": {"path": sockets.admin, "mode": 0o600}}},
        **{key: value for key, value in sources.bootstrap.items() if key != "static_resources"},
        "static_resources": {**static, "clusters": clusters, "listeners": listeners},
    }


def _own_cluster(name: str, socket: str) -> Json:
    endpoint = {"address": {"pipe": {"path": socket}}}
    hosts = [{"lb_endpoints": [{"endpoint": endpoint}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": name, "endpoints": hosts},
    }


def mirror_listener(socket: str, options: EnvoyOptions, sources: Sources) -> Json:
    """Returns the listener for copies: the header that the mirror policy sets names the pool."""
    onward = {"cluster_header": MIRROR_POOL, "timeout": "0s"}
    row = {"match": {"prefix": "/"}, "route": onward}
    manager = {
        "@type": EXT + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "mirror",
        "route_config": {
            "name": MIRROR,
            "virtual_hosts": [{"name": MIRROR, "domains": ["*"], "routes": [row]}],
        },
        "http_filters": _filters(options),
        "access_log": [sources.access_log(MIRROR_ROW)],
        "stream_idle_timeout": seconds(options.stream_idle_s),
        "generate_request_id": False,  # the copy is found by the number of the request
    }
    chain = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    return {
        "name": "mirror",
        "address": {"pipe": {"path": socket, "mode": 0o600}},
        "per_connection_buffer_limit_bytes": options.max_body_bytes,
        "filter_chains": [{"filters": [chain]}],
    }


def listener(address: Json, options: EnvoyOptions, sources: Sources) -> Json:
    """Returns the listener for callers."""
    manager = {
        "@type": EXT + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "callers",
        "rds": {"route_config_name": TABLE, "config_source": sources.rds},
        "http_filters": _filters(options),
        "access_log": [sources.access_log(ROW)],
        "local_reply_config": _own_replies(),
        "stream_idle_timeout": seconds(options.stream_idle_s),
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
        "address": address,
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
            "metadata_namespace": USAGE,
            "key": "completion_tokens",
            "type": "NUMBER",
        },
    }
    model = {
        "selectors": [{"key": "model"}],
        "on_present": {"metadata_namespace": MODEL, "key": "model", "type": "STRING"},
    }
    body: Json = {
        "@type": EXT + "filters.http.json_to_metadata.v3.JsonToMetadata",
        "request_rules": {"rules": [model]},
    }
    filters: list[Json] = [{"name": "model", "typed_config": body}]
    if options.token_metadata:
        body["response_rules"] = {"rules": [usage]}
        parser = {"@type": EXT + "content_parsers.json.v3.JsonContentParser"}
        stream = {
            "@type": EXT + "filters.http.sse_to_metadata.v3.SseToMetadata",
            "response_rules": {
                "content_parser": {
                    "name": "envoy.content_parsers.json",
                    "typed_config": {**parser, "rules": [{"rule": usage}]},
                }
            },
        }
        filters.append({"name": "usage", "typed_config": stream})
    router = {"@type": EXT + "filters.http.router.v3.Router"}
    return [*filters, {"name": "envoy.filters.http.router", "typed_config": router}]


def _address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}

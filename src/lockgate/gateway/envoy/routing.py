"""Which request goes to which version: one table of routes, a pure function of the state."""

from __future__ import annotations

from dataclasses import replace

from lockgate.core import canonical
from lockgate.core.traffic import WHOLE
from lockgate.gateway.api import RouteSpec
from lockgate.gateway.envoy.values import (
    EXT,
    MIRROR,
    MIRROR_POOL,
    MIRROR_ROUTE,
    MODEL,
    ROUTE,
    SCORES,
    TABLE,
    UNIT,
    EnvoyOptions,
    Json,
    State,
    pool_name,
    seconds,
)

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
    rows = []
    if spec.variant:
        name, value, version = spec.variant
        chosen = replace(spec, weights={version: WHOLE}, sticky_header=None, mirror={})
        asks = {"name": name, "string_match": {"exact": value}}
        for row in _rows(chosen, revision, options):
            if "direct_response" not in row:
                match = row["match"]
                row["match"] = {**match, "headers": [*match.get("headers", ()), asks]}
                rows.append(row)
    return [*rows, *_rows(spec, revision, options)]


def _rows(spec: RouteSpec, revision: int, options: EnvoyOptions) -> list[Json]:
    shared: Json = {
        "name": f"{spec.name}#{revision}",
        "metadata": {
            "filter_metadata": {"lockgate": {"weights": canonical.dumps(dict(spec.weights))}}
        },
        "request_headers_to_remove": [UNIT],
    }
    if spec.sticky_header:
        shared["request_headers_to_add"] = [_header(UNIT, f"%REQ({spec.sticky_header})%")]
    action = _action(spec, revision, options)
    header = {"name": "x-lockgate-model", "string_match": {"exact": spec.model}}
    body = {
        "filter": MODEL,
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


def _action(spec: RouteSpec, revision: int, options: EnvoyOptions) -> Json:
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
        "idle_timeout": seconds(options.stream_idle_s),
        "retry_policy": {
            "retry_on": options.retry_on,
            "num_retries": options.retries,
            "per_try_idle_timeout": seconds(options.first_byte_timeout_s),
            "host_selection_retry_max_attempts": "5",
            "retry_host_predicate": [
                {
                    "name": "envoy.retry_host_predicates.previous_hosts",
                    "typed_config": {
                        "@type": EXT + "retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    },
                }
            ],
        },
    }
    copies = [_copy(spec, revision, *pair) for pair in sorted(spec.mirror.items())]
    if spec.scored:
        copies.append(_copy(spec, revision, "", spec.scored, SCORES))
    if copies:
        action["request_mirror_policies"] = copies
    if spec.sticky_header:
        split["use_hash_policy"] = True
        action["hash_policy"] = [{"header": {"header_name": spec.sticky_header}}]
    return action


def _copy(spec: RouteSpec, revision: int, version: str, share: int, cluster: str = MIRROR) -> Json:
    """Copies of `share` of 10,000 requests to `version`, by way of the proxy's own listener."""
    about = (
        (MIRROR_POOL, pool_name(spec.name, version)),
        (MIRROR_ROUTE, f"{spec.name}#{revision}"),
    )
    return {
        "cluster": cluster,
        "runtime_fraction": {"default_value": {"numerator": share, "denominator": "TEN_THOUSAND"}},
        "request_headers_mutations": [{"append": _header(*pair)} for pair in about],
    }


def _header(name: str, value: str) -> Json:
    return {
        "header": {"key": name, "value": value},
        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
    }


def _refusal(match: Json, sentence: str) -> Json:
    return {
        "name": "refused",
        "match": match,
        "direct_response": {"status": 404, "body": {"inline_string": sentence}},
    }

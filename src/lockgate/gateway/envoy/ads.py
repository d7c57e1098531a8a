"""Configuration over gRPC (ADS), and rows over gRPC (ALS), on one unix socket.

State of the world: every answer carries all resources of a type. For each stream and type we
know the last answer (nonce), what the proxy asked for, and what it acknowledged, so that "in
force" is a fact and not a guess. A proxy that reconnects is sent the whole state at once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from lockgate.core.errors import PermanentError, TemporaryError
from lockgate.core.traffic import Sample
from lockgate.gateway.envoy.samples import samples
from lockgate.gateway.envoy.schema import Schema
from lockgate.gateway.envoy.values import (
    CLUSTER,
    ENDPOINT,
    ORDER,
    ROUTE,
    TABLE,
    EnvoyOptions,
    Json,
    Resources,
    Sources,
    short_reason,
    version_of,
)

_LOG = logging.getLogger(__name__)
_CONTROL = "lockgate-control"
_DISCOVERY = "envoy.service.discovery.v3."
_ALS = "envoy.service.accesslog.v3."
Deliver = Callable[[list[Sample]], None]


@dataclass(slots=True)
class _Watch:
    """What one stream knows of one type."""

    names: frozenset[str] = frozenset()
    nonce: str = ""
    sent: str = ""
    sent_names: frozenset[str] = frozenset()
    answered: bool = True
    acked: str = ""
    acked_names: frozenset[str] = frozenset()
    refused: str = ""
    reason: str = ""


@dataclass(slots=True)
class _Stream:
    watches: dict[str, _Watch] = field(default_factory=dict)
    outbox: deque[Any] = field(default_factory=deque)
    closed: bool = False


class AdsTransport:
    """Serves ADS and ALS to the proxies on this machine."""

    def __init__(
        self, *, socket: Path, schema: Schema, options: EnvoyOptions, deliver: Deliver
    ) -> None:
        self._socket = socket
        self._schema = schema
        self._options = options
        self._deliver = deliver
        self._changed = threading.Condition()
        self._wanted: dict[str, tuple[str, dict[str, Any]]] = {}
        self._streams: list[_Stream] = []
        self._count = 0
        self._server: Any = None

    def sources(self) -> Sources:
        """Returns what the configuration says about ADS and ALS."""
        from_ads: Json = {"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"}
        return Sources(
            cds=from_ads,
            rds=from_ads,
            eds=lambda _name: from_ads,
            access_log=_access_log,
            bootstrap={
                "dynamic_resources": {
                    "ads_config": {
                        "api_type": "GRPC",
                        "transport_api_version": "V3",
                        "set_node_on_first_message_only": True,
                        "grpc_services": [_service()],
                    },
                    "cds_config": from_ads,
                },
                "static_resources": {"clusters": [_control_cluster(self._socket)]},
            },
        )

    def start(self, resources: Resources) -> None:
        """Starts to serve, `resources` first: a proxy never sees an empty state in between."""
        self._install(resources, ORDER)
        self._socket.unlink(missing_ok=True)
        self._server = grpc.server(
            # Every stream holds a thread: one for ADS, one for rows per worker of the proxy.
            ThreadPoolExecutor(8 + 4 * self._options.workers, "lockgate-ads"),
            options=[("grpc.max_receive_message_length", 64 << 20)],
        )
        self._server.add_generic_rpc_handlers(
            (
                self._handler(
                    _DISCOVERY + "AggregatedDiscoveryService",
                    "StreamAggregatedResources",
                    grpc.stream_stream_rpc_method_handler(
                        self._discover,
                        self._schema.kind(_DISCOVERY + "DiscoveryRequest").FromString,
                        lambda message: message.SerializeToString(),
                    ),
                ),
                self._handler(
                    _ALS + "AccessLogService",
                    "StreamAccessLogs",
                    grpc.stream_unary_rpc_method_handler(
                        self._collect,
                        self._schema.kind(_ALS + "StreamAccessLogsMessage").FromString,
                        lambda message: message.SerializeToString(),
                    ),
                ),
            )
        )
        self._server.add_insecure_port(f"unix:{self._socket}")
        self._server.start()

    def apply(self, resources: Resources) -> None:
        """Makes `resources` the state of every proxy; returns when all have acknowledged it.

        Clusters and endpoints go first, then routes. Raises PermanentError with the proxy's
        reason when one refuses, TemporaryError when none is there or one does not answer.
        """
        deadline = time.monotonic() + self._options.ack_timeout_s
        for kinds in ((CLUSTER, ENDPOINT), (ROUTE,)):
            self._install(resources, kinds)
            self._wait(kinds, deadline)

    def settled(self) -> bool:
        """Says whether every proxy has acknowledged the newest state, and there is one."""
        with self._changed:
            return bool(self._streams) and self._in_force(ORDER)

    def proxies(self) -> int:
        """Returns how many proxies are connected."""
        with self._changed:
            return len(self._streams)

    def close(self) -> None:
        """Stops to serve; proxies keep what they have."""
        with self._changed:
            for stream in self._streams:
                stream.closed = True
            self._changed.notify_all()
        if self._server is not None:
            self._server.stop(0.5).wait()
            self._server = None

    @staticmethod
    def _handler(service: str, method: str, handler: Any) -> Any:
        return grpc.method_handlers_generic_handler(service, {method: handler})

    def _install(self, resources: Resources, kinds: tuple[str, ...]) -> None:
        packed = {
            kind: (
                version_of(resources[kind]),
                {name: self._schema.pack(value) for name, value in resources[kind].items()},
            )
            for kind in kinds
        }
        with self._changed:
            self._wanted.update(packed)
            for stream in self._streams:
                for kind in kinds:
                    self._offer(stream, kind)
            self._changed.notify_all()

    def _wait(self, kinds: tuple[str, ...], deadline: float) -> None:
        with self._changed:
            while True:
                reason = self._refusal(kinds)
                if reason:
                    raise PermanentError(
                        f"the proxy refused the new configuration: {reason}",
                        hint="nothing has changed; correct the endpoint or the route",
                    )
                if self._streams and self._in_force(kinds):
                    return
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            connected = len(self._streams)
        waited = f"within {self._options.ack_timeout_s:g} s"
        raise TemporaryError(
            f"the proxy did not acknowledge the new configuration {waited}"
            if connected
            else f"no proxy connected {waited}",
            retry_in=1.0,
            hint="see envoy.log in the gateway's state directory",
        )

    def _refusal(self, kinds: tuple[str, ...]) -> str:
        for stream in self._streams:
            for kind in kinds:
                watch = stream.watches.get(kind)
                if watch and watch.refused and watch.refused == self._wanted[kind][0]:
                    return watch.reason
        return ""

    def _in_force(self, kinds: tuple[str, ...]) -> bool:
        return all(self._acked(stream, kind) for stream in self._streams for kind in kinds)

    def _acked(self, stream: _Stream, kind: str) -> bool:
        version, wanted = self._wanted[kind]
        if kind == ENDPOINT and not wanted:
            return True
        watch = stream.watches.get(kind)
        if watch is None or watch.acked != version:
            return False
        return kind != ENDPOINT or watch.acked_names.issuperset(wanted)

    def _offer(self, stream: _Stream, kind: str, *, again: bool = False) -> None:
        """Puts the newest state of `kind` in the stream's outbox when the proxy lacks it."""
        watch = stream.watches.get(kind)
        if watch is None:
            return
        version, wanted = self._wanted[kind]
        if watch.sent == version and not again:
            return
        if kind == ENDPOINT:
            wanted = {name: value for name, value in wanted.items() if name in watch.names}
            if not watch.names:
                return
        self._count += 1
        watch.nonce, watch.sent, watch.answered = str(self._count), version, False
        watch.sent_names = frozenset(wanted)
        response = self._schema.kind(_DISCOVERY + "DiscoveryResponse")(
            version_info=version, type_url=kind, nonce=watch.nonce, resources=wanted.values()
        )
        stream.outbox.append(response)

    def _discover(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        stream = _Stream()
        with self._changed:
            self._streams.append(stream)

        def read() -> None:
            try:
                for request in requests:
                    with self._changed:
                        self._heard(stream, request)
                        self._changed.notify_all()
            except grpc.RpcError:
                _LOG.debug("a proxy's stream ended")
            finally:
                self._drop(stream)

        threading.Thread(target=read, daemon=True, name="lockgate-ads-reader").start()
        context.add_callback(lambda: self._drop(stream))
        while True:
            with self._changed:
                self._changed.wait_for(lambda: stream.closed or stream.outbox)
                if stream.closed:
                    return
                response = stream.outbox.popleft()
            yield response

    def _drop(self, stream: _Stream) -> None:
        with self._changed:
            stream.closed = True
            if stream in self._streams:
                self._streams.remove(stream)
            self._changed.notify_all()

    def _heard(self, stream: _Stream, request: Any) -> None:
        """Takes in one request: a subscription, an acknowledgement or a refusal."""
        kind = request.type_url
        if kind not in self._wanted:
            return
        watch = stream.watches.setdefault(kind, _Watch())
        names = frozenset(request.resource_names)
        watch.names = names
        stale = bool(request.response_nonce) and request.response_nonce != watch.nonce
        answer = bool(request.response_nonce) and not stale and not watch.answered
        if answer:
            watch.answered = True
            if request.error_detail.code or request.error_detail.message:
                watch.refused, watch.reason = watch.sent, short_reason(request.error_detail.message)
            else:
                watch.acked, watch.acked_names, watch.refused = watch.sent, watch.sent_names, ""
        # Asked for more than was sent, or asks again for the same (a cluster warms anew).
        more = kind == ENDPOINT and (names & self._wanted[kind][1].keys()) - watch.sent_names
        self._offer(stream, kind, again=bool(more) or not (answer or stale))

    def _collect(self, messages: Iterator[Any], _context: Any) -> Any:
        for message in messages:
            entries = message.http_logs.log_entry
            rows = [dict(entry.common_properties.custom_tags) for entry in entries]
            self._deliver(samples(rows))
        return self._schema.kind(_ALS + "StreamAccessLogsResponse")()


def _service() -> Json:
    back_off = {"base_interval": "0.1s", "max_interval": "1s"}
    return {"envoy_grpc": {"cluster_name": _CONTROL, "retry_policy": {"retry_back_off": back_off}}}


def _access_log(row: Mapping[str, str]) -> Json:
    return {
        "name": "envoy.access_loggers.http_grpc",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.grpc.v3."
            "HttpGrpcAccessLogConfig",
            "common_config": {
                "log_name": TABLE,
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": _CONTROL}},
                "buffer_flush_interval": "0.1s",
                "custom_tags": [{"tag": tag, "value": text} for tag, text in row.items()],
            },
        },
    }


def _control_cluster(socket: Path) -> Json:
    protocol = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    endpoint = {"address": {"pipe": {"path": str(socket)}}}
    return {
        "name": _CONTROL,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": _CONTROL,
            "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": protocol,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }

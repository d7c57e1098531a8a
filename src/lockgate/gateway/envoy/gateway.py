"""The gateway on a real Envoy, on one machine.

What should be in force is kept in `state.json`, written before it is pushed, so that a control
plane that was killed goes on from there: it adopts the running proxy and never shows it an empty
state. Two transports push: `Ads` (gRPC, acknowledged) and `Files`.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lockgate.core import canonical
from lockgate.core.errors import IntegrityError, PermanentError, PortError, TemporaryError
from lockgate.core.traffic import Endpoint, Sample
from lockgate.gateway.api import (
    GatewayView,
    PoolView,
    RouteSpec,
    SampleSink,
    check_removal,
    check_route,
    route_view,
)
from lockgate.gateway.envoy.ads import AdsTransport
from lockgate.gateway.envoy.config import bootstrap, resources
from lockgate.gateway.envoy.files import FilesTransport
from lockgate.gateway.envoy.process import Admin, Proxy, check_port, check_socket, own
from lockgate.gateway.envoy.schema import Schema, find_binary
from lockgate.gateway.envoy.values import (
    SCORES_SOCKET,
    EnvoyOptions,
    Sockets,
    State,
    Transport,
    pool_key,
    pool_name,
    state_from_json,
    state_to_json,
)
from lockgate.store.durable import write_durably

_LOG = logging.getLogger(__name__)
_FLUSH_S = 0.2


class EnvoyGateway:
    """Drives one Envoy; see `Gateway` for the verbs.

    `state_dir` keeps what is in force, the proxy's lock and its log; `run_dir` the two sockets
    (its path must be short). `port` 0 takes a free port once and keeps it in the state. A proxy
    that already runs over `state_dir` is adopted without a restart.

    Raises ConflictError when another control plane drives this proxy, PermanentError when the
    proxy can't run with this configuration, TemporaryError when it is not ready in time.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        run_dir: Path,
        sink: SampleSink,
        host: str = "127.0.0.1",
        port: int = 0,
        mode: Literal["ads", "files"] = "ads",
        options: EnvoyOptions | None = None,
        binary: Path | None = None,
    ) -> None:
        self._options = options or EnvoyOptions()
        self._sink = sink
        self._lock = threading.RLock()
        self._waiting: dict[tuple[str, str], frozenset[Endpoint]] = {}
        for directory in (state_dir, run_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        run_dir.chmod(0o700)
        admin_socket = check_socket(run_dir / "admin.sock")
        control_socket = check_socket(run_dir / "control.sock")
        copies = [str(check_socket(run_dir / name)) for name in ("mirror.sock", SCORES_SOCKET)]
        sockets = Sockets(admin=str(admin_socket), mirror=copies[0], scores=copies[1])
        self._state_dir = state_dir
        self._owner = own(state_dir / "control.lock")
        binary = binary or find_binary()
        schema = Schema(binary, state_dir)
        self._admin = Admin(admin_socket)
        kept = self._load()
        self._desired = self._acked = kept
        self._place = {"mode": mode, "host": host, "run_dir": str(run_dir.absolute())}
        try:
            self._host, self._port = host, self._choose_port(host, port)
        except BaseException:
            self._admin.close()
            self._owner.release()
            raise
        self._proxy = Proxy(argv=self._argv(binary), state_dir=state_dir)
        self._adopted = self._proxy.alive()
        if not self._adopted:
            try:
                check_port(self._host, self._port)
            except PermanentError:
                self._owner.release()
                raise
        self._transport = self._make_transport(mode, control_socket, schema)
        try:
            self._begin(schema, sockets)
        except BaseException:
            if not self._adopted:
                self._proxy.stop()  # nobody else would
            self._release()
            raise

    @property
    def address(self) -> str:
        """Where callers reach the gateway: `http://host:port`."""
        return f"http://{self._host}:{self._port}"

    @property
    def pid(self) -> int | None:
        """The proxy's process id."""
        return self._proxy.pid()

    @property
    def restarts(self) -> int:
        """How often the proxy died and was started again since we began."""
        return self._proxy.restarts

    def set_pool(self, route: str, version: str, endpoints: Sequence[Endpoint]) -> None:
        """Makes exactly `endpoints` the pool; returns when the new ones are healthy as well."""
        with self._lock:
            key, wanted = (route, version), tuple(sorted(set(endpoints)))
            known = self._desired.pools.get(key, ())
            self._waiting[key] = frozenset(wanted) & (
                self._waiting.get(key, frozenset()) | (frozenset(wanted) - frozenset(known))
            )
            self._apply(replace(self._desired, pools={**self._desired.pools, key: wanted}))
        self._await_healthy(key)

    def set_route(self, spec: RouteSpec) -> int:
        """Makes `spec.weights` the split of the route; returns the revision now in force."""
        with self._lock:
            routes = {name: old for name, (old, _) in self._desired.routes.items()}
            check_route(spec, self._desired.pools, routes)
            current = self._desired.routes.get(spec.name)
            if current and current[0] == spec:
                self._apply(self._desired)
                return current[1]
            revision = self._desired.revision + 1
            table = {**self._desired.routes, spec.name: (spec, revision)}
            self._apply(replace(self._desired, routes=table, revision=revision))
            return revision

    def remove_pool(self, route: str, version: str) -> None:
        """Removes the pool of `version`; raises ConflictError while the route gives it weight."""
        with self._lock:
            routes = {name: spec for name, (spec, _) in self._desired.routes.items()}
            check_removal(route, version, routes)
            pools = {k: v for k, v in self._desired.pools.items() if k != (route, version)}
            self._waiting.pop((route, version), None)
            self._apply(replace(self._desired, pools=pools))

    def view(self) -> GatewayView:
        """Returns what every proxy has acknowledged."""
        if self._lock.acquire(blocking=False):  # never wait for a setter that waits for a proxy
            try:
                if self._acked != self._desired and self._transport.settled():
                    self._acked = self._desired
            finally:
                self._lock.release()
        state = self._acked
        active = self._in_flight()
        return GatewayView(
            address=self.address,
            routes={
                name: route_view(spec, revision) for name, (spec, revision) in state.routes.items()
            },
            pools={
                key: PoolView(
                    endpoints=found,
                    in_flight=1 if active is None else active.get(pool_key(pool_name(*key)), 0),
                )
                for key, found in state.pools.items()
            },
            proxies=self._transport.proxies(),
        )

    def close(self, *, stop: bool) -> None:
        """Lets go; with `stop`, lets requests in flight end (at most `drain_s`) and stops Envoy."""
        with self._lock:
            if stop:
                self._proxy.release()
                self._drain()
                self._proxy.stop()
            self._release()

    def _make_transport(self, mode: str, socket_path: Path, schema: Schema) -> Transport:
        if mode == "ads":
            return AdsTransport(
                socket=socket_path, schema=schema, options=self._options, deliver=self._deliver
            )
        return FilesTransport(
            directory=self._state_dir / "xds",
            admin=self._admin,
            options=self._options,
            deliver=self._deliver,
            reason=self._proxy.log_tail,
        )

    def _begin(self, schema: Schema, sockets: Sockets) -> None:
        sources = self._transport.sources()
        start = bootstrap(
            host=self._host,
            port=self._port,
            sockets=sockets,
            options=self._options,
            sources=sources,
        )
        schema.build("envoy.config.bootstrap.v3.Bootstrap", start)
        path, text = self._state_dir / "bootstrap.json", json.dumps(start, indent=1)
        if self._adopted and path.read_text() != text:
            _LOG.warning("new start settings take effect when Envoy is started again")
        write_durably(path, text.encode(), self._state_dir)
        self._transport.start(resources(self._desired, self._options, sources))
        self._proxy.ensure()
        self._await_started()
        try:
            self._transport.apply(resources(self._desired, self._options, sources))
        except PermanentError:
            previous = self._load("previous")
            if previous == self._desired:
                raise
            self._desired = self._acked = previous
            self._transport.apply(resources(previous, self._options, sources))
        self._save(self._desired)
        _LOG.info("Envoy %s at %s", "adopted" if self._adopted else "started", self.address)

    def _await_started(self) -> None:
        deadline = time.monotonic() + self._options.start_timeout_s
        while True:
            try:
                self._admin.get("/server_info")
            except TemporaryError:
                if time.monotonic() > deadline:
                    raise PermanentError(
                        f"Envoy did not start: {self._proxy.log_tail()}",
                        hint="is the port free? see envoy.log in the gateway's state directory",
                    ) from None
                time.sleep(0.03)
            else:
                return

    def _apply(self, state: State) -> None:
        """Makes `state` the one in force, or puts the old one back when it is refused."""
        before = self._desired
        sources = self._transport.sources()
        if state != before:
            self._save(state, before)
        self._desired = state
        try:
            self._transport.apply(resources(state, self._options, sources))
        except PermanentError:
            # The number goes on: rows of an update that was never confirmed stay apart.
            self._desired = self._acked = replace(self._acked, revision=state.revision)
            self._save(self._desired)
            try:
                self._transport.apply(resources(self._desired, self._options, sources))
            except PortError as error:
                _LOG.warning("the old configuration could not be confirmed: %s", error)
            raise
        self._acked = state

    def _await_healthy(self, key: tuple[str, str]) -> None:
        """Waits until the endpoints that are new in the pool passed a health check."""
        deadline = time.monotonic() + self._options.ready_timeout_s
        name = pool_name(*key)
        while waiting := self._waiting.get(key):
            try:
                usable = self._admin.healthy().get(name, set())
            except TemporaryError:
                usable = set()
            missing = {e for e in waiting if (e.host, e.port) not in usable}
            with self._lock:
                if self._waiting.get(key) == waiting:
                    self._waiting[key] = frozenset(missing)
            if missing and time.monotonic() > deadline:
                names = ", ".join(f"{e.host}:{e.port}" for e in sorted(missing))
                raise TemporaryError(
                    f"{names} did not pass a health check at {self._options.health_path} within "
                    f"{self._options.ready_timeout_s:g} s",
                    hint="the pool is set; the replica gets requests as soon as it answers 200",
                )
            if missing:
                time.sleep(0.02)

    def _in_flight(self) -> dict[str, int] | None:
        """Returns the requests in flight by pool; None when the proxy can't say."""
        try:
            stats = self._admin.stats(r"^cluster\.pool-.*\.upstream_rq_(active|pending_active)$")
        except TemporaryError:
            return None
        active: dict[str, int] = {}
        for name, value in stats.items():
            key = name.split(".")[1]
            active[key] = active.get(key, 0) + int(value)
        return active

    def _drain(self) -> None:
        """Stops to accept and waits for the requests in flight."""
        deadline = time.monotonic() + self._options.drain_s
        try:
            self._admin.post("/drain_listeners?graceful")
            while time.monotonic() < deadline:
                gauge = "http.callers.downstream_rq_active"
                if not self._admin.stats(f"^{gauge}$").get(gauge, 0):
                    break
                time.sleep(0.05)
            time.sleep(2 * _FLUSH_S)  # the last rows are on their way
        except TemporaryError as error:
            _LOG.warning("could not drain: %s", error)

    def _release(self) -> None:
        self._proxy.release()
        self._transport.close()
        self._admin.close()
        self._owner.release()

    def _deliver(self, batch: list[Sample]) -> None:
        if not batch:
            return
        try:
            self._sink(batch)
        except Exception:  # noqa: BLE001 - a broken sink must not end the stream of rows
            _LOG.exception("the sample sink failed; %d samples are lost", len(batch))

    def _argv(self, binary: Path) -> list[str]:
        return [
            str(binary),
            "--config-path",
            str(self._state_dir / "bootstrap.json"),
            "--disable-hot-restart",
            "--concurrency",
            str(self._options.workers),
            "--log-level",
            "warning",
            "--component-log-level",
            "misc:error",
            "--file-flush-interval-msec",
            str(int(_FLUSH_S * 1000)),
            "--drain-time-s",
            "2",
        ]

    def _load(self, which: str = "state") -> State:
        path = self._state_dir / "state.json"
        if not path.exists():
            return State()
        try:
            return state_from_json(json.loads(path.read_text("utf-8"))[which])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"the gateway's state {path} can't be read: {error}",
                hint="remove the file: pools and routes are made anew from the ledger",
            ) from error

    def _save(self, state: State, previous: State | None = None) -> None:
        kept = {
            "state": state_to_json(state),
            "previous": state_to_json(previous or state),
            "port": self._port,
            **self._place,
        }
        write_durably(self._state_dir / "state.json", canonical.encode(kept), self._state_dir)

    def _choose_port(self, host: str, port: int) -> int:
        """Returns the port; raises PermanentError when a running proxy was set up otherwise."""
        path = self._state_dir / "state.json"
        kept = json.loads(path.read_text()) if path.exists() else {}
        wanted = {**self._place, "port": port or kept.get("port", 0)}
        other = [key for key in wanted if key in kept and kept[key] != wanted[key]]
        if other and Proxy(argv=(), state_dir=self._state_dir).alive():
            said = ", ".join(f"{key} {kept[key]} (not {wanted[key]})" for key in other)
            raise PermanentError(
                f"the running proxy was started with {said}",
                hint="open the gateway as before, or stop the proxy first (close with stop=True)",
            )
        return int(wanted["port"]) or _free_port(host)


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])

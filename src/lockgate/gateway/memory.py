"""A gateway in memory: the contract without a proxy, for tests and simulations."""

from __future__ import annotations

from collections.abc import Sequence

from lockgate.core.errors import LockgateError
from lockgate.core.traffic import Endpoint
from lockgate.gateway.api import (
    GatewayView,
    PoolView,
    RouteSpec,
    check_removal,
    check_route,
    route_view,
)


class MemoryGateway:
    """Holds routes and pools in dictionaries; every call is in force at once.

    `fail_next` makes the next setter raise and change nothing; `set_in_flight` says what `view`
    reports for a pool. `calls` lists the setters that changed something, in order.
    """

    def __init__(self, *, address: str = "http://gateway.test") -> None:
        self._address = address
        self._routes: dict[str, tuple[RouteSpec, int]] = {}
        self._pools: dict[tuple[str, str], tuple[Endpoint, ...]] = {}
        self._in_flight: dict[tuple[str, str], int] = {}
        self._failures: list[LockgateError] = []
        self._revision = 0
        self.calls: list[str] = []
        self.closed = False

    def fail_next(self, error: LockgateError) -> None:
        """Makes the next setter raise `error`."""
        self._failures.append(error)

    def set_in_flight(self, route: str, version: str, count: int) -> None:
        """Sets the requests in flight that `view` shows for a pool."""
        self._in_flight[route, version] = count

    def set_pool(self, route: str, version: str, endpoints: Sequence[Endpoint]) -> None:
        """Makes exactly `endpoints` the pool of `version` on `route`."""
        self._may_fail()
        wanted = tuple(sorted(set(endpoints)))
        if self._pools.get((route, version)) != wanted:
            self._pools[route, version] = wanted
            self.calls.append(f"set_pool {route} {version} {len(wanted)}")

    def set_route(self, spec: RouteSpec) -> int:
        """Makes `spec.weights` the split of the route; returns the revision now in force."""
        self._may_fail()
        check_route(spec, self._pools, {name: old for name, (old, _) in self._routes.items()})
        current = self._routes.get(spec.name)
        if current and current[0] == spec:
            return current[1]
        self._revision += 1
        self._routes[spec.name] = (spec, self._revision)
        self.calls.append(f"set_route {spec.name} {dict(spec.weights)}")
        return self._revision

    def remove_pool(self, route: str, version: str) -> None:
        """Removes the pool of `version`; raises ConflictError while the route gives it weight."""
        self._may_fail()
        check_removal(route, version, {name: spec for name, (spec, _) in self._routes.items()})
        if self._pools.pop((route, version), None) is not None:
            self._in_flight.pop((route, version), None)
            self.calls.append(f"remove_pool {route} {version}")

    def view(self) -> GatewayView:
        """Returns what is in force."""
        return GatewayView(
            address=self._address,
            routes={
                name: route_view(spec, revision) for name, (spec, revision) in self._routes.items()
            },
            pools={
                key: PoolView(endpoints=endpoints, in_flight=self._in_flight.get(key, 0))
                for key, endpoints in self._pools.items()
            },
            proxies=1,
        )

    def close(self, *, stop: bool) -> None:
        """Lets go; with `stop` the proxy is gone and with it what it served."""
        self.closed = True
        if stop:
            self.calls.append("stop")

    def _may_fail(self) -> None:
        if self._failures:
            raise self._failures.pop(0)

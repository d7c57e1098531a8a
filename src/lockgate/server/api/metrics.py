"""Our own metrics: a verdict's value and its limit, so that a dashboard can draw both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from lockgate.server.wiring import Control


class _Totals(Collector):
    """Requests and failures per route and version, from the samples."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterable[Metric]:
        labels = ["route", "version"]
        requests = CounterMetricFamily(
            "lockgate_route_requests", "Requests answered.", labels=labels
        )
        failed = CounterMetricFamily("lockgate_route_failures", "Requests failed.", labels=labels)
        for total in self._control.samples.totals():
            requests.add_metric([total.route, total.version], total.requests)
            failed.add_metric([total.route, total.version], total.failed)
        yield requests
        yield failed


class _GivenUp(Collector):
    """Events that hooks will never send, from their places."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def collect(self) -> Iterable[Metric]:
        given_up = CounterMetricFamily(
            "lockgate_hook_given_up", "Events that were given up.", labels=["hook"]
        )
        for name, place in self._control.hooks.places().items():
            given_up.add_metric([name], place.given_up)
        yield given_up


def render(control: Control) -> bytes:
    """Returns the metrics page as it is now."""
    registry = CollectorRegistry()
    registry.register(_Totals(control))
    registry.register(_GivenUp(control))
    view = control.gateway.view()
    _gauges(control, registry)
    failing = Gauge(
        "lockgate_hook_failing_seconds", "Time without a success.", ["hook"], registry=registry
    )
    for name, place in control.hooks.places().items():
        since = place.failing_since
        failing.labels(name).set(0.0 if since is None else control.clock.now() - since)
    Gauge("lockgate_proxies", "Proxies connected.", registry=registry).set(view.proxies)
    weight = Gauge(
        "lockgate_route_weight", "Share in force, 0 to 1.", ["route", "version"], registry=registry
    )
    for name, route in view.routes.items():
        for version, share in route.weights.items():
            weight.labels(name, version).set(share / 10_000)
    return generate_latest(registry)


def _gauges(control: Control, registry: CollectorRegistry) -> None:
    replicas = Gauge(
        "lockgate_replicas", "Replicas by state.", ["route", "version", "state"], registry=registry
    )
    for replica in control.fleet.replicas():
        replicas.labels(replica.route, replica.version, replica.state).inc()
    releases = Gauge("lockgate_releases", "Releases by phase.", ["phase"], registry=registry)
    labels = ["release", "check"]
    value = Gauge("lockgate_check_value", "What a check measured.", labels, registry=registry)
    limit = Gauge("lockgate_check_limit", "The worst it allows.", labels, registry=registry)
    for release in control.engine.book().releases.values():
        releases.labels(release.phase).inc()
        for check in release.verdict.checks if release.verdict and not release.final else ():
            if check.value is not None and check.limit is not None:
                value.labels(release.id, check.check).set(check.value)
                limit.labels(release.id, check.check).set(check.limit)

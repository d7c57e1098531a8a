"""The metrics of a serving process; every runtime of ours has these names."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
_TOKEN_SECONDS = (
    0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025,
    0.05, 0.1, 0.25, 1.0,
)  # fmt: skip


class Metrics:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "lockgate_requests", "Requests answered.", ["route", "code"], registry=registry
        )
        self.duration = Histogram(
            "lockgate_request_duration_seconds",
            "From a request's arrival to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token = Histogram(
            "lockgate_time_to_first_token_seconds",
            "From a request's arrival to its first token.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.per_token = Histogram(
            "lockgate_time_per_output_token_seconds",
            "Mean time between an answer's tokens, first to last.",
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "lockgate_tokens", "Tokens read and written.", ["kind"], registry=registry
        )
        self.running = Gauge("lockgate_requests_running", "Requests now served.", registry=registry)
        self.waiting = Gauge(
            "lockgate_requests_waiting", "Requests without a slot.", registry=registry
        )
        for kind in ("prompt", "completion"):
            self.tokens.labels(kind)

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Reads both gauges from these functions from now on."""
        self.running.set_function(running)
        self.waiting.set_function(waiting)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts one answer."""
        self.requests.labels(route, str(status)).inc()
        self.duration.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Returns all of it in Prometheus' text format."""
        return generate_latest(self._registry)

"""Prometheus metrics of the HTTP service, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and histograms."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self._requests = Counter("recpipe_requests", "Requests by status", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "recpipe_request_seconds",
            "Seconds from the headers of a request to the end of its answer",
            ["path"],
            buckets=SECONDS,
            registry=registry,
        )
        self._batches = Histogram(
            "recpipe_batch_users",
            "Users whose lists are computed together",
            ["model"],
            buckets=USERS,
            registry=registry,
        )
        self._users = Counter("recpipe_users", "Users that got a list", ["model", "source"], registry=registry)
        self._unknown = Counter(
            "recpipe_unknown_items", "Events of items that a model does not know", ["model"], registry=registry
        )
        self._reloads = Counter(
            "recpipe_reloads", "Bundles taken up or refused", ["model", "result"], registry=registry
        )

    def add_gauges(self, gauges: Callable[[], Iterator[Metric]]) -> None:
        """Add values that ``gauges`` yields at the time of a scrape."""
        self._registry.register(_State(gauges))

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, model: str, users: int) -> None:
        """Count one batch."""
        self._batches.labels(model).observe(users)

    def users(self, model: str, source: str, count: int) -> None:
        """Count users by the source of their lists."""
        self._users.labels(model, source).inc(count)

    def unknown_items(self, model: str, count: int) -> None:
        """Count events of unknown items."""
        self._unknown.labels(model).inc(count)

    def reload(self, model: str, result: str) -> None:
        """Count a bundle that was ``loaded`` or ``refused``."""
        self._reloads.labels(model, result).inc()

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)


class _State(Collector):
    def __init__(self, state: Callable[[], Iterator[Metric]]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        return self._state()


def gauge(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> Metric:
    """Return a gauge; ``values`` by the tuple of their labels."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for label_values, value in values.items():
        family.add_metric(list(label_values), float(value))
    return family

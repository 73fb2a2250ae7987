"""The Prometheus metrics of calls. Times are in seconds."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter as Counted
from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from credit_service.runtime.metrics_port import LATENCY_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric


class Calls(Collector):
    """Counts calls and how long they took.

    One thread counts and another collects. The counters of prometheus_client,
    which any thread may change, take five times as long.
    """

    def __init__(self) -> None:
        """Begins at zero."""
        self._answered: Counted[tuple[str, str, str]] = Counted()
        self._slower: dict[str, list[int]] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def count(self, method: str, code: str, reason: str, seconds: float | None) -> None:
        """Counts a call.

        Args:
            method: its name.
            code: the name of its gRPC status.
            reason: of the refusal; empty: it was not refused.
            seconds: how long it took; None for a stream, because its length means nothing.
        """
        self._answered[method, code, reason] += 1
        if seconds is not None:
            buckets = self._slower.get(method)
            if buckets is None:
                buckets = self._slower[method] = [0] * (len(LATENCY_BUCKETS) + 1)
            buckets[bisect_left(LATENCY_BUCKETS, seconds)] += 1
            self._seconds[method] += seconds

    def describe(self) -> Iterator[Metric]:
        """Yields the metrics of a scrape; the registry reads their names."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """Yields the two metrics for a scrape."""
        answered = CounterMetricFamily(
            "credit_calls",
            "Calls answered, by method, status code and reason.",
            labels=("method", "code", "reason"),
        )
        for labels, number in list(self._answered.items()):
            answered.add_metric(labels, number)
        yield answered
        took = HistogramMetricFamily(
            "credit_call_seconds",
            "Time to answer a call; streams are left out.",
            labels=("method",),
        )
        for method, buckets in list(self._slower.items()):
            heaps = accumulate(buckets)
            bounds = (*(str(float(bound)) for bound in LATENCY_BUCKETS), "+Inf")
            took.add_metric((method,), list(zip(bounds, heaps, strict=True)), self._seconds[method])
        yield took


CALLS = Calls()
REGISTRY.register(CALLS)
REPLAYS = Counter("credit_replays", "Writes answered with an earlier entry.", ("method",))
REFUSALS = Counter("credit_refusals", "Calls refused for good, by reason.", ("method", "reason"))

OPEN_CALLS = Gauge(
    "credit_open_calls", "Calls being answered, until their answers are sent; streams are left out."
)
OPEN_STREAMS = Gauge("credit_open_streams", "Streams open at present, such as watches of accounts.")
UNSENT_BYTES = Gauge("credit_unsent_bytes", "Answers that wait until their callers read them.")

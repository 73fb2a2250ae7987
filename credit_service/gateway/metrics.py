"""The gateway's metrics for Prometheus. Times are in seconds."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter(
    "credit_gateway_requests",
    "Requests answered, by route, method, HTTP status and reason.",
    ("route", "method", "status", "reason"),
)
REQUEST_SECONDS = Histogram(
    "credit_gateway_request_seconds",
    "Time from the head of a request to its answer, by route; streams are left out.",
    ("route",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
STREAMS = Gauge("credit_gateway_streams", "Open streams.")
WATCHES = Gauge("credit_gateway_watches", "Users watched at the service for open streams.")
STREAM_ENDS = Counter(
    "credit_gateway_stream_ends",
    "Streams that ended, by reason; gone: the page left; slow: the page stopped reading.",
    ("reason",),
)
ALERTS = Counter(
    "credit_gateway_alerts",
    "Failures that only an operator can resolve, by reason; should stay at 0.",
    ("reason",),
)
READY = Gauge("credit_gateway_ready", "1 while the credit service answers the gateway, else 0.")

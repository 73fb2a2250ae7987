"""What the relay measures about itself, in Prometheus' form."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from credit_service.runtime.metrics_port import LATENCY_BUCKETS

ACTIVE = Gauge("credit_relay_active", "1 in the process that sends webhooks.")
ATTEMPTS = Counter(
    "credit_relay_attempts", "Attempts to send an event, by how they ended.", ("endpoint", "result")
)
ATTEMPT_SECONDS = Histogram(
    "credit_relay_attempt_seconds", "Time of an attempt.", ("endpoint",), buckets=LATENCY_BUCKETS
)
LAG_SECONDS = Gauge(
    "credit_relay_lag_seconds",
    "Age of the oldest event that was neither taken nor parked; 0 if there is none.",
    ("endpoint",),
)
PARKED = Gauge(
    "credit_relay_parked_events",
    "Parked events, which are tried again later; counted up to 100,000.",
    ("endpoint",),
)
DEAD = Gauge(
    "credit_relay_dead_events",
    "Events that were given up and are still listed; counted up to 100,000.",
    ("endpoint",),
)
FAILING = Gauge(
    "credit_relay_failing", "1 while an endpoint takes nothing and events wait.", ("endpoint",)
)


def forget(endpoint: str) -> None:
    """Drops the gauges of an endpoint that this process no longer sends to."""
    for gauge in (LAG_SECONDS, PARKED, DEAD, FAILING):
        gauge.remove(endpoint)

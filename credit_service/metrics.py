"""What the service measures about itself, in Prometheus' form. Times are in seconds."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

CALLS = Counter(
    "credit_calls",
    "Calls answered, by method, status code and reason.",
    ("method", "code", "reason"),
)
CALL_SECONDS = Histogram(
    "credit_call_seconds",
    "Time to answer a call; streams are left out.",
    ("method",),
    buckets=_LATENCY_BUCKETS,
)
REPLAYS = Counter("credit_replays", "Writes answered with an earlier entry.", ("method",))
REFUSALS = Counter("credit_refusals", "Calls refused for good, by reason.", ("method", "reason"))
CREDITS = Counter("credit_credits", "Credits moved by new entries, by type of entry.", ("type",))

QUEUED = Gauge("credit_lane_queue_commands", "Commands waiting for a batch, by lane.", ("lane",))
BATCH_COMMANDS = Histogram(
    "credit_lane_batch_commands",
    "Commands per batch.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
BATCH_SECONDS = Histogram(
    "credit_lane_batch_seconds", "Time of a batch, retries included.", buckets=_LATENCY_BUCKETS
)
BATCH_FAULTS = Counter(
    "credit_lane_batch_faults", "Batches that had to be run again, split or given up.", ("fault",)
)

POOL_CONNECTIONS = Gauge(
    "credit_pool_connections", "Connections of the reads' pool, by state.", ("state",)
)
SERVING = Gauge("credit_serving", "1 while the database answers and calls are served, else 0.")

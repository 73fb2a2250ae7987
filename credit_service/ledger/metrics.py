"""What the ledger measures about itself, in Prometheus' form. Times are in seconds."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from credit_service.runtime.metrics_port import LATENCY_BUCKETS

CREDITS = Counter("credit_credits", "Credits moved by new entries, by type of entry.", ("type",))

QUEUED = Gauge("credit_lane_queue_commands", "Commands waiting for a batch, by lane.", ("lane",))
BATCH_COMMANDS = Histogram(
    "credit_lane_batch_commands",
    "Commands per batch.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500),
)
BATCH_SECONDS = Histogram(
    "credit_lane_batch_seconds", "Time of a batch, retries included.", buckets=LATENCY_BUCKETS
)
BATCH_FAULTS = Counter(
    "credit_lane_batch_faults", "Batches that had to be run again, split or given up.", ("fault",)
)

POOL_CONNECTIONS = Gauge(
    "credit_pool_connections", "Connections of the reads' pool, by state.", ("state",)
)

FEED_WAITING_ENTRIES = Gauge(
    "credit_feed_waiting_entries",
    "Committed entries that readers of the feed cannot get yet; at most 10,000 are counted.",
)
FEED_LAG_SECONDS = Gauge(
    "credit_feed_lag_seconds", "How long the first of these entries has been waiting."
)
FEED_HOLDER_SECONDS = Gauge(
    "credit_feed_holder_seconds",
    "Age of the open transaction that the feed has been waiting for, once it waits for 10 seconds.",
)
FEED_STANDING = Gauge(
    "credit_feed_standing",
    "1 while the feed waits for `credit-service feed advance` after a failover or restore.",
)

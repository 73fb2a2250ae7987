"""The bridge's metrics for Prometheus. Times are in seconds."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

EVENTS = Counter(
    "stripe_bridge_events",
    "Webhook requests answered, by type of event, HTTP status, outcome and reason.",
    ("type", "status", "outcome", "reason"),
)
EVENT_SECONDS = Histogram(
    "stripe_bridge_event_seconds",
    "Time from the head of a webhook request to its answer.",
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 8, 10),
)
ALERTS = Counter(
    "stripe_bridge_alerts",
    "Problems for a person, because no retry resolves them, by reason; should stay at 0.",
    ("reason",),
)
PARKED = Counter(
    "stripe_bridge_parked",
    "Events answered 200 although unresolved, because of their age; reconcile finds them again.",
    ("reason",),
)
IN_FLIGHT = Gauge("stripe_bridge_in_flight_events", "Events being settled.")
CHECKOUTS = Counter(
    "stripe_bridge_checkouts",
    "Requests for Checkout Sessions answered, by HTTP status and reason.",
    ("status", "reason"),
)
CHECKOUT_READS = Counter(
    "stripe_bridge_checkout_reads",
    "Requests for the status of a checkout answered, by HTTP status and reason.",
    ("status", "reason"),
)
PORTALS = Counter(
    "stripe_bridge_portals",
    "Requests for sessions of Stripe's billing portal answered, by HTTP status and reason.",
    ("status", "reason"),
)
READY = Gauge("stripe_bridge_ready", "1 while the credit service answers the bridge, else 0.")
POLLED = Counter(
    "stripe_bridge_polled_events",
    "Events that the poller settled, by outcome and reason; committed ones had been lost.",
    ("outcome", "reason"),
)
POLLS_FAILED = Counter(
    "stripe_bridge_failed_polls", "How often Stripe's newest events could not be polled."
)
POLLED_UNTIL = Gauge(
    "stripe_bridge_polled_until_seconds",
    "Unix time up to which every event that Stripe has listed is settled.",
)
TOP_UPS = Counter(
    "stripe_bridge_top_ups",
    "Results of the work on requests for top-ups, by outcome and reason.",
    ("outcome", "reason"),
)
OPEN_TOP_UPS = Gauge("stripe_bridge_open_top_ups", "Open requests for top-ups in the last round.")
TOP_UP_ROUNDS_FAILED = Counter(
    "stripe_bridge_failed_top_up_rounds", "How often a round of requests for top-ups failed."
)

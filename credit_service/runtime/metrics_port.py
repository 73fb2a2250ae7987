"""The port that Prometheus reads."""

from __future__ import annotations

from prometheus_client import Gauge, start_http_server

from credit_service.runtime.start_errors import StartRefusedError

SERVING = Gauge("credit_serving", "1 while the database answers and calls are served, else 0.")

# Bounds of the histograms of requests and batches, in seconds.
LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


def serve_metrics(host: str, port: int | None, *, setting: str) -> None:
    """Serves the metrics of this process from a thread of its own.

    Args:
        host: the address to listen on.
        port: the port that Prometheus reads; None: no metrics.
        setting: the name of the port's setting, which the refusal names.

    Raises:
        StartRefusedError: the port is taken.
    """
    if port is None:
        return
    try:
        start_http_server(port, addr=host)
    except OSError as error:
        raise StartRefusedError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; choose another with"
            f" {setting}"
        ) from error

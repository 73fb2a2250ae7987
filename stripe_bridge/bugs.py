"""How a fault of our own is told."""

from __future__ import annotations

import traceback

import structlog

_log = structlog.get_logger()


def tell(event: str, error: Exception, **facts: object) -> None:
    """Logs where an error came from and its kind.

    Neither its text nor the values at those places, for both might hold something personal.
    """
    frames = traceback.format_tb(error.__traceback__)
    _log.error(event, kind=type(error).__name__, frames=frames, **facts)

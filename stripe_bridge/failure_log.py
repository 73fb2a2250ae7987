"""Logs unexpected errors without anything personal in them."""

from __future__ import annotations

import traceback

import structlog

_log = structlog.get_logger()


def log_failure(event: str, error: Exception, **facts: object) -> None:
    """Logs the kind of an error and where it came from.

    Its text and the values at those places are left out, because they may hold personal data.

    Args:
        event: of the log line.
        error: unexpected.
        facts: further fields of the line.
    """
    frames = traceback.format_tb(error.__traceback__)
    _log.error(event, kind=type(error).__name__, frames=frames, **facts)

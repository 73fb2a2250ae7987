"""How logs look: one line per event, JSON for machines or text for people, to standard error."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable


def configure(
    *, level: str, as_json: bool | None, cleaning: Iterable[structlog.typing.Processor] = ()
) -> None:
    """Sends logs to standard error: a JSON object a line, or text for people.

    Args:
        level: debug, info, warning or error.
        as_json: JSON rather than text; None: JSON unless standard error is a terminal.
        cleaning: what else each event goes through before it is written.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *cleaning,
    ]
    # Local variables would put tokens and metadata into a traceback.
    no_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    rendering: list[structlog.typing.Processor]
    factory: structlog.BytesLoggerFactory | structlog.PrintLoggerFactory
    if as_json:
        rendering = [
            structlog.processors.ExceptionRenderer(no_locals),
            structlog.processors.JSONRenderer(serializer=orjson.dumps),
        ]
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    else:
        plain = structlog.dev.plain_traceback
        rendering = [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=plain, pad_event_to=5
            )
        ]
        factory = structlog.PrintLoggerFactory(sys.stderr)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    # The libraries' own records (asyncio, grpc) take the same way out.
    handler = logging.StreamHandler(sys.stderr)
    foreign: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        *rendering,
    ]
    if as_json:
        foreign[-1] = structlog.processors.JSONRenderer()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=foreign, foreign_pre_chain=shared)
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)

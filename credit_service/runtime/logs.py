"""Logs: a line per event on standard error, as JSON for machines or as text for people."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import logging
import select
import sys
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import orjson
import structlog

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from structlog.typing import EventDict

_log = structlog.get_logger()

_JSON_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE

# How long a line waits for others. With a thousand calls a second ten lines are written at once.
_GATHERING_SECONDS = 0.01


def configure(
    *,
    level: str,
    as_json: bool | None,
    cleaning: Iterable[structlog.typing.Processor] = (),
    everywhere: Mapping[str, object] | None = None,
) -> None:
    """Sends logs to standard error: a JSON object a line, or text for people.

    Args:
        level: debug, info, warning or error.
        as_json: JSON rather than text; None: JSON unless standard error is a terminal.
        cleaning: further processors of each event.
        everywhere: facts for every line.
    """
    if as_json is None:
        as_json = not sys.stderr.isatty()
    number = logging.getLevelNamesMapping()[level.upper()]
    said = dict(everywhere or {})
    shared: list[structlog.typing.Processor] = [
        lambda _logger, _method, event: {**event, **said},
        structlog.processors.add_log_level,
        _stamp if as_json else structlog.processors.TimeStamper(fmt="iso", utc=True),
        *cleaning,
    ]
    # Local variables would put tokens and metadata into tracebacks.
    no_locals = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    _straight.file = None
    rendering: list[structlog.typing.Processor]
    factory: structlog.BytesLoggerFactory | structlog.PrintLoggerFactory
    if as_json:
        file = _Gathered(sys.stderr.buffer)
        shared.append(file.hurry)
        if number <= logging.INFO:
            _straight.file, _straight.said = file, said
        rendering = [
            structlog.processors.ExceptionRenderer(no_locals),
            structlog.processors.JSONRenderer(serializer=_json),
        ]
        factory = structlog.BytesLoggerFactory(cast("BinaryIO", file))
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
    # The records of libraries (asyncio, grpc) are written in the same way.
    handler = logging.StreamHandler(sys.stderr)
    foreign: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        *rendering,
    ]
    if as_json:
        foreign[-1] = structlog.processors.JSONRenderer(
            serializer=lambda *event, **options: _json(*event, **options).decode()
        )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=foreign, foreign_pre_chain=shared)
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)


def print_at_once() -> None:
    """Makes standard output line-buffered, so that progress shows in a pipe or file as well."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)


def info(event: str, facts: dict[str, object]) -> None:
    """Logs an event at level info, as structlog would.

    It is for the line that every call writes, because it takes a fifth of structlog's time.

    Args:
        event: what happened.
        facts: of the line, besides level and time; the dictionary is changed.
    """
    file = _straight.file
    if file is None:
        _log.info(event, **facts)
        return
    facts.update(_straight.said)
    facts["event"] = event
    facts["level"] = "info"
    facts["timestamp"] = datetime.now(UTC)
    file.write(orjson.dumps(facts, None, _JSON_OPTIONS))
    file.flush()


def _stamp(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Adds the time as a datetime, because orjson formats it fastest."""
    event["timestamp"] = datetime.now(UTC)
    return event


def _json(event: EventDict, **options: Any) -> bytes:
    return orjson.dumps(event, options["default"], orjson.OPT_UTC_Z)


class _Gathered:
    """A file to which the lines of a few milliseconds are written together.

    By measurement each write costs several times as much as a line, probably because gRPC's threads
    take the interpreter's lock meanwhile. A warning or worse does not wait, nor do the lines before
    it, and no line waits outside an event loop. A process that is killed loses the lines that wait.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines: list[bytes] = []
        self._hurried = False
        self._due_in: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        atexit.register(self._write_out)

    def hurry(self, _logger: object, method: str, event: EventDict) -> EventDict:
        """Notes from the level of an event whether its line, and those before it, may wait."""
        hurried = method not in {"debug", "info"}
        if hurried:
            # A library's line does not come through this file.
            self._write_out()
        self._hurried = hurried
        return event

    def write(self, line: bytes) -> None:
        with self._lock:
            self._lines.append(line)

    def flush(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self._write_out()
            return
        if self._hurried:
            self._write_out()
        elif self._due_in is not loop:
            self._due_in = loop
            loop.call_later(_GATHERING_SECONDS, self._write_out)

    def _write_out(self) -> None:
        self._hurried, self._due_in = False, None
        with self._lock:
            lines, self._lines = self._lines, []
            for piece in _pieces(lines):
                # Lines that cannot be written are lost: a full disk or a closed pipe must not end
                # the service or fill its memory.
                with contextlib.suppress(OSError):
                    self._file.write(piece)
                    self._file.flush()


def _pieces(lines: list[bytes]) -> Iterator[bytes]:
    """Joins lines up to the size that a pipe writes atomically, because processes may share it."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        if piece and size + len(line) > select.PIPE_BUF:
            yield b"".join(piece)
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield b"".join(piece)


@dataclass(slots=True)
class _Straight:
    """The file that `info` writes to without structlog; None: it uses structlog."""

    file: _Gathered | None = None
    said: Mapping[str, object] = field(default_factory=dict)


_straight = _Straight()

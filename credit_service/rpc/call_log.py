"""One log line and one set of metrics per call.

A line has method, caller, user, key, outcome, reason and milliseconds. Tokens, values of metadata,
descriptions and payments are never logged.
"""

from __future__ import annotations

import sys
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from credit_service.errors import Refusal
from credit_service.rpc import call_metrics
from credit_service.runtime import logs
from credit_service.status import CODES

if TYPE_CHECKING:
    from structlog.typing import EventDict

    from credit_service.errors import CreditError

# A longer field of a log line is cut, because callers choose the content.
_FIELD_LENGTH_MAX = 128


@dataclass(slots=True)
class Call:
    """The facts about a call that are logged and counted when it ends."""

    method: str
    caller: str = ""
    user: str = ""
    key: str = ""
    replayed: bool = False
    streams: bool = False
    many: bool = False
    started: float = field(default_factory=time.perf_counter)

    def answered(self) -> None:
        """Records an OK."""
        self._record("OK", "")
        if self.replayed:
            call_metrics.REPLAYS.labels(self.method).inc()

    def failed(self, error: CreditError) -> None:
        """Records a refusal or a fault."""
        self._record(CODES[type(error)].name, error.reason)
        if isinstance(error, Refusal):
            call_metrics.REFUSALS.labels(self.method, error.reason).inc()

    def abandoned(self) -> None:
        """Records that the caller went away or that its deadline passed."""
        self._record("CANCELLED", "")

    def _record(self, code: str, reason: str) -> None:
        seconds = time.perf_counter() - self.started
        call_metrics.CALLS.count(self.method, code, reason, None if self.streams else seconds)
        facts: dict[str, object] = {"method": self.method, "outcome": code}
        if self.caller:
            facts["caller"] = self.caller
        if self.user:
            facts["user"] = _plain(self.user)
        if self.key:
            facts["key"] = _plain(self.key)
        if self.many:
            facts["many"] = True
        if reason:
            facts["reason"] = reason
        if self.replayed:
            facts["replayed"] = True
        facts["ms"] = round(seconds * 1000, 2)
        logs.info("call", facts)


# The call that the running task answers.
CALL: ContextVar[Call] = ContextVar("call")


def _plain(text: str) -> str:
    """Cuts a caller's text, and escapes what could control a terminal or forge a line."""
    cut = text[:_FIELD_LENGTH_MAX]
    return cut if cut.isprintable() else cut.encode("unicode_escape").decode()


def without_values(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Cuts off the part of a database error that quotes a row or a value."""
    info = event.get("exc_info")
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    while error is not None:
        if isinstance(error, asyncpg.PostgresError):
            error.detail = None
        if isinstance(error, (asyncpg.PostgresError, asyncpg.InterfaceError)) and error.args:
            error.args = (str(error.args[0]).partition(": ")[0],)
        error = error.__cause__ or error.__context__
    return event

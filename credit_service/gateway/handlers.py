"""Wraps every route: the user, the rate limits, the errors, and one line of log."""

from __future__ import annotations

import logging
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from starlette.requests import Request

from credit_service.errors import CreditError
from credit_service.gateway import metrics
from credit_service.gateway.problems import Problem, problem_response, row_of
from credit_service.gateway.streams import EventStream
from credit_service.gateway.users import User

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from credit_service.gateway.browsers import Browsers
    from credit_service.gateway.problems import Row
    from credit_service.gateway.rate_limits import Bucket
    from credit_service.gateway.users import Users

_log = structlog.get_logger()

Personal = Callable[[Request, User], Awaitable["ASGIApp"]]
Public = Callable[[Request], Awaitable["ASGIApp"]]


class Door:
    """Finds the user of a request: checks the browser's headers, then asks the resolver."""

    def __init__(self, users: Users, browsers: Browsers) -> None:
        self._users = users
        self._browsers = browsers

    async def user(self, request: Request) -> User:
        """Finds the user of a request.

        Raises:
            Problem: 401 no user; 403 the page of another site; 503 the user cannot be verified now.
        """
        self._browsers.check(request)
        user = await self._users(request)
        if user is None:
            raise Problem("UNAUTHENTICATED")
        return user


class Handler(ABC):
    """A route: always answers a request, and records it in log and metrics."""

    def __init__(self, path: str, *, logs: bool) -> None:
        """`path` names the route in log and metrics; `logs`: a line for each request."""
        self._path = path
        self._logs = logs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        started = time.monotonic()
        request = Request(scope, receive)
        facts: dict[str, object] = {}
        reason = ""
        try:
            response = await self._answer(request, facts)
        except Problem as problem:
            reason = problem.row.reason
            self._alert(problem.row, facts, str(problem))
            response = problem_response(problem)
        except CreditError as error:
            row = row_of(error)
            reason = row.reason
            self._alert(row, facts, str(error))
            response = problem_response(error)
        except Exception as error:
            # The text may hold anything, so only the kind and the place are logged.
            reason = "INTERNAL"
            frames = traceback.format_tb(error.__traceback__)
            metrics.ALERTS.labels(reason).inc()
            _log.error("bug", path=self._path, kind=type(error).__name__, frames=frames)
            response = problem_response(Problem(reason))
        streamed = isinstance(response, EventStream)
        status = getattr(response, "status_code", int(HTTPStatus.OK))
        metrics.REQUESTS.labels(self._path, request.method, str(status), reason).inc()
        if not streamed:
            metrics.REQUEST_SECONDS.labels(self._path).observe(time.monotonic() - started)
        if self._logs:
            facts |= {"method": request.method, "path": self._path, "status": status}
            if reason:
                facts["reason"] = reason
            facts["ms"] = round((time.monotonic() - started) * 1000, 2)
            _log.info("request", **facts)
        await response(scope, receive, send)

    @abstractmethod
    async def _answer(self, request: Request, facts: dict[str, object], /) -> ASGIApp:
        """Makes the answer; adds facts about the request for the log to `facts`."""

    def _alert(self, row: Row, facts: dict[str, object], problem: str) -> None:
        if row.alerts:
            metrics.ALERTS.labels(row.reason).inc()
            _log.log(logging.ERROR, "request failed", path=self._path, problem=problem, **facts)


class PublicHandler(Handler):
    """A route with the same answer for all users."""

    def __init__(self, path: str, answer: Public, *, logs: bool) -> None:
        super().__init__(path, logs=logs)
        self._public = answer

    async def _answer(self, request: Request, _: dict[str, object]) -> ASGIApp:
        return await self._public(request)


class PersonalHandler(Handler):
    """A route that answers one user, within that user's rate."""

    def __init__(
        self, path: str, answer: Personal, door: Door, bucket: Bucket | None, *, logs: bool
    ) -> None:
        super().__init__(path, logs=logs)
        self._personal = answer
        self._door = door
        self._bucket = bucket

    async def _answer(self, request: Request, facts: dict[str, object]) -> ASGIApp:
        user = await self._door.user(request)
        facts["user"] = str(user.id)
        if self._bucket is not None:
            self._bucket.take(user.id)
        return await self._personal(request, user)

"""The gateway as an ASGI app, to mount or to run by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from credit_service.gateway import files
from credit_service.gateway.account_routes import AccountRoutes
from credit_service.gateway.browsers import Browsers
from credit_service.gateway.handlers import Door, PersonalHandler, PublicHandler
from credit_service.gateway.mounted_signals import MountedSignals
from credit_service.gateway.problems import Problem, problem_response
from credit_service.gateway.purchase_routes import PurchaseRoutes
from credit_service.gateway.rate_limits import Bucket, Limits, Rate
from credit_service.gateway.site_routes import Probes, Site
from credit_service.gateway.streams import Streams

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    from credit_service.client import CreditClient
    from credit_service.gateway.bridge import Bridge
    from credit_service.gateway.handlers import Personal, Public
    from credit_service.gateway.streams import EventStream
    from credit_service.gateway.users import User, Users


class Gateway:
    """Shows users their own credits, over HTTP.

        gateway = Gateway(client, users=SupabaseUsers("https://project.supabase.co"))
        app.mount("/credits", gateway.app)

    Nothing starts before the first request. Call `stop` when the program is about to end, unless
    uvicorn runs it, and `aclose` at the end; or use it as an asynchronous context manager.

    Attributes:
        app: the ASGI app.
        probes: `probes.stopping` lets /readyz say 503.
    """

    def __init__(
        self,
        client: CreditClient,
        *,
        users: Users,
        bridge: Bridge | None = None,
        origins: Collection[str] = (),
        grant_descriptions: bool = False,
        limits: Limits | None = None,
        logs: bool = False,
    ) -> None:
        """Prepares the routes.

        Args:
            client: of the credit service, with the role `web`. The gateway does not close it.
            users: finds the user of a request; there is no default, because only the resolver keeps
                users apart.
            bridge: sells packs; None: nothing is sold. The gateway closes it.
            origins: of pages on other hosts that may send requests, such as
                https://app.example.com.
            grant_descriptions: show users the description of a grant or correction.
            limits: of streams and of requests; None: the defaults.
            logs: write a line of log for each request.
        """
        self._limits = limits or Limits()
        self._browsers = Browsers(origins)
        self._door = Door(users, self._browsers)
        self._users = users
        self._streams = Streams(client, self._limits)
        self._signals = MountedSignals()
        self._logs = logs
        self._account = AccountRoutes(
            client, self._streams, self._limits, grant_descriptions=grant_descriptions
        )
        self.probes = Probes(client)
        self._bridge = bridge
        site = Site(bridge)
        account, purchases = self._account, PurchaseRoutes(bridge, self._streams)
        checkouts = Bucket(self._limits.checkouts)
        app = Starlette(
            routes=[
                self._personal("/account", account.account),
                self._personal("/account/stream", self._stream, self._limits.streams_opened),
                self._personal("/transactions", account.transactions, self._limits.reads),
                self._personal("/holds", account.holds, self._limits.reads),
                self._personal("/prices", account.prices),
                self._personal("/quotes", account.quote, self._limits.quotes, method="POST"),
                self._personal("/usage", account.usage, self._limits.usage),
                self._personal("/packs", purchases.packs),
                self._personal("/checkouts", purchases.open, checkouts, method="POST"),
                self._personal("/checkouts/{id}", purchases.state, checkouts),
                self._personal(
                    "/checkouts/{id}/refresh", purchases.refresh, checkouts, method="POST"
                ),
                self._personal("/portal", purchases.portal, checkouts, method="POST"),
                self._public("/config", site.config),
                self._public("/healthz", self.probes.health),
                self._public("/readyz", self.probes.ready),
                *(self._public(f"/{each.name}", each.latest) for each in files.packaged()),
                *(
                    self._public(f"/{each.hashed_name}", each.immutable)
                    for each in files.packaged()
                    if each.is_script
                ),
            ],
            middleware=[Middleware(_Wrapping, self._browsers)],
            exception_handlers={HTTPException: _no_such_route},
        )
        # A redirect would name a host, and behind a proxy the wrong one.
        app.router.redirect_slashes = False
        self.app = app

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def streams_open(self) -> int:
        """How many streams are open."""
        return self._streams.count

    def stop(self) -> None:
        """Ends every stream with `event: end` and refuses new ones; other requests go on."""
        self._streams.stop()

    async def aclose(self) -> None:
        """Stops, and closes what the gateway has opened."""
        await self._streams.aclose()
        self._signals.release()
        for owned in (self._users, self._bridge):
            close = getattr(owned, "aclose", None)
            if close is not None:
                await close()

    async def _stream(self, request: Request, user: User) -> EventStream:
        self._signals.chain(asyncio.get_running_loop(), self.stop)
        return await self._account.stream(request, user)

    def _personal(
        self,
        path: str,
        answer: Personal,
        limit: Rate | Bucket | None = None,
        *,
        method: str = "GET",
    ) -> Route:
        bucket = Bucket(limit) if isinstance(limit, Rate) else limit
        handler = PersonalHandler(path, answer, self._door, bucket, logs=self._logs)
        return Route(path, handler, methods=[method])

    def _public(self, path: str, answer: Public) -> Route:
        return Route(path, PublicHandler(path, answer, logs=False), methods=["GET"])


class _Wrapping:
    """`Browsers.wrap` as a middleware of Starlette."""

    def __init__(self, app: ASGIApp, browsers: Browsers) -> None:
        self._app = browsers.wrap(app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _no_such_route(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  # Starlette chooses by this class
    reason = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "NOT_FOUND")
    return problem_response(Problem(reason, headers=error.headers))

"""A page with every element, and the gateway mounted beside it, to look at in a browser."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from kit.gateways import named_users
from kit.web_hosts import serving
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from credit_service.client import CreditClient
from credit_service.gateway import Bridge, Gateway, Limits, Rate
from credit_service.gateway.users import Users

LIMITS = Limits(link_seconds=0.2, streams_opened=Rate(1000, 1000), checkouts=Rate(1000, 1000))

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none';"
    " require-trusted-types-for 'script'; report-uri /reports"
)

_ICON = '<svg xmlns="http://www.w3.org/2000/svg"/>'
_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Credits</title><link rel="icon" href="icon.svg">
<script type="module" src="credits/credits.js"></script>
<script type="module" src="page.js"></script></head>
<body><credits-provider base="/credits/">
<credits-return></credits-return>
<credits-low></credits-low>
<credits-balance></credits-balance>
<credits-cost items="stem_separation:1,render:3"></credits-cost>
<credits-shortfall></credits-shortfall>
<credits-packs></credits-packs>
<credits-usage></credits-usage>
<credits-history limit="2"></credits-history>
</credits-provider></body>
</html>"""

# The page notes every balance that it ever showed, so that a test sees even a short-lived one.
_SCRIPT = """
globalThis.shown = [];
globalThis.violations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  violations.push(event.violatedDirective);
});
const provider = document.querySelector("credits-provider");
provider.token = async ({ fresh }) => (await (await fetch(`/token?fresh=${fresh}`)).text()) || null;
const balance = document.querySelector("credits-balance").shadowRoot;
provider.store.subscribe(() => shown.push(balance.querySelector("[part~=value]").textContent));
"""


@dataclass
class Site:
    """The state of the page's own server.

    Attributes:
        token: the token that the page is given.
        fresh_token: the token that it gets when it asks for a fresh one, and keeps from then on.
        renewals: how often it asked for a fresh one.
        reports: of the content security policy.
        routes: further ones of the page's own server; they come first.
    """

    token: str = ""
    fresh_token: str | None = None
    renewals: int = 0
    reports: list[dict] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)

    def signs_in(self, user_id: object, expires_at: float | None = None) -> None:
        """Gives the page the token of a user."""
        self.token = f"{user_id}" if expires_at is None else f"{user_id}@{expires_at}"

    async def give_token(self, request: Request) -> Response:
        if request.query_params["fresh"] == "true":
            self.renewals += 1
            self.token = self.token if self.fresh_token is None else self.fresh_token
        return PlainTextResponse(self.token, headers={"Cache-Control": "no-store"})

    async def take_report(self, request: Request) -> Response:
        self.reports.append(json.loads(await request.body())["csp-report"])
        return Response(status_code=204)


def file(content: str, kind: str, policy: str = POLICY) -> Callable[[Request], Awaitable[Response]]:
    """Answers with a file of the page, under a content security policy."""

    async def answer(_: Request) -> Response:
        headers = {"Content-Security-Policy": policy, "Cache-Control": "no-store"}
        return Response(content, media_type=kind, headers=headers)

    return answer


@asynccontextmanager
async def running_site(
    site: Site,
    target: str,
    *,
    port: int = 0,
    bridge: Bridge | None = None,
    users: Users = named_users,
) -> AsyncIterator[str]:
    """Serves the page for the length of the block; yields its address.

    Args:
        site: the state of the page's own server.
        target: host:port of the credit service.
        port: to listen on; 0 takes any free one.
        bridge: sells packs; it is closed with the site.
        users: finds the user of a request; by default the token names the user.
    """

    async with CreditClient(target) as client:
        gateway = Gateway(client, users=users, bridge=bridge, limits=LIMITS)
        app = Starlette(
            routes=[
                *site.routes,
                Route("/", file(_PAGE, "text/html")),
                Route("/page.js", file(_SCRIPT, "text/javascript")),
                Route("/icon.svg", file(_ICON, "image/svg+xml")),
                Route("/token", site.give_token),
                Route("/reports", site.take_report, methods=["POST"]),
                Mount("/credits", gateway.app),
            ]
        )
        async with gateway, serving(app, port=port, lifespan="off") as url:
            try:
                yield url
            finally:
                gateway.stop()

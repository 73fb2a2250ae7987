"""The routes that sell: packs, checkouts and their states, the billing portal."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from credit_service.gateway import render, requests
from credit_service.gateway.account_routes import personal
from credit_service.gateway.problems import Problem
from credit_service.gateway.requests import Query

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from credit_service.gateway.bridge import Bridge
    from credit_service.gateway.streams import Streams
    from credit_service.gateway.users import User

_CHECKOUT_ID = re.compile(r"cs_(test_|live_)?[A-Za-z0-9]{10,200}")
_PACK_LENGTH_MAX = 64


class PurchaseRoutes:
    """Sells packs to users, through the bridge; without a bridge nothing is sold."""

    def __init__(self, bridge: Bridge | None, streams: Streams) -> None:
        self._configured = bridge
        self._streams = streams

    @property
    def _bridge(self) -> Bridge:
        if self._configured is None:
            raise Problem("NOT_SOLD_HERE")
        return self._configured

    async def packs(self, request: Request, _: User) -> Response:
        """Answers `GET /packs`."""
        Query(request)
        return personal({"items": [asdict(pack) for pack in await self._bridge.packs()]})

    async def open(self, request: Request, user: User) -> Response:
        """Answers `POST /checkouts`."""
        Query(request)
        key = requests.idempotency_key(request)
        fields = await requests.json_object(request, "pack", "quantity", "save_card")
        checkout = await self._bridge.open_checkout(
            user.id,
            requests.text(fields, "pack", length_max=_PACK_LENGTH_MAX),
            requests.amount(fields, "quantity", "quantity", 1),
            key,
            save_card=requests.flag(fields, "save_card"),
        )
        until = datetime.fromtimestamp(checkout.expires_at, UTC)
        return personal(
            {"id": checkout.id, "url": checkout.url, "expires_at": render.time(until)}, 201
        )

    async def state(self, request: Request, user: User) -> Response:
        """Answers `GET /checkouts/{id}`: reads only."""
        Query(request)
        return personal(asdict(await self._bridge.checkout(user.id, _checkout_id(request))))

    async def refresh(self, request: Request, user: User) -> Response:
        """Answers `POST /checkouts/{id}/refresh`: settles it first."""
        Query(request)
        await requests.no_body(request)
        state = await self._bridge.refresh_checkout(user.id, _checkout_id(request))
        if state.state == "credited":
            # The first purchase adds the user to the service.
            self._streams.look_again(user.id)
        return personal(asdict(state))

    async def portal(self, request: Request, user: User) -> Response:
        """Answers `POST /portal`."""
        Query(request)
        await requests.no_body(request)
        return personal({"url": await self._bridge.portal(user.id)})


def _checkout_id(request: Request) -> str:
    checkout_id = str(request.path_params["id"])
    if not _CHECKOUT_ID.fullmatch(checkout_id):
        raise Problem("UNKNOWN_CHECKOUT")
    return checkout_id

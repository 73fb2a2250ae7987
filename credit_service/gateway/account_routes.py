"""The routes that read: the account, its stream, history, holds, prices, quotes, usage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import orjson
from starlette.responses import Response

from credit_service.errors import InvalidRequest, LedgerUnavailable, UserNotFound
from credit_service.gateway import render, requests
from credit_service.gateway.problems import invalid
from credit_service.gateway.requests import Query
from credit_service.gateway.streams import EventStream
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from starlette.requests import Request

    from credit_service.client import CreditClient
    from credit_service.gateway.rate_limits import Limits
    from credit_service.gateway.streams import Streams
    from credit_service.gateway.users import User

# The maximum of the contract.
_QUOTE_ITEMS_MAX = 100

# A page does not wait longer for a report.
_USAGE_SECONDS = 10.0

_PERSONAL = {"Cache-Control": "no-store, no-transform", "Vary": "Authorization, Cookie, Origin"}

# The names of fields in the service, and their names in the gateway.
_FIELD_NAMES = {"page_token": "cursor", "page_size": "limit", "types": "type"}


def personal(value: object, status: int = 200) -> Response:
    """Makes an answer for one user, which no cache may keep."""
    return Response(orjson.dumps(value), status, _PERSONAL, media_type="application/json")


class AccountRoutes:
    """Answers what one user may know. Every answer is read after its request arrived."""

    def __init__(
        self, client: CreditClient, streams: Streams, limits: Limits, *, grant_descriptions: bool
    ) -> None:
        self._client = client
        self._streams = streams
        self._limits = limits
        self._grant_descriptions = grant_descriptions

    async def account(self, request: Request, user: User) -> Response:
        """Answers `GET /account`."""
        Query(request)
        return personal(render.account(await self._credit(user)))

    async def stream(self, request: Request, user: User) -> EventStream:
        """Answers `GET /account/stream`."""
        Query(request)
        return EventStream(self._streams, self._streams.open(user), self._limits)

    async def transactions(self, request: Request, user: User) -> Response:
        """Answers `GET /transactions`."""
        query = Query(request, "limit", "cursor", "type")
        types = query.all("type")
        for name in types:
            if name not in render.TYPES:
                raise invalid("type", f"must be one of {', '.join(render.TYPES)}.")
        try:
            page = await self._client.get_history_page(
                user.id,
                page_size=query.limit(),
                page_token=query.cursor(),
                types=[render.TYPES[name] for name in types],
            )
        except UserNotFound:
            page = pb.GetTransactionHistoryResponse()
        except InvalidRequest as refusal:
            raise _translated(refusal) from None
        items = [
            render.transaction(entry, grant_descriptions=self._grant_descriptions)
            for entry in page.transactions
        ]
        return personal({"items": items, "next_cursor": page.next_page_token or None})

    async def holds(self, request: Request, user: User) -> Response:
        """Answers `GET /holds`: those that are open."""
        query = Query(request, "limit", "cursor")
        try:
            page = await self._client.list_holds_page(
                user.id,
                state=pb.HOLD_STATE_HELD,
                page_size=query.limit(),
                page_token=query.cursor(),
            )
        except UserNotFound:
            page = pb.ListHoldsResponse()
        except InvalidRequest as refusal:
            raise _translated(refusal) from None
        items = [render.hold(held) for held in page.holds]
        return personal({"items": items, "next_cursor": page.next_page_token or None})

    async def prices(self, request: Request, _: User) -> Response:
        """Answers `GET /prices`."""
        Query(request)
        return personal(render.prices(await self._client.list_prices()))

    async def quote(self, request: Request, user: User) -> Response:
        """Answers `POST /quotes`."""
        Query(request)
        fields = await requests.json_object(request, "items")
        charges = requests.charges(fields, items_max=_QUOTE_ITEMS_MAX)
        quoted, credit = await asyncio.gather(self._client.quote_cost(charges), self._credit(user))
        return personal(render.quote(quoted, credit))

    async def usage(self, request: Request, user: User) -> Response:
        """Answers `GET /usage`."""
        first, last = Query(request, "from", "to").days()
        start = datetime(first.year, first.month, first.day, tzinfo=UTC)
        end = datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1)
        try:
            async with asyncio.timeout(_USAGE_SECONDS):
                lines = await self._client.get_usage_report(start, end, user_id=user.id)
        except TimeoutError:
            raise LedgerUnavailable from None
        except UserNotFound:
            lines = []
        return personal(
            {"from": first.isoformat(), "to": last.isoformat(), "days": render.usage(lines)}
        )

    async def _credit(self, user: User) -> pb.UserCredit:
        """Reads the account; the account of a user unknown to the service is empty."""
        try:
            return await self._client.get_user_credit(user.id)
        except UserNotFound:
            return render.NO_ACCOUNT


def _translated(refusal: InvalidRequest) -> InvalidRequest:
    """Gives the field the name that it has in the gateway."""
    return InvalidRequest(_FIELD_NAMES.get(refusal.field, refusal.field), refusal.problem)

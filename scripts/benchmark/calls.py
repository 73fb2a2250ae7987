"""The calls of the load: each makes its request and takes the bytes of the answer as they come."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from benchmark.numbering import user_id
from credit_service.v1 import credit_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import grpc

    Call = Callable[[], Awaitable[Any]]
    Unary = grpc.aio.UnaryUnaryMultiCallable[Any, Any]

SERVICE = "/credit_service.v1.CreditService/"
RIVAL = "/benchmark.Rival/"

BATCH_ITEMS = 100
PAGE_ENTRIES = 50
DEADLINE_SECONDS = 5.0

_run = uuid4().hex
_numbers = itertools.count()


def key() -> str:
    """Makes an idempotency key that was never used."""
    return f"{_run}:{next(_numbers)}"


class Users:
    """Users, drawn at random."""

    def __init__(self, first: int, count: int) -> None:
        """Makes their ids, which takes a moment.

        Args:
            first: number of the first user.
            count: how many.
        """
        self._ids = [user_id(number) for number in range(first, first + count)]

    def draw(self) -> str:
        """Draws one."""
        return random.choice(self._ids)  # noqa: S311


def _spend(method: str) -> Callable[[grpc.aio.Channel, Users], Call]:
    def calling(channel: grpc.aio.Channel, users: Users) -> Call:
        call: Unary = channel.unary_unary(method)

        def spend() -> Awaitable[Any]:
            request = pb.SpendCreditsRequest(user_id=users.draw(), amount=1, idempotency_key=key())
            return call(request.SerializeToString(), timeout=DEADLINE_SECONDS)

        return spend

    return calling


def _batch(channel: grpc.aio.Channel, users: Users) -> Call:
    call: Unary = channel.unary_unary(
        SERVICE + "BatchSpendCredits",
        response_deserializer=pb.BatchSpendCreditsResponse.FromString,
    )

    async def spend() -> None:
        items = [
            pb.BatchSpendItem(user_id=users.draw(), amount=1, idempotency_key=key())
            for _ in range(BATCH_ITEMS)
        ]
        request = pb.BatchSpendCreditsRequest(items=items, mode=pb.BATCH_MODE_INDEPENDENT)
        answer = await call(request.SerializeToString(), timeout=DEADLINE_SECONDS)
        if any(result.status.code for result in answer.results):
            raise ItemRefusedError

    return spend


class ItemRefusedError(Exception):
    """An item of a batch was refused."""


def _hold_and_capture(channel: grpc.aio.Channel, users: Users) -> Call:
    hold: Unary = channel.unary_unary(
        SERVICE + "HoldCredits", response_deserializer=pb.HoldCreditsResponse.FromString
    )
    capture: Unary = channel.unary_unary(SERVICE + "CaptureHold")

    async def work() -> None:
        user = users.draw()
        wanted = pb.HoldCreditsRequest(user_id=user, amount=1, idempotency_key=key())
        held = await hold(wanted.SerializeToString(), timeout=DEADLINE_SECONDS)
        taken = pb.CaptureHoldRequest(user_id=user, hold_id=held.hold.id, idempotency_key=key())
        await capture(taken.SerializeToString(), timeout=DEADLINE_SECONDS)

    return work


def _balance(channel: grpc.aio.Channel, users: Users) -> Call:
    call: Unary = channel.unary_unary(SERVICE + "GetUserCredit")

    def read() -> Awaitable[Any]:
        request = pb.GetUserCreditRequest(user_id=users.draw())
        return call(request.SerializeToString(), timeout=DEADLINE_SECONDS)

    return read


def _history(channel: grpc.aio.Channel, users: Users) -> Call:
    call: Unary = channel.unary_unary(SERVICE + "GetTransactionHistory")

    def read() -> Awaitable[Any]:
        request = pb.GetTransactionHistoryRequest(user_id=users.draw(), page_size=PAGE_ENTRIES)
        return call(request.SerializeToString(), timeout=DEADLINE_SECONDS)

    return read


# The calls that a plan may name: each takes a connection and the users, and returns a function that
# makes one call at a time.
CALLS: Mapping[str, Callable[[grpc.aio.Channel, Users], Call]] = {
    "spend": _spend(SERVICE + "SpendCredits"),
    "batch": _batch,
    "hold and capture": _hold_and_capture,
    "balance": _balance,
    "history": _history,
    "empty": _spend(RIVAL + "Empty"),
    "transaction": _spend(RIVAL + "Spend"),
}

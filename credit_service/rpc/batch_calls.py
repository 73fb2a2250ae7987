"""The servicer's call for many spends at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from credit_service import fields, status
from credit_service.errors import (
    BatchAborted,
    CreditError,
    InvalidRequest,
    Refusal,
    UserNotFound,
)
from credit_service.rpc import access, requests, responses
from credit_service.rules.commands import Spend, SpendTogether
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from credit_service.ledger.ledger import Ledger
    from credit_service.rpc.requests import Context
    from credit_service.rules.model import Outcome

ITEMS_MAX = 1000


class BatchCalls(pb_grpc.CreditServiceServicer):
    """Answers BatchSpendCredits."""

    _ledger: Ledger

    async def BatchSpendCredits(
        self, request: pb.BatchSpendCreditsRequest, context: Context
    ) -> pb.BatchSpendCreditsResponse:
        """Spends many times, with a result for each item."""
        if not 1 <= len(request.items) <= ITEMS_MAX:
            raise InvalidRequest("items", f"must be 1 to {ITEMS_MAX}, not {len(request.items)}.")
        _require_different_keys(request.items)
        caller = access.CALLER.get().name
        spends = [_spend(item, caller) for item in request.items]
        match request.mode:
            case pb.BATCH_MODE_INDEPENDENT:
                answers = await self._independent(spends, context)
            case pb.BATCH_MODE_ATOMIC:
                answers = await self._atomic(spends, context)
            case _:
                raise InvalidRequest("mode", "is missing: ATOMIC or INDEPENDENT.")
        return pb.BatchSpendCreditsResponse(results=[_result(answer) for answer in answers])

    async def _independent(
        self, spends: Sequence[Spend | Refusal], context: Context
    ) -> Sequence[Outcome | CreditError]:
        seconds = requests.seconds_left(context)
        answers: list[Outcome | CreditError | asyncio.Future[Outcome]] = []
        for spend in spends:
            if isinstance(spend, Refusal):
                answers.append(spend)
                continue
            try:
                answers.append(self._ledger.enqueue(spend, seconds))
            except CreditError as error:
                # Its frames hold the answers, which hold the error. So do others below.
                answers.append(error.with_traceback(None))
        # Gathered, because a cancelled gather cancels the spends that have not begun.
        await asyncio.gather(
            *(answer for answer in answers if isinstance(answer, asyncio.Future)),
            return_exceptions=True,
        )
        return [
            _outcome(answer) if isinstance(answer, asyncio.Future) else answer for answer in answers
        ]

    async def _atomic(
        self, spends: Sequence[Spend | Refusal], context: Context
    ) -> Sequence[Outcome | CreditError]:
        whole = [spend for spend in spends if isinstance(spend, Spend)]
        if len({spend.user_id for spend in whole}) > 1:
            raise InvalidRequest("items", "belong to several users; an atomic batch has one.")
        if not whole:
            return spends  # type: ignore[return-value]  # all of them are refusals
        refused = len(whole) < len(spends)
        command = SpendTogether(
            user_id=whole[0].user_id, caller=whole[0].caller, spends=tuple(whole), refused=refused
        )
        try:
            parts = (await requests.submit(self._ledger, command, context)).parts
        except UserNotFound as refusal:
            first = BatchAborted() if refused else refusal.with_traceback(None)
            parts = (first, *(BatchAborted() for _ in whole[1:]))
        answered = iter(parts)
        return [s if isinstance(s, Refusal) else next(answered) for s in spends]


def _require_different_keys(items: Sequence[pb.BatchSpendItem]) -> None:
    seen = set()
    for place, item in enumerate(items):
        pair = item.user_id.lower(), item.idempotency_key
        # A missing key fails only its own item.
        if item.idempotency_key and pair in seen:
            raise InvalidRequest(
                f"items[{place}].idempotency_key", "is in this batch twice for the same user."
            )
        seen.add(pair)


def _spend(item: pb.BatchSpendItem, caller: str) -> Spend | Refusal:
    try:
        return Spend(
            user_id=requests.user_id(item.user_id),
            idempotency_key=fields.idempotency_key(item.idempotency_key),
            description=fields.description(item.description),
            reference=fields.reference(item.reference),
            metadata={},
            validate_only=False,
            caller=caller,
            charge=requests.charge(item),
        )
    except InvalidRequest as refusal:
        return refusal.with_traceback(None)


def _outcome(answer: asyncio.Future[Outcome]) -> Outcome | CreditError:
    error = answer.exception()
    if error is None:
        return answer.result()
    if isinstance(error, CreditError):
        return error
    raise error


def _result(answer: Outcome | CreditError) -> pb.BatchSpendResult:
    if isinstance(answer, CreditError):
        refusal = status.to_status(answer)
        return pb.BatchSpendResult(
            status=pb.ItemStatus(
                code=refusal.code, message=refusal.message, details=refusal.details
            )
        )
    assert answer.entry is not None  # noqa: S101  # a spend makes or finds one
    transaction = responses.transaction(answer.entry)
    # The metadata of a thousand replayed entries may be larger than a message.
    transaction.ClearField("metadata")
    return pb.BatchSpendResult(
        status=pb.ItemStatus(),
        transaction=transaction,
        replayed=answer.replayed,
    )

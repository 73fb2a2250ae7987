"""The servicer's call for many single calls at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from credit_service import status
from credit_service.errors import CreditError, InternalError, InvalidRequest
from credit_service.rpc import access, open_calls, requests
from credit_service.rpc.call_log import Call
from credit_service.rpc.single_calls import SINGLE_CALLS
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from credit_service.ledger.ledger import Ledger
    from credit_service.rpc.requests import Context
    from credit_service.rpc.single_calls import SingleCall
    from credit_service.rules.model import Outcome
    from credit_service.rules.terms import Terms

_log = structlog.get_logger()

ITEMS_MAX = 500
ITEM_BYTES_MAX = 64 * 1024

# A quarter of the maximum of a message: a response ends with the result that exceeds this.
RESPONSE_BYTES_MAX = 1024 * 1024

# How many items are begun before the event loop may do something else.
_BEGUN_AT_ONCE = 100


class ManyCalls(pb_grpc.CreditServiceServicer):
    """Answers CallMany."""

    _ledger: Ledger
    _terms: Terms

    async def CallMany(  # type: ignore[override]  # it serialises its responses itself
        self, request: pb.CallManyRequest, context: Context
    ) -> AsyncIterator[bytes]:
        """Makes each call, and sends its result when it is known.

        Each result is serialised when it is known. Several serialised responses, put together, are
        one message with the results of all.
        """
        if not 1 <= len(request.items) <= ITEMS_MAX:
            raise InvalidRequest("items", f"must be 1 to {ITEMS_MAX}, not {len(request.items)}.")
        _require_different_indexes(request)
        items = _Items(self._ledger, self._terms, requests.seconds_left(context))
        try:
            await items.begin(request)
            while results := await items.next_results():
                yield b"".join(result.response for result in results)
                items.sent(results)
        finally:
            items.close()


class _Result(NamedTuple):
    """A response with one result, and whether its item was admitted."""

    response: bytes
    admitted: bool


@dataclass(slots=True, eq=False)
class _Item:
    """An item that has no result yet.

    Attributes:
        index: by which the result names it.
        field: of the item and of its result.
        single: the kind of its call; None: the item has no call, or an unknown one.
        request: of that call.
        call: is logged and counted.
        admitted: whether it counts as an open call.
        outcome: the answer of the ledger; None: the ledger is not asked, or not yet.
    """

    index: int
    field: str
    single: SingleCall | None
    request: Any
    call: Call
    admitted: bool = False
    outcome: asyncio.Future[Outcome] | None = None


class _Items:
    """The items of a CallMany, and the results that wait to be sent."""

    def __init__(self, ledger: Ledger, terms: Terms, seconds: float) -> None:
        """Begins nothing yet.

        Args:
            ledger: makes the calls.
            terms: of the responses.
            seconds: how long the whole call may wait.
        """
        self._ledger = ledger
        self._terms = terms
        self._caller = access.CALLER.get()
        self._open = open_calls.ITEMS.get()
        self._loop = asyncio.get_running_loop()
        self._arrival = self._loop.time()
        self._seconds = seconds
        self._unanswered: set[_Item] = set()
        self._not_begun: list[pb.CallManyItem] = []
        self._results: list[_Result] = []
        self._known = asyncio.Event()
        self._closed = False

    async def begin(self, request: pb.CallManyRequest) -> None:
        """Submits each item to the ledger, in order, or refuses it."""
        large = request.ByteSize() > ITEM_BYTES_MAX
        for place, message in enumerate(request.items):
            if place and place % _BEGUN_AT_ONCE == 0:
                self._not_begun = list(request.items[place:])
                await asyncio.sleep(0)
                self._not_begun = []
            item = self._item(message)
            self._unanswered.add(item)
            try:
                self._begin(item, message.timeout_ms, large=large)
            except Exception as fault:
                self._fail(item, fault)

    def _item(self, message: pb.CallManyItem) -> _Item:
        field = message.WhichOneof("call")
        if field is None:
            call = Call("CallMany", caller=self._caller.name, many=True)
            return _Item(message.index, "", None, None, call)
        request, single = getattr(message, field), SINGLE_CALLS[field]
        call = Call(
            single.method,
            caller=self._caller.name,
            user=request.user_id,
            key=request.idempotency_key,
            many=True,
        )
        return _Item(message.index, field, single, request, call)

    def _begin(self, item: _Item, timeout_ms: int, *, large: bool) -> None:
        seconds = self._seconds if timeout_ms == 0 else min(self._seconds, timeout_ms / 1000)
        seconds -= self._loop.time() - self._arrival
        self._open.admit(seconds)
        item.admitted = True
        single = item.single
        if single is None:
            raise InvalidRequest("call", "is missing: name a spend, a hold or a capture.")
        self._caller.require_call(single.method)
        if large and (size := item.request.ByteSize()) > ITEM_BYTES_MAX:
            raise InvalidRequest(
                "request",
                f"has {size} bytes; the maximum is {ITEM_BYTES_MAX} for {single.method}.",
            )
        command = single.command(item.request)
        if item.request.validate_only:
            raise InvalidRequest("validate_only", "must not be set in CallMany.")
        item.outcome = self._ledger.enqueue(command, seconds)
        item.outcome.add_done_callback(partial(self._answered, item))

    def _answered(self, item: _Item, outcome: asyncio.Future[Outcome]) -> None:
        """Takes the answer of the ledger."""
        if outcome.cancelled():
            return
        fault = outcome.exception()
        if self._closed:
            return
        if fault is not None:
            self._fail(item, fault)
            return
        answer = outcome.result()
        if item.call.replayed or not requests.lacks_grant_changes(answer):
            self._succeed(item, answer)
            return
        item.call.replayed = True
        item.outcome = self._loop.create_task(requests.with_grant_changes(self._ledger, answer))
        item.outcome.add_done_callback(partial(self._answered, item))

    def _succeed(self, item: _Item, outcome: Outcome) -> None:
        """Turns an outcome into a result."""
        item.call.replayed = outcome.replayed
        response = pb.CallManyResponse()
        result = response.results.add(index=item.index)
        assert item.single is not None  # noqa: S101  # it has been begun
        try:
            item.single.answer(getattr(result, item.field), item.request, outcome, self._terms)
            data = response.SerializeToString()
            self._open.keep_unsent(len(data))
        except Exception as fault:
            self._fail(item, fault)
            return
        item.call.answered()
        self._keep(item, data)

    def _fail(self, item: _Item, fault: BaseException) -> None:
        """Turns an error into a result; an unexpected error stays in the log."""
        if isinstance(fault, CreditError):
            error = fault
        else:
            _log.error("call failed", method=item.call.method, exc_info=fault)
            error = InternalError()
        item.call.failed(error)
        refusal = status.to_status(error)
        answer = pb.ItemStatus(code=refusal.code, message=refusal.message, details=refusal.details)
        result = pb.CallManyResult(index=item.index, error=answer)
        data = pb.CallManyResponse(results=[result]).SerializeToString()
        self._open.count_unsent(len(data), admitted=item.admitted)
        self._keep(item, data)

    def _keep(self, item: _Item, response: bytes) -> None:
        self._unanswered.discard(item)
        self._results.append(_Result(response, item.admitted))
        self._known.set()

    async def next_results(self) -> list[_Result]:
        """Waits for the next results.

        Returns:
            All that are known, as far as a response has room for them. It is empty when every
            result has been returned.
        """
        if not self._results and self._unanswered:
            self._known.clear()
            await self._known.wait()
        number = size = 0
        while number < len(self._results) and size <= RESPONSE_BYTES_MAX:
            size += len(self._results[number].response)
            number += 1
        taken, self._results = self._results[:number], self._results[number:]
        return taken

    def sent(self, results: list[_Result]) -> None:
        """Notes that these results have been sent."""
        admitted = sum(result.admitted for result in results)
        self._open.sent(admitted, sum(len(result.response) for result in results))

    def close(self) -> None:
        """Withdraws the items that have not begun; the caller no longer waits for results."""
        self._closed = True
        for item in self._unanswered:
            if item.outcome is not None:
                item.outcome.cancel()
            item.call.abandoned()
        for message in self._not_begun:
            self._item(message).call.abandoned()


def _require_different_indexes(request: pb.CallManyRequest) -> None:
    seen: set[int] = set()
    for place, item in enumerate(request.items):
        if item.index in seen:
            raise InvalidRequest(f"items[{place}].index", f"is {item.index}, as in another item.")
        seen.add(item.index)

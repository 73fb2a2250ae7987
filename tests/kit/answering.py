"""A server that gives prepared answers, and every call of the client to make against it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2
from kit.requests import payment
from kit.wire import METHODS, SERVICE, request_of

from credit_service import errors, status
from credit_service.client import CreditClient
from credit_service.v1 import credit_service_pb2 as pb

USER = uuid4()
CODES = {code.value[0]: code for code in grpc.StatusCode}

Answer = errors.CreditError | status_pb2.Status | grpc.StatusCode | str | None


@dataclass
class Received:
    """A call as a server saw it."""

    method: str
    request: Message
    metadata: dict[str, str | bytes]
    seconds_left: float
    at: float


@dataclass
class Answering:
    """A server that gives prepared answers, in order, and keeps the calls that it receives.

    An answer is an error, a status with details, a status code without, or "none": the caller gets
    no answer. When they are used up, every call gets the answer `always`; None: it is OK.
    """

    target: str
    answers: list[Answer] = field(default_factory=list)
    always: Answer = None
    received: list[Received] = field(default_factory=list)

    async def answer(self, method: str, request: Message, context) -> Message:
        metadata = dict(context.invocation_metadata())
        seconds_left, at = context.time_remaining(), time.monotonic()
        self.received.append(Received(method, request, metadata, seconds_left, at))
        answer = self.answers.pop(0) if self.answers else self.always
        if isinstance(answer, errors.CreditError):
            answer = status.to_status(answer)
        if isinstance(answer, status_pb2.Status):
            trailers = ((status.DETAILS_KEY, answer.SerializeToString()),)
            await context.abort(CODES[answer.code], answer.message, trailers)
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "said the server")
        if answer == "none":
            await asyncio.Event().wait()
        return getattr(pb, f"{method}Response")()


@asynccontextmanager
async def answering(*answers) -> AsyncIterator[Answering]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    made = Answering(f"127.0.0.1:{port}", list(answers))

    def handler(method):
        async def answer(request, context):
            return await made.answer(method, request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=request_of(method).FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )

    handlers = {method: handler(method) for method in METHODS}
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
    )
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)


def keyed_writes(client: CreditClient, **arguments):
    """Every call that has an idempotency key."""
    return {
        "PurchaseCredits": lambda: client.purchase_credits(USER, 5, payment=payment(), **arguments),
        "SpendCredits": lambda: client.spend_credits(USER, amount=5, **arguments),
        "RefundCredits": lambda: client.refund_credits(USER, f"{USER}-2", **arguments),
        "HoldCredits": lambda: client.hold_credits(USER, amount=5, **arguments),
        "CaptureHold": lambda: client.capture_hold(USER, f"{USER}-2", **arguments),
        "ReleaseHold": lambda: client.release_hold(USER, f"{USER}-2", **arguments),
        "GrantCredits": lambda: client.grant_credits(USER, 5, reason="goodwill", **arguments),
        "AdjustCredits": lambda: client.adjust_credits(USER, -5, reason="a slip", **arguments),
        "RevokeGrant": lambda: client.revoke_grant(USER, f"{USER}-2", reason="a slip", **arguments),
    }


def keyless_writes(client: CreditClient):
    """Every call that changes something and has no key, because repeating it does no harm."""
    return {
        "ExtendHold": lambda: client.extend_hold(USER, f"{USER}-2"),
        "ReversePurchase": lambda: client.reverse_purchase(
            "pi_1",
            reversal_ref="re_1",
            revision=1,
            reversed_minor=1,
            paid_minor=1,
            currency="eur",
            reason="refund",
        ),
        "SetAccountPolicy": lambda: client.set_account_policy(USER, frozen=True),
        "BatchSpendCredits": lambda: client.batch_spend_credits(
            [pb.BatchSpendItem()], mode=pb.BATCH_MODE_ATOMIC
        ),
        "NoteTopUp": lambda: client.note_top_up(USER, "top-up-1", "pi_1"),
        "FailTopUp": lambda: client.fail_top_up(
            USER, "top-up-1", 1, reason="declined", failure=pb.TOP_UP_FAILURE_TRY_AGAIN
        ),
    }


def reads(client: CreditClient):
    """Every call that changes nothing, except the reports, which have a deadline of their own."""
    return {
        "GetUserCredit": lambda: client.get_user_credit(USER),
        "GetTransactionHistory": lambda: anext(client.get_transaction_history(USER), None),
        "GetTransaction": lambda: client.get_transaction(USER, idempotency_key="k"),
        "ListPrices": client.list_prices,
        "QuoteCost": lambda: client.quote_cost({"render": 1}),
        "GetHold": lambda: client.get_hold(USER, f"{USER}-2"),
        "ListHolds": lambda: anext(client.list_holds(USER), None),
        "ListAccounts": lambda: anext(client.list_accounts(), None),
        "ListGrants": lambda: anext(client.list_grants(USER), None),
        "ListTopUps": lambda: anext(client.list_top_ups(USER), None),
    }


def every_call(client: CreditClient):
    return keyed_writes(client) | keyless_writes(client) | reads(client)

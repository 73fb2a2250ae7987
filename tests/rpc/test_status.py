"""Errors as statuses: both directions of the table, and the refusals that no rule makes."""

import asyncio
import dataclasses
import hashlib
from contextlib import asynccontextmanager

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from kit.refusals import Refused, refused
from kit.requests import payment
from kit.services import running, server_settings
from kit.waiting import eventually

from credit_service import errors, status
from credit_service.errors import PermissionDenied, Unauthenticated
from credit_service.rpc.access import Authenticator
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc


@asynccontextmanager
async def refusing(code: grpc.StatusCode, message: str, trailers=()):
    """A call to a server that refuses every call in this way, and the failure it ends in."""

    async def refuse(_request, context):
        await context.abort(code, message, trailers)

    server = grpc.aio.server()
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary("/t/Call")(b"")
        yield failure.value
    await server.stop(None)


def example(kind: type[errors.CreditError]) -> errors.CreditError:
    facts = {
        field.name: -(10**15) - place if field.type == "int" else f"{field.name} ü 🎛"
        for place, field in enumerate(dataclasses.fields(kind))
    }
    return kind(**facts)


@pytest.mark.parametrize("kind", status.CODES, ids=lambda kind: kind.__name__)
async def test_an_error_crosses_the_wire_with_every_fact(kind):
    error = example(kind)
    rendered = status.render(error)
    async with refusing(rendered.code, rendered.message, rendered.trailing_metadata) as failure:
        seen = refused(failure)
        returned = status.parse(failure)
    assert seen.message == str(error)
    assert (seen.reason, seen.domain) == (kind.reason, "credit_service")
    assert seen.facts == {name: str(value) for name, value in vars(error).items()}
    assert type(returned) is kind
    assert vars(returned) == vars(error)
    assert str(returned) == str(error)


def test_only_errors_that_may_pass_with_time_carry_a_delay():
    delays = {
        kind: status.render(example(kind)).trailing_metadata[0][1].count(b"google.rpc.RetryInfo")
        for kind in status.CODES
    }
    repeatable = {kind for kind, count in delays.items() if count}
    passing = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert repeatable == {kind for kind, code in status.CODES.items() if code in passing}
    assert {errors.Overloaded, errors.TooManyHolds} < repeatable


def details(reason: str, domain: str, **facts: str) -> tuple[tuple[str, bytes], ...]:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=facts))
    sent = status_pb2.Status(code=9, message="no", details=[packed]).SerializeToString()
    return ((status.DETAILS_KEY, sent),)


@pytest.mark.parametrize(
    "trailers",
    [
        (),
        details("INSUFFICIENT_CREDITS", "another.service"),
        ((status.DETAILS_KEY, b""),),
        ((status.DETAILS_KEY, b"\xff\xff no status"),),
    ],
    ids=["no details", "foreign", "empty", "garbage"],
)
async def test_a_failure_without_a_readable_reason_is_not_an_error_of_the_service(trailers):
    async with refusing(grpc.StatusCode.FAILED_PRECONDITION, "no", trailers) as failure:
        assert status.parse(failure) is None


async def test_a_reason_of_a_later_release_is_a_refusal_with_its_message_and_figures():
    trailers = details("A_REASON_OF_A_LATER_RELEASE", "credit_service", colour="red")
    async with refusing(grpc.StatusCode.FAILED_PRECONDITION, "no", trailers) as failure:
        error = status.parse(failure)
    assert isinstance(error, errors.UnknownRefusal)
    assert (error.reason, str(error)) == ("A_REASON_OF_A_LATER_RELEASE", "no")
    assert error.facts == {"colour": "red"}


async def test_facts_that_a_later_release_adds_or_drops_do_no_harm():
    trailers = details("INSUFFICIENT_CREDITS", "credit_service", shortfall="3", colour="red")
    async with refusing(grpc.StatusCode.FAILED_PRECONDITION, "no", trailers) as failure:
        error = status.parse(failure)
    assert isinstance(error, errors.InsufficientCredits)
    assert (error.shortfall, error.required) == (3, 0)


# Refusals that no rule makes, from the running service.


@asynccontextmanager
async def stub_of(service):
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield pb_grpc.CreditServiceStub(channel)


def spend(user_id, key, description="") -> pb.SpendCreditsRequest:
    return pb.SpendCreditsRequest(
        user_id=str(user_id), amount=1, idempotency_key=key, description=description
    )


@asynccontextmanager
async def locked(database, user_id):
    """Keeps an account locked, as an operator's forgotten transaction does."""
    connection = await database.connect()
    try:
        async with connection.transaction():
            await connection.execute(
                "SELECT 1 FROM user_credits WHERE user_id = $1 FOR UPDATE", user_id
            )
            yield
    finally:
        await connection.close()


OVERLOADED = Refused(
    grpc.StatusCode.UNAVAILABLE,
    "Too many calls are waiting; call again shortly with the same key.",
    "OVERLOADED",
    "credit_service",
    {"retry_ms": "200"},
    retry_seconds=0.2,
)


async def test_a_full_service_answers_overloaded_at_once(database):
    await database.wait_longer_for_locks()
    user_id = await database.user(10)
    changes = {"calls_in_flight": 1}
    async with (
        running(server_settings(database.service_url, **changes)) as service,
        stub_of(service) as stub,
    ):
        async with locked(database, user_id):
            waiting = asyncio.ensure_future(stub.SpendCredits(spend(user_id, "a")))
            await eventually(database.waits_for_a_lock, every=0.01)
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await stub.ListPrices(pb.ListPricesRequest())
        assert refused(failure.value) == OVERLOADED
        assert (await waiting).credit.balance == 9
        await stub.ListPrices(pb.ListPricesRequest())


async def test_a_full_lane_answers_overloaded_at_once_and_starts_nothing(database):
    await database.wait_longer_for_locks()
    user_id = await database.user(10)
    changes = {"lanes": 1, "queue_limit": 1, "batch_limit": 1}
    async with (
        running(server_settings(database.service_url, **changes)) as service,
        stub_of(service) as stub,
    ):
        async with locked(database, user_id):
            first = asyncio.ensure_future(stub.SpendCredits(spend(user_id, "a")))
            await eventually(database.waits_for_a_lock, every=0.01)
            others = [
                asyncio.ensure_future(stub.SpendCredits(spend(user_id, key))) for key in "bcd"
            ]
            # One of them waits in the queue and two find it full.
            done, queued = set(), set(others)
            while len(done) < 2:
                finished, queued = await asyncio.wait(queued, return_when=asyncio.FIRST_COMPLETED)
                done |= finished
        for call in done:
            assert refused(call.exception()) == OVERLOADED
        answers = [await first, *[await call for call in queued]]
    assert [answer.credit.balance for answer in answers] == [9, 8]
    assert not await database.faults()


async def test_an_account_locked_too_long_is_unavailable_and_unchanged(service, database):
    user_id = await database.user(10)
    book = await database.book()
    async with stub_of(service) as stub, locked(database, user_id):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.SpendCredits(spend(user_id, "k"))
    assert refused(failure.value) == Refused(
        grpc.StatusCode.UNAVAILABLE,
        "The ledger cannot be reached; call again with the same key to learn the outcome.",
        "LEDGER_UNAVAILABLE",
        "credit_service",
        retry_seconds=1.0,
    )
    assert await database.book() == book


async def test_a_fault_is_internal_without_details(service, client, database):
    user_id = await database.user(10)
    connection = await database.connect()
    await connection.execute(
        "ALTER TABLE credit_transactions ADD CHECK (description <> 'secret') NOT VALID"
    )
    book = await database.book()
    internal = Refused(
        grpc.StatusCode.INTERNAL,
        "The service failed on this call; the failure is logged.",
        "INTERNAL",
        "credit_service",
    )
    async with stub_of(service) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.SpendCredits(spend(user_id, "k", description="secret"))
        assert refused(failure.value) == internal
        await connection.execute("ALTER TABLE credit_transactions RENAME reference TO broken")
        history = pb.GetTransactionHistoryRequest(user_id=str(user_id))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.GetTransactionHistory(history)
        assert refused(failure.value) == internal
        await connection.execute("ALTER TABLE credit_transactions RENAME broken TO reference")
        assert len((await stub.GetTransactionHistory(history)).transactions) == 1
    await connection.close()
    assert await database.book() == book
    assert (await client.spend_credits(user_id, amount=1, idempotency_key="k")).credit.balance == 9


@pytest.fixture
async def guarded(database, tmp_path):
    """A service that knows a worker and a bridge by their tokens."""
    identities = "\n".join(
        f'[[identity]]\nname = "the {role}"\nrole = "{role}"\n'
        f'token_sha256 = "{hashlib.sha256(f"{role} token".encode()).hexdigest()}"'
        for role in ("worker", "bridge")
    )
    file = tmp_path / "identities.toml"
    file.write_text(identities)
    settings = server_settings(database.service_url, authenticator=Authenticator(file))
    async with running(settings) as service:
        yield service


async def test_unauthenticated_says_what_to_send(guarded):
    for token, words in ((None, "Bearer <token>"), ("wrong", "not known here")):
        client = await guarded.client(token=token)
        with pytest.raises(Unauthenticated) as refusal:
            await client.list_prices()
        seen = refused(refusal.value)
        assert (seen.code, seen.reason) == (grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")
        assert words in seen.message
        assert seen.facts == {"problem": seen.message}
        assert refusal.value.problem == seen.message


async def test_permission_denied_names_role_and_action_and_changes_nothing(guarded, database):
    user_id = await database.user(10)
    worker = await guarded.client(token="worker token")
    bridge = await guarded.client(token="bridge token")
    book = await database.book()
    for role, call, action in (
        (
            "worker",
            worker.purchase_credits(user_id, 5, payment=payment()),
            "call PurchaseCredits",
        ),
        ("worker", worker.refund_credits(user_id, None, amount=1), "refund without naming a spend"),
        ("worker", worker.get_user_credit(user_id, history_size=1), "read the history"),
        ("bridge", bridge.spend_credits(user_id, amount=1), "call SpendCredits"),
        (
            "bridge",
            bridge.purchase_credits(user_id, 5, payment=None),
            "purchase without a payment",
        ),
    ):
        with pytest.raises(PermissionDenied) as refusal:
            await call
        assert (refusal.value.role, refusal.value.action) == (role, action)
        assert refused(refusal.value) == Refused(
            grpc.StatusCode.PERMISSION_DENIED,
            f"A caller with the role {role} may not {action}.",
            "PERMISSION_DENIED",
            "credit_service",
            {"role": role, "action": action},
        )
    assert await database.book() == book
    spent = await worker.spend_credits(user_id, amount=1)
    assert spent.transaction.caller == "the worker"

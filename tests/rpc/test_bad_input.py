"""Malformed input over the socket: its code, its reason, a helpful sentence, and no change."""

from collections.abc import AsyncIterator

import grpc
import pytest
from kit.databases import Database
from kit.mistakes import MISTAKES
from kit.refusals import refused
from kit.sound_requests import sound
from kit.wire import METHODS, Wire, request_of, user_with_a_spend

from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


@pytest.fixture
async def database(database) -> AsyncIterator[Database]:
    async with database.kept_open() as kept:
        yield kept


@pytest.fixture
async def wire(service) -> AsyncIterator[Wire]:
    async with grpc.aio.insecure_channel(service.target) as channel:
        yield Wire(channel)


async def accepted(wire, method, data):
    """Sends a well-formed request; the thing that it asks for may be missing."""
    if method in {"NoteTopUp", "FailTopUp"}:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await wire.send(method, data)
        assert refused(failure.value).reason == "TOP_UP_NOT_FOUND"
    else:
        await wire.send(method, data)


def test_every_call_has_a_table_of_mistakes():
    assert sorted(MISTAKES) == METHODS


@pytest.mark.parametrize("method", METHODS)
async def test_a_mistake_is_named_and_changes_nothing(method, client, wire, database, subtests):
    user_id = await user_with_a_spend(client, database)
    request = sound(user_id)[method]
    book = await database.book()
    for change, field, words in MISTAKES[method]:
        with subtests.test(str(change)[:80]):
            mistaken = request_of(method)()
            for name, value in (request | change).items():
                # A oneof member replaces the other members, and a list replaces the earlier list.
                mistaken.ClearField(name)
                if value is not None:
                    mistaken.MergeFrom(request_of(method)(**{name: value}))
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await wire.ask(method, mistaken)
            seen = refused(failure.value)
            assert (seen.code, seen.reason, seen.domain) == (
                grpc.StatusCode.INVALID_ARGUMENT,
                "INVALID_REQUEST",
                "credit_service",
            )
            assert seen.facts["field"] == field
            assert words in seen.facts["problem"]
            assert seen.facts["problem"].endswith(".")
            assert seen.message == f"{field}: {seen.facts['problem']}"
            assert seen.violations == {field: seen.facts["problem"]}
    assert await database.book() == book
    # Without the mistake the request is well formed, and the service still works.
    await accepted(wire, method, request_of(method)(**request).SerializeToString())
    assert not await database.faults()


@pytest.mark.parametrize("method", METHODS)
async def test_bytes_that_are_not_a_request_are_refused_and_change_nothing(
    method, client, wire, database, subtests
):
    user_id = await user_with_a_spend(client, database)
    request = request_of(method)(**sound(user_id)[method])
    book = await database.book()
    whole = request.SerializeToString()
    filler = b"\xf2\x3f" + b"\x80\x80\x04" + b"x" * 65_536  # field 1022, which is unknown
    for name, data, problem in (
        ("a wild tag", b"\xff\xff\xff", f"is not a {method} request."),
        ("a group never closed", b"\x0b", f"is not a {method} request."),
        ("a length beyond the end", b"\x0a\x24abc", f"is not a {method} request."),
        ("a varint without an end", whole + b"\xf8\x3f\x80", f"is not a {method} request."),
        ("text", b"GET / HTTP/1.1\r\n\r\n", f"is not a {method} request."),
        ("too long", whole + filler, f"has {len(whole + filler)} bytes; the maximum is 65536"),
    ):
        if name == "too long" and method == "BatchSpendCredits":
            continue
        with subtests.test(name):
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await wire.send(method, data)
            seen = refused(failure.value)
            assert seen.code is grpc.StatusCode.INVALID_ARGUMENT
            assert seen.reason == "INVALID_REQUEST"
            assert seen.facts["field"] == "request"
            assert problem in seen.message
    assert await database.book() == book
    await accepted(wire, method, whole)


async def test_text_that_is_not_utf8_is_refused(wire, database):
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await wire.send("GetUserCredit", b"\x0a\x02\xc3\x28")
    assert refused(failure.value).facts["field"] == "request"


async def test_an_empty_message_is_a_request_without_its_fields(wire, database):
    for method in METHODS:
        if method in {"ListPrices", "GetLiabilityReport", "ListAccounts"}:
            await wire.send(method, b"")
            continue
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await wire.send(method, b"")
        first = {
            "GetUsageReport": "start_time",
            "QuoteCost": "items",
            "BatchSpendCredits": "items",
            "ReversePurchase": "payment_ref",
            "ListTopUps": "open_only",
        }
        field = first.get(method, "user_id")
        assert refused(failure.value).facts["field"] == field, method


async def test_a_message_of_64_kib_is_read(wire, database):
    user_id = await database.user(10)
    request = pb.GetUserCreditRequest(user_id=str(user_id)).SerializeToString()
    room = 65_536 - len(request) - 5
    filled = request + b"\xf2\x3f" + bytes([room & 127 | 128, room >> 7 & 127 | 128, room >> 14])
    credit = pb.GetUserCreditResponse.FromString(
        await wire.send("GetUserCredit", filled + b"x" * room)
    ).credit
    assert credit.balance == 10


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
async def test_a_message_of_10_mb_is_refused_by_grpc_itself(wire, database, compression):
    user_id = await database.user(10)
    book = await database.book()
    request = pb.SpendCreditsRequest(
        user_id=str(user_id), amount=1, idempotency_key="k", description="d" * 10_000_000
    )
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await wire.send("SpendCredits", request.SerializeToString(), compression=compression)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in failure.value.details()
    assert await database.book() == book
    await wire.send("ListPrices", b"")


async def test_an_unknown_call_is_unimplemented(wire):
    for method in ("HoldCredit", "", "spendcredits", "../etc/passwd"):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await wire.send(method, b"")
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await wire.send("ListPrices", b"")


async def test_unknown_fields_are_ignored(wire, database):
    user_id = await database.user(10)
    request = pb.SpendCreditsRequest(user_id=str(user_id), amount=1, idempotency_key="k")
    later_field = b"\xf2\x3f\x05hello"
    answer = await wire.send("SpendCredits", request.SerializeToString() + later_field)
    assert pb.SpendCreditsResponse.FromString(answer).credit.balance == 9

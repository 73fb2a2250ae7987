"""CallMany: each item gets the answer that its single call would have got."""

import grpc
import pytest
from kit import many_calls
from kit.many_calls import capture, hold, info, reason, request_of, spend
from kit.refusals import refused
from kit.storm import connected

from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


@pytest.fixture
async def stub(service):
    async with connected(service.target) as stub:
        yield stub


async def test_spends_holds_and_captures_are_answered_as_single_calls_are(stub, database):
    user_id = await database.user(100)
    held = await stub.HoldCredits(hold(user_id, 20).hold)
    spent, reserved, taken = await many_calls.results(
        stub,
        [
            spend(user_id, 5, "spend", description="a stem", metadata={"job": "7"}),
            hold(user_id, 30, "hold", reference="job 8"),
            capture(user_id, held.hold.id, "capture", amount=12),
        ],
    )
    assert spent.spend.transaction.amount == 5
    assert spent.spend.transaction.metadata == {"job": "7"}
    assert spent.spend.transaction.balance_after == 95
    assert (reserved.hold.hold.amount, reserved.hold.hold.reference) == (30, "job 8")
    assert reserved.hold.transaction.held_after == 50
    assert taken.capture.hold.captured_amount == 12
    assert (taken.capture.credit.balance, taken.capture.credit.held) == (83, 30)
    again = await stub.SpendCredits(spend(user_id, 5, "spend", description="a stem").spend)
    assert again.replayed
    assert again.transaction == spent.spend.transaction
    assert not await database.faults()


async def test_items_of_a_user_are_done_in_their_order_and_a_repeated_key_replays(stub, database):
    user_id = await database.user(100)
    items = [spend(user_id, 1, f"key {n % 3}") for n in range(6)]
    found = await many_calls.results(stub, items)
    assert [result.spend.replayed for result in found] == [False] * 3 + [True] * 3
    assert [result.spend.transaction.seq for result in found] == [2, 3, 4, 2, 3, 4]
    assert (await stub.GetUserCredit(pb.GetUserCreditRequest(user_id=str(user_id)))).credit.seq == 4
    assert not await database.faults()


async def test_an_item_that_is_wrong_fails_alone(stub, database):
    user_id = await database.user(100)
    found = await many_calls.results(
        stub,
        [
            spend(user_id, 1),
            spend("not a user"),
            pb.CallManyItem(),
            spend(user_id, 1, validate_only=True),
            spend(user_id, 1, "k\0"),
            spend(user_id, 1, description="d" * 70_000),
            spend(user_id, 1),
        ],
    )
    assert [reason(result) for result in found] == ["", *["INVALID_REQUEST"] * 5, ""]
    fields = ["user_id", "call", "validate_only", "idempotency_key", "request"]
    assert [info(result).metadata["field"] for result in found[1:6]] == fields
    assert found[6].spend.credit.balance == 98


@pytest.mark.parametrize(
    ("items", "field", "words"),
    [
        ([], "items", "must be 1 to 500, not 0."),
        ([pb.CallManyItem(index=n) for n in range(501)], "items", "must be 1 to 500, not 501."),
        ([pb.CallManyItem(index=7)] * 2, "items[1].index", "is 7, as in another item."),
        (
            [spend("u", description="d" * 60_000, key=f"{n}") for n in range(9)],
            "request",
            "the maximum is 524288 for CallMany.",
        ),
    ],
)
async def test_a_malformed_request_is_refused_as_a_whole(stub, items, field, words):
    request = request_of(items) if field == "request" else pb.CallManyRequest(items=items)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.CallMany(request).read()
    seen = refused(failure.value)
    assert (seen.code, seen.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert seen.facts["field"] == field
    assert words in seen.message

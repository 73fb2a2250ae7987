"""Many spends in one call: a result for each item, and the same book as from single calls."""

from uuid import uuid4

import grpc
import pytest
from kit.batches import ATOMIC, INDEPENDENT, MODES, errors, item, refusal
from kit.callers import EVERY_ROLE, bearer
from kit.refusals import refused
from kit.services import running, server_settings
from kit.storm import connected
from kit.waiting import eventually, patience

from credit_service.client import CreditClient, item_error
from credit_service.errors import InsufficientCredits, InvalidRequest, PriceChanged, UserNotFound
from credit_service.rpc.access import Authenticator
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


def charged(user_id, operation, quantity=1, **changes):
    charge = pb.Charge(operation=operation, quantity=quantity)
    return pb.BatchSpendItem(
        user_id=str(user_id), charge=charge, idempotency_key=uuid4().hex, **changes
    )


@MODES
async def test_results_come_in_the_order_of_the_items(database, client, mode):
    user_id = await database.user(100)
    items = [
        item(user_id, n, f"spend:{n}:1", description=f"no. {n}", reference=f"job {n}")
        for n in (3, 1, 7, 2)
    ]
    results = await client.batch_spend_credits(items, mode=mode)
    assert errors(results) == [None] * 4
    assert [r.transaction.amount for r in results] == [3, 1, 7, 2]
    assert [r.transaction.description for r in results] == ["no. 3", "no. 1", "no. 7", "no. 2"]
    assert [r.transaction.reference for r in results] == ["job 3", "job 1", "job 7", "job 2"]
    assert [r.transaction.idempotency_key for r in results] == [i.idempotency_key for i in items]
    assert [r.transaction.balance_after for r in results] == [97, 96, 89, 87]
    assert [r.transaction.seq for r in results] == [2, 3, 4, 5]
    assert [r.replayed for r in results] == [False] * 4
    for result in results:
        found = await client.get_transaction(user_id, transaction_id=result.transaction.id)
        assert found == result.transaction
    assert not await database.faults()


async def test_items_are_priced_like_single_spends(database, client):
    user_id = await database.user(100)
    prices = await client.list_prices()
    results = await client.batch_spend_credits(
        [
            charged(user_id, "render", 3, expected_cost=15),
            charged(user_id, "render", 3, expected_cost=14),
            charged(user_id, "juggling"),
        ],
        mode=INDEPENDENT,
    )
    assert errors(results) == [None, PriceChanged, InvalidRequest]
    paid = results[0].transaction
    assert (paid.amount, paid.quantity, paid.unit_cost) == (15, 3, 5)
    assert paid.price_version == prices.price_version
    assert item_error(results[1]).cost == 15


async def test_items_of_an_independent_batch_do_not_affect_each_other(database, client):
    rich, poor, stranger = await database.user(100), await database.user(5), uuid4()
    items = [
        item(rich, 10),
        item(poor, 6),
        item(stranger),
        item("nobody"),
        item(rich, 0),
        item(rich, 10, description="a\0b"),
        pb.BatchSpendItem(user_id=str(rich), amount=1),
        pb.BatchSpendItem(user_id=str(rich), amount=1),
        pb.BatchSpendItem(user_id=str(rich), idempotency_key="no price"),
        item(poor, 5),
    ]
    results = await client.batch_spend_credits(items, mode=INDEPENDENT)
    expected = [None, InsufficientCredits, UserNotFound] + [InvalidRequest] * 6 + [None]
    assert errors(results) == expected
    short = item_error(results[1])
    assert (short.required, short.available, short.shortfall) == (6, 5, 1)
    assert item_error(results[2]).user_id == str(stranger)
    fields = [item_error(result).field for result in results[3:9]]
    assert fields == [
        "user_id",
        "amount",
        "description",
        "idempotency_key",
        "idempotency_key",
        "price",
    ]
    assert results[1].status.message == str(short)
    assert not any(r.HasField("transaction") for r in results[1:9])
    assert (await client.get_user_credit(rich)).balance == 90
    assert (await client.get_user_credit(poor)).balance == 0
    assert not await database.faults()


async def test_an_item_that_fails_its_transaction_affects_no_other(database, client):
    """A database fault that no rule foresees affects one item only."""
    users = [await database.user(10) for _ in range(8)]
    await database.execute(
        "ALTER TABLE credit_transactions ADD CONSTRAINT poison CHECK (description <> 'poison')"
    )
    items = [item(users[n % 8], description="poison" if n == 11 else "") for n in range(24)]

    async def answered():
        results = await client.batch_spend_credits(items, mode=INDEPENDENT)
        # On a busy machine an item may have to be sent again, as after any other disturbance.
        unavailable = grpc.StatusCode.UNAVAILABLE.value[0]
        return all(result.status.code != unavailable for result in results) and results

    results = await eventually(answered)
    codes = [result.status.code for result in results]
    assert codes[11] == grpc.StatusCode.INTERNAL.value[0]
    assert codes[:11] + codes[12:] == [0] * 23
    assert "poison" not in results[11].status.message
    assert not await database.faults()


@MODES
async def test_a_duplicate_key_refuses_the_whole_call(database, client, mode):
    user_id, other = await database.user(10), await database.user(10)
    before = await database.book()
    items = [item(user_id, 1, "a"), item(user_id, 1, "b"), item(str(user_id).upper(), 1, "a")]
    assert (await refusal(client, items, mode)).field == "items[2].idempotency_key"
    assert await database.book() == before
    results = await client.batch_spend_credits(
        [item(user_id, 1, "a"), item(other, 1, "a")], mode=INDEPENDENT
    )
    assert errors(results) == [None, None]


async def test_size_and_mode_of_a_batch_are_checked(database, client):
    user_id = await database.user(2000)
    before = await database.book()
    thousand = [item(user_id, 1, f"spend:{n}:1") for n in range(1000)]
    assert (await refusal(client, [])).field == "items"
    assert (await refusal(client, [*thousand, item(user_id)])).field == "items"
    assert (await refusal(client, thousand[:2], pb.BATCH_MODE_UNSPECIFIED)).field == "mode"
    assert (await refusal(client, thousand[:2], 7)).field == "mode"
    assert await database.book() == before
    results = await client.batch_spend_credits(thousand, mode=ATOMIC)
    assert [r.transaction.seq for r in results] == list(range(2, 1002))
    assert not await database.faults()


async def test_a_thousand_independent_items_over_many_users_are_each_answered(database, client):
    users = [await database.user(100) for _ in range(20)]
    items = [item(users[n % 20], 1 + n // 20, f"spend:{n}:1") for n in range(1000)]
    results = await client.batch_spend_credits(items, mode=INDEPENDENT)
    # 1 + 2 + ... + 13 credits are 91 of the 100 that each user has.
    assert errors(results) == [None] * 260 + [InsufficientCredits] * 740
    for sent, result in zip(items[:260], results[:260], strict=True):
        paid = result.transaction
        assert (paid.user_id, paid.amount, paid.idempotency_key) == (
            sent.user_id,
            sent.amount,
            sent.idempotency_key,
        )
    assert not await database.faults()


async def test_a_full_message_is_accepted_and_answered(database, service):
    """Other calls are limited to 64 KiB; a batch may use the whole megabyte that gRPC accepts."""
    user_id = await database.user(10**4)
    text = "\N{MUSICAL SYMBOL G CLEF}" * 200
    items = [
        item(user_id, 1, f"spend:{n:04}:1", description=text, reference="r" * 128)
        for n in range(1000)
    ]
    room = 1024 * 1024 - pb.BatchSpendCreditsRequest(items=items, mode=ATOMIC).ByteSize()
    for one in items:
        one.reference += "r" * (room // 1000)
    size = pb.BatchSpendCreditsRequest(items=items, mode=ATOMIC).ByteSize()
    assert 1024 * 1024 - 1000 <= size <= 1024 * 1024
    async with CreditClient(service.target, deadline_seconds=patience(30)) as client:
        results = await client.batch_spend_credits(items, mode=ATOMIC)
        assert {r.transaction.description for r in results} == {text}
        again = await client.batch_spend_credits(items, mode=INDEPENDENT)
    assert [r.transaction for r in again] == [r.transaction for r in results]


async def test_another_call_of_more_than_64_kib_stays_refused(database, service):
    user_id = await database.user(10)
    async with connected(service.target) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.SpendCredits(
                pb.SpendCreditsRequest(
                    user_id=str(user_id), amount=1, idempotency_key="k", description="d" * 70_000
                )
            )
        assert refused(failure.value).reason == "INVALID_REQUEST"
        items = [item(user_id, 1, f"{n}", description="d" * 400) for n in range(200)]
        request = pb.BatchSpendCreditsRequest(items=items, mode=INDEPENDENT)
        assert request.ByteSize() > 70_000
        answer = await stub.BatchSpendCredits(request)
    assert [result.status.code for result in answer.results].count(0) == 10


@pytest.mark.parametrize(
    ("role", "code"),
    [
        ("worker", grpc.StatusCode.OK),
        ("operator", grpc.StatusCode.OK),
        ("gateway", grpc.StatusCode.PERMISSION_DENIED),
        ("bridge", grpc.StatusCode.PERMISSION_DENIED),
        ("auditor", grpc.StatusCode.PERMISSION_DENIED),
    ],
)
async def test_workers_and_operators_may_send_batches(database, tmp_path, role, code):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    authenticator = Authenticator(tmp_path / "identities.toml")
    user_id = await database.user(10)
    request = pb.BatchSpendCreditsRequest(items=[item(user_id)], mode=INDEPENDENT)
    async with (
        running(server_settings(database.service_url, authenticator=authenticator)) as service,
        connected(service.target) as stub,
    ):
        call = stub.BatchSpendCredits(request, metadata=bearer(role), timeout=patience(10))
        assert await call.code() == code
        if code is grpc.StatusCode.OK:
            assert (await call).results[0].transaction.caller == f"the-{role}"

"""Many spends in one call: a result for each item, and the book as if they had come one by one."""

import asyncio
import signal
from contextlib import ExitStack
from uuid import UUID, uuid4

import grpc
import pytest
from callers import EVERY_ROLE, bearer
from commands import ask, lane, refund, spend
from fault_proxy import COMMIT, Kind
from harness import eventually, free_port, process, refused, running, server_settings
from prometheus_client import REGISTRY
from storm import connected

from credit_service.access import Doorkeeper
from credit_service.client import CreditClient, item_error
from credit_service.errors import (
    BatchAborted,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidRequest,
    LedgerUnavailable,
    PriceChanged,
    TransactionNotFound,
    UserNotFound,
)
from credit_service.model import SpendTogether
from credit_service.v1 import credit_service_pb2 as pb

ATOMIC, INDEPENDENT = pb.BATCH_MODE_ATOMIC, pb.BATCH_MODE_INDEPENDENT
MODES = pytest.mark.parametrize("mode", [ATOMIC, INDEPENDENT], ids=["atomic", "independent"])


def item(user_id, amount=1, key=None, **changes):
    return pb.BatchSpendItem(
        user_id=str(user_id), amount=amount, idempotency_key=key or uuid4().hex, **changes
    )


def charged(user_id, operation, quantity=1, **changes):
    charge = pb.Charge(operation=operation, quantity=quantity)
    return pb.BatchSpendItem(
        user_id=str(user_id), charge=charge, idempotency_key=uuid4().hex, **changes
    )


def errors(results):
    """The type of each item's error; None for an item that is OK."""
    return [None if (error := item_error(r)) is None else type(error) for r in results]


async def refusal(client, items, mode=INDEPENDENT):
    """What the call itself is refused with."""
    with pytest.raises(InvalidRequest) as failure:
        await client.batch_spend_credits(items, mode=mode)
    return failure.value


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


async def test_items_of_an_independent_batch_stand_alone(database, client):
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


async def test_an_item_that_poisons_its_transaction_spoils_no_other(database, client):
    """A fault of the database, which no rule foresees, strikes one item only."""
    users = [await database.user(10) for _ in range(8)]
    await database.execute(
        "ALTER TABLE credit_transactions ADD CONSTRAINT poison CHECK (description <> 'poison')"
    )
    items = [item(users[n % 8], description="poison" if n == 11 else "") for n in range(24)]
    results = await client.batch_spend_credits(items, mode=INDEPENDENT)
    codes = [result.status.code for result in results]
    assert codes[11] == grpc.StatusCode.INTERNAL.value[0]
    assert codes[:11] + codes[12:] == [0] * 23
    assert "poison" not in results[11].status.message
    assert not await database.faults()


async def test_an_atomic_batch_is_refused_whole(database, client):
    user_id = await database.user(10)
    before = await database.book()
    results = await client.batch_spend_credits(
        [item(user_id, 4, "a"), item(user_id, 4, "b"), item(user_id, 4, "c"), item(user_id, 1)],
        mode=ATOMIC,
    )
    assert errors(results) == [BatchAborted, BatchAborted, InsufficientCredits, BatchAborted]
    assert item_error(results[2]).available == 2
    assert not any(result.HasField("transaction") for result in results)
    assert await database.book() == before
    again = await client.batch_spend_credits(
        [item(user_id, 4, "a"), item(user_id, 4, "b")], mode=ATOMIC
    )
    assert errors(again) == [None, None]
    assert [result.replayed for result in again] == [False, False]
    assert not await database.faults()


async def test_a_malformed_item_refuses_an_atomic_batch(database, client):
    user_id = await database.user(10)
    before = await database.book()
    results = await client.batch_spend_credits(
        [item(user_id), item(user_id, -1), item(user_id)], mode=ATOMIC
    )
    assert errors(results) == [BatchAborted, InvalidRequest, BatchAborted]
    assert await database.book() == before


async def test_an_unknown_user_stands_in_the_results_of_an_atomic_batch(database, client):
    stranger = uuid4()
    results = await client.batch_spend_credits([item(stranger), item(stranger)], mode=ATOMIC)
    assert errors(results) == [UserNotFound, BatchAborted]


async def test_a_refused_atomic_batch_leaves_its_neighbours_in_the_lane_alone(database, client):
    """One user, so one lane: singles and atomic batches are decided in the same transactions."""
    user_id = await database.user(1000)

    async def good(n):
        keys = [f"good:{n}:{part}" for part in range(3)]
        return await client.batch_spend_credits(
            [item(user_id, 2, key) for key in keys], mode=ATOMIC
        )

    async def bad(n):
        items = [item(user_id, 2, f"bad:{n}:1"), item(user_id, 10**6, f"bad:{n}:2")]
        return await client.batch_spend_credits(items, mode=ATOMIC)

    async def single(n):
        key = f"single:{n}"
        return await client.spend_credits(user_id, amount=1, idempotency_key=key)

    answers = await asyncio.gather(*(call(n) for n in range(20) for call in (good, bad, single)))
    assert [errors(batch) for batch in answers[0::3]] == [[None] * 3] * 20
    assert [errors(batch) for batch in answers[1::3]] == [[BatchAborted, InsufficientCredits]] * 20
    assert (await client.get_user_credit(user_id)).balance == 1000 - 20 * (3 * 2 + 1)
    assert not await database.faults()


async def test_a_refused_atomic_batch_is_not_there_for_those_behind_it(database):
    """In one transaction: what was taken back is neither repeated nor refunded."""
    user_id = await database.user(10)
    spends = spend(user_id, 4, "a"), spend(user_id, 40, "b")
    together = SpendTogether(user_id=user_id, caller="test", spends=spends)
    async with lane(database.service_url) as clerk:
        batch, nothing, alone = await ask(
            clerk, together, refund(user_id, 2), spend(user_id, 4, "a")
        )
    assert [type(part) for part in batch.parts] == [BatchAborted, InsufficientCredits]
    assert isinstance(nothing, TransactionNotFound)
    assert (alone.replayed, alone.entry.seq, alone.account.balance) == (False, 2, 6)
    assert not await database.faults()


async def test_several_users_in_an_atomic_batch_are_refused(database, client):
    one, two = await database.user(10), await database.user(10)
    before = await database.book()
    assert (await refusal(client, [item(one), item(two)], ATOMIC)).field == "items"
    # A malformed item beside them does not make it a batch of one.
    assert (await refusal(client, [item(one), item(two), item(one, 0)], ATOMIC)).field == "items"
    assert await database.book() == before


@MODES
async def test_a_key_that_stands_twice_refuses_the_whole_call(database, client, mode):
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


@MODES
async def test_a_repeated_batch_replays(database, client, mode):
    user_id = await database.user(12)
    items = [item(user_id, 4, f"spend:{n}:1") for n in range(3)]
    first = await client.batch_spend_credits(items, mode=mode)
    before = await database.book()
    again = await client.batch_spend_credits(items, mode=mode)
    assert [result.transaction for result in again] == [result.transaction for result in first]
    assert [result.replayed for result in again] == [True] * 3
    other = pb.BATCH_MODE_ATOMIC + pb.BATCH_MODE_INDEPENDENT - mode
    across = await client.batch_spend_credits(items, mode=other)
    assert [result.replayed for result in across] == [True] * 3
    single = await client.spend_credits(user_id, amount=4, idempotency_key="spend:1:1")
    assert single.replayed
    assert single.transaction == first[1].transaction
    assert await database.book() == before


async def test_a_replayed_item_comes_without_its_metadata(database, client):
    """A thousand of them would be four times what a message holds."""
    user_id = await database.user(10)
    paid = await client.spend_credits(
        user_id, amount=1, idempotency_key="spend:1:1", metadata={"song": "x" * 4000}
    )
    (again,) = await client.batch_spend_credits([item(user_id, 1, "spend:1:1")], mode=INDEPENDENT)
    assert again.replayed
    assert (again.transaction.id, again.transaction.metadata) == (paid.transaction.id, {})


async def test_items_that_replay_count_as_done_in_an_atomic_batch(database, client):
    user_id = await database.user(10)
    paid = await client.spend_credits(user_id, amount=8, idempotency_key="spend:1:1")
    before = await database.book()
    results = await client.batch_spend_credits(
        [item(user_id, 8, "spend:1:1"), item(user_id, 3, "spend:2:1")], mode=ATOMIC
    )
    assert errors(results) == [BatchAborted, InsufficientCredits]
    assert await database.book() == before
    results = await client.batch_spend_credits(
        [item(user_id, 8, "spend:1:1"), item(user_id, 2, "spend:2:1")], mode=ATOMIC
    )
    assert errors(results) == [None, None]
    assert [result.replayed for result in results] == [True, False]
    assert results[0].transaction == paid.transaction
    assert results[1].transaction.balance_after == 0


async def test_a_key_of_another_request_is_the_culprit(database, client):
    user_id = await database.user(10)
    await client.spend_credits(user_id, amount=1, idempotency_key="spend:1:1")
    items = [item(user_id, 1), item(user_id, 2, "spend:1:1")]
    results = await client.batch_spend_credits(items, mode=ATOMIC)
    assert errors(results) == [BatchAborted, IdempotencyKeyReused]
    assert item_error(results[1]).field == "amount"


async def test_a_full_message_is_accepted_and_answered(database, service):
    """64 KiB is the most for other calls; a batch may fill the megabyte that gRPC lets through."""
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
    async with CreditClient(service.target, deadline_seconds=30) as client:
        results = await client.batch_spend_credits(items, mode=ATOMIC)
        assert {r.transaction.description for r in results} == {text}
        again = await client.batch_spend_credits(items, mode=INDEPENDENT)
    assert [r.transaction for r in again] == [r.transaction for r in results]


async def test_a_thousand_of_the_longest_entries_are_replayed(database, client):
    user_id = await database.user(1000)
    clef = "\N{MUSICAL SYMBOL G CLEF}"
    keys = [f"{n:0128}" for n in range(1000)]
    for start in range(0, 1000, 250):
        items = [
            item(user_id, 1, key, description=clef * 500, reference=clef * 255)
            for key in keys[start : start + 250]
        ]
        await client.batch_spend_credits(items, mode=INDEPENDENT)
    again = await client.batch_spend_credits(
        [item(user_id, 1, key) for key in keys], mode=INDEPENDENT
    )
    assert all(result.replayed for result in again)


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
    doorkeeper = Doorkeeper(tmp_path / "identities.toml")
    user_id = await database.user(10)
    request = pb.BatchSpendCreditsRequest(items=[item(user_id)], mode=INDEPENDENT)
    async with (
        running(server_settings(database.service_url, doorkeeper=doorkeeper)) as service,
        connected(service.target) as stub,
    ):
        call = stub.BatchSpendCredits(request, metadata=bearer(role), timeout=10)
        assert await call.code() == code
        if code is grpc.StatusCode.OK:
            assert (await call).results[0].transaction.caller == f"the-{role}"


async def test_a_full_lane_refuses_the_items_it_cannot_take(database):
    user_id = await database.user(100)
    settings = server_settings(database.service_url, lane_queue=5, lanes=1)
    async with running(settings) as service:
        client = await service.client()
        items = [item(user_id, 1, f"spend:{n}:1") for n in range(8)]
        results = await client.batch_spend_credits(items, mode=INDEPENDENT)
        reasons = [getattr(item_error(result), "reason", None) for result in results]
        assert reasons == [None] * 5 + ["OVERLOADED"] * 3
        again = await client.batch_spend_credits(items[3:], mode=INDEPENDENT)
        assert [result.replayed for result in again] == [True] * 2 + [False] * 3
    assert not await database.faults()


async def test_a_caller_who_goes_away_takes_along_what_has_not_begun(database, proxy):
    user_id = await database.user(100)

    def abandoned():
        labels = {"method": "BatchSpendCredits", "code": "CANCELLED", "reason": ""}
        return REGISTRY.get_sample_value("credit_calls_total", labels) or 0

    async with running(server_settings(proxy.url, lanes=1, lane_batch=5)) as service:
        client = await service.client()
        held, before = proxy.on(COMMIT, Kind.HOLD), abandoned()
        items = [item(user_id) for _ in range(20)]
        call = asyncio.create_task(client.batch_spend_credits(items, mode=INDEPENDENT))
        await held.met.wait()
        call.cancel()
        await eventually(lambda: abandoned() > before)
        held.release()
        await client.spend_credits(user_id, amount=1)
        assert (await client.get_user_credit(user_id)).balance == 100 - 5 - 1
    assert not await database.faults()


async def test_items_of_two_processes_meet_in_the_book(database):
    users = [await database.user(50) for _ in range(3)]
    with ExitStack() as stack:
        started = [
            stack.enter_context(process("serve", CREDIT_DATABASE_URL=database.service_url))
            for _ in range(2)
        ]
        targets = [f"127.0.0.1:{server.wait_until_listening()}" for server in started]
        async with CreditClient(targets[0]) as one, CreditClient(targets[1]) as two:
            same = [item(users[n % 3], 1, f"same:{n}") for n in range(90)]
            batches = [
                same,
                same[::-1],
                [item(users[n % 3], 1, f"one:{n}") for n in range(60)],
                [item(users[n % 3], 1, f"two:{n}") for n in range(60)],
            ]
            answers = await asyncio.gather(
                *(
                    client.batch_spend_credits(items, mode=INDEPENDENT)
                    for items in batches
                    for client in (one, two)
                ),
                *(
                    client.batch_spend_credits(
                        [item(user_id, 2, f"atomic:{part}") for part in range(5)], mode=ATOMIC
                    )
                    for user_id in users
                    for client in (one, two)
                ),
            )
    assert {error for results in answers for error in errors(results)} <= {
        None,
        InsufficientCredits,
        BatchAborted,
    }
    for results in answers[8:]:
        assert errors(results) == [None] * 5 or set(errors(results)) == {
            BatchAborted,
            InsufficientCredits,
        }
    rows = await database.fetch("SELECT balance FROM user_credits")
    assert [row[0] for row in rows] == [0] * 3 or all(row[0] < 2 for row in rows)
    assert not await database.faults()


async def test_a_lost_commit_of_a_batch_happens_once(database, proxy):
    user_id = await database.user(100)
    async with running(server_settings(proxy.url, lanes=1)) as service:
        client = await service.client(deadline_seconds=15)
        items = [item(user_id, 1, f"spend:{n}:1") for n in range(10)]
        fault = proxy.on(COMMIT, Kind.SWALLOW)
        results = await client.batch_spend_credits(items, mode=ATOMIC)
        assert fault.met.is_set()
    assert errors(results) == [None] * 10
    assert [result.replayed for result in results] == [False] * 10
    assert not await database.faults()


@MODES
async def test_a_batch_cut_by_kill_9_is_repeated_with_its_keys(database, proxy, mode):
    user_id = await database.user(300)
    items = [item(user_id, 1, f"spend:{n}:1") for n in range(200)]
    port = free_port()
    environment = {
        "CREDIT_DATABASE_URL": proxy.url,
        "CREDIT_LISTEN": f"127.0.0.1:{port}",
        "CREDIT_LANE_BATCH": "64",
    }
    with process("serve", **environment) as server:
        await asyncio.to_thread(server.wait_until_listening)
        async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=60) as client:
            # Independent items take four transactions; the second dies with its COMMIT on the way.
            fault = proxy.on(COMMIT, Kind.CUT_AFTER, nth=2 if mode == INDEPENDENT else 1)
            call = asyncio.create_task(client.batch_spend_credits(items, mode=mode))
            await eventually(fault.met.is_set)
            server.signal(signal.SIGKILL)
            await asyncio.to_thread(server.wait)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
    proxy.forget()
    with process("serve", **environment) as server:
        await asyncio.to_thread(server.wait_until_listening)
        async with CreditClient(f"127.0.0.1:{port}", deadline_seconds=60) as client:
            results = await client.batch_spend_credits(items, mode=mode)
            assert errors(results) == [None] * 200
            assert any(result.replayed for result in results)
            again = await client.batch_spend_credits(items, mode=mode)
            assert [r.transaction for r in again] == [r.transaction for r in results]
            assert (await client.get_user_credit(user_id)).balance == 100
    assert not await database.faults()


async def test_a_batch_without_an_answer_says_so(database, proxy):
    user_id = await database.user(10)
    async with running(server_settings(proxy.url)) as service:
        client = await service.client()
        proxy.cut_all()
        proxy.black_hole()
        with pytest.raises(LedgerUnavailable):
            await client.batch_spend_credits([item(user_id, 1, "k")], mode=ATOMIC)
        proxy.heal()
        results = await eventually(lambda: _paid(client, user_id))
    assert errors(results) == [None]
    assert UUID(results[0].transaction.user_id) == user_id
    assert not await database.faults()


async def _paid(client, user_id):
    try:
        return await client.batch_spend_credits([item(user_id, 1, "k")], mode=ATOMIC)
    except LedgerUnavailable:
        return None

"""How much an account may spend in a minute, an hour and a day."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import grpc
import pytest
from kit.programs import process
from kit.refusals import refused
from kit.requests import limits
from kit.rule_tables import ALICE, TERMS, spend
from kit.storm import connected

from credit_service.client import CreditClient, item_error
from credit_service.errors import AboveSpendLimit, AccountFrozen, LimitReached, SpendLimitExceeded
from credit_service.rules.batch_state import BatchState
from credit_service.rules.decide import decide
from credit_service.rules.model import Account, Policy, SpendLimits
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared

NOON = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


async def test_spends_and_holds_count_against_a_limit_and_nothing_is_given_back(database, client):
    user_id = await database.user(1000)
    await client.set_account_policy(user_id, spend_limits=limits(day=100))
    spent = await client.spend_credits(user_id, amount=30, idempotency_key="spend:1:1")
    held = await client.hold_credits(user_id, amount=40)
    await client.refund_credits(user_id, transaction_id=spent.transaction.id)
    await client.release_hold(user_id, held.hold.id)
    await client.set_account_policy(user_id, min_balance=0)
    with pytest.raises(SpendLimitExceeded) as refusal:
        await client.spend_credits(user_id, amount=31)
    assert (refusal.value.window, refusal.value.limit, refusal.value.spent) == ("day", 100, 70)
    with pytest.raises(SpendLimitExceeded):
        await client.hold_credits(user_id, amount=31)
    assert (await client.spend_credits(user_id, amount=30, idempotency_key="spend:1:1")).replayed
    kept = await client.hold_credits(user_id, amount=30)
    # Held credits counted when they were held; overage counts when it is captured.
    with pytest.raises(SpendLimitExceeded):
        await client.capture_hold(user_id, kept.hold.id, amount=31, allow_overage=True)
    await client.capture_hold(user_id, kept.hold.id)
    assert not await database.faults()


async def test_a_validated_spend_does_not_count(database, client):
    user_id = await database.user(1000)
    await client.set_account_policy(user_id, spend_limits=limits(day=10))
    for _ in range(3):
        await client.spend_credits(user_id, amount=10, validate_only=True)
        await client.hold_credits(user_id, amount=10, validate_only=True)
    await client.spend_credits(user_id, amount=10)
    with pytest.raises(SpendLimitExceeded):
        await client.spend_credits(user_id, amount=1, validate_only=True)


async def test_an_aborted_batch_does_not_count(database, client):
    user_id = await database.user(1000)
    await client.set_account_policy(user_id, spend_limits=limits(day=10))
    items = [
        pb.BatchSpendItem(user_id=str(user_id), amount=6, idempotency_key=f"k{n}") for n in range(2)
    ]
    results = await client.batch_spend_credits(items, mode=pb.BATCH_MODE_ATOMIC)
    together = item_error(results[1])
    assert isinstance(together, AboveSpendLimit)
    assert (together.required, together.window, together.limit) == (12, "day", 10)
    await client.spend_credits(user_id, amount=5)
    results = await client.batch_spend_credits(items[:1], mode=pb.BATCH_MODE_ATOMIC)
    assert isinstance(item_error(results[0]), SpendLimitExceeded)
    assert item_error(results[0]).spent == 5
    await client.spend_credits(user_id, amount=5)
    assert not await database.faults()


async def test_a_reached_limit_says_when_to_come_back(database, service):
    user_id = await database.user(1000)
    client = await service.client()
    await client.set_account_policy(user_id, spend_limits=limits(hour=5))
    await client.spend_credits(user_id, amount=3)
    async with connected(service.target) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await stub.SpendCredits(
                pb.SpendCreditsRequest(user_id=str(user_id), amount=3, idempotency_key="k")
            )
    seen = refused(failure.value)
    assert seen.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert seen.reason == "SPEND_LIMIT_EXCEEDED"
    facts = {name: seen.facts[name] for name in ("window", "limit", "spent")}
    assert facts == {"window": "hour", "limit": "5", "spent": "3"}
    assert 0 < seen.retry_seconds <= 3600
    assert "5 credits per hour" in seen.message


async def test_a_spend_above_the_limit_itself_is_a_final_refusal(database, service):
    user_id = await database.user(1000)
    client = await service.client()
    await client.set_account_policy(user_id, spend_limits=limits(hour=5, day=7))
    hold = (await client.hold_credits(user_id, amount=5)).hold
    over = {"amount": 11, "allow_overage": True}
    for call in (
        client.spend_credits(user_id, amount=6),
        client.spend_credits(user_id, operation="stem_separation"),
        client.hold_credits(user_id, amount=6),
        client.capture_hold(user_id, hold.id, **over),
    ):
        with pytest.raises(AboveSpendLimit) as failure:
            await call
        assert not isinstance(failure.value, LimitReached)
        assert (failure.value.window, failure.value.limit) == ("hour", 5)
    answer = refused(failure.value)
    assert answer.code == grpc.StatusCode.FAILED_PRECONDITION
    assert answer.retry_seconds is None
    assert answer.facts == {"required": "6", "window": "hour", "limit": "5"}
    assert "waiting does not help" in answer.message
    assert not await database.faults()


def decided(account, amount, now, **changes_):
    """The account after a spend at this time."""
    state = BatchState.of(now, account)
    decide(state, spend(amount, key=uuid4().hex, **changes_), TERMS)
    return state.users[ALICE].account


LIMITED = Account(ALICE, 10_000, policy=Policy(limits=SpendLimits(10, 25, 40)))


def test_a_window_ends_by_the_utc_clock():
    account = decided(LIMITED, 10, NOON)
    with pytest.raises(SpendLimitExceeded) as refusal:
        decided(account, 1, NOON)
    assert (refusal.value.window, refusal.value.spent) == ("minute", 10)
    assert refusal.value.retry_ms == 30_001
    assert str(refusal.value).endswith("the next minute begins in 31 s.")
    last = NOON.replace(second=59, microsecond=999_999)
    with pytest.raises(SpendLimitExceeded) as refusal:
        decided(account, 1, last)
    assert refusal.value.retry_ms == 1
    account = decided(account, 10, last + timedelta(microseconds=1))
    assert (account.counters.minute, account.counters.hour) == (10, 20)

    with pytest.raises(SpendLimitExceeded) as refusal:
        decided(account, 6, NOON + timedelta(minutes=10))
    assert (refusal.value.window, refusal.value.spent) == ("hour", 20)
    assert refusal.value.retry_ms == (49 * 60 + 30) * 1000 + 1
    account = decided(account, 10, NOON.replace(hour=13, minute=0, second=0))
    assert (account.counters.hour, account.counters.day) == (10, 30)
    account = decided(account, 10, NOON.replace(hour=14))
    with pytest.raises(SpendLimitExceeded) as refusal:
        decided(account, 1, NOON.replace(hour=15))
    assert (refusal.value.window, refusal.value.spent) == ("day", 40)
    account = decided(account, 10, NOON.replace(day=2, hour=0, minute=0, second=0))
    counters = account.counters.minute, account.counters.hour, account.counters.day
    assert counters == (10, 10, 10)


def test_of_several_windows_that_are_full_the_last_to_end_is_named():
    limited = Account(ALICE, 100, policy=Policy(limits=SpendLimits(10, 10, 11)))
    account = decided(limited, 10, NOON)
    with pytest.raises(SpendLimitExceeded) as refusal:
        decided(account, 1, NOON)
    assert (refusal.value.window, refusal.value.limit) == ("hour", 10)
    with pytest.raises(SpendLimitExceeded) as refusal:
        decided(account, 2, NOON)
    assert (refusal.value.window, refusal.value.limit) == ("day", 11)


def test_a_window_of_another_day_at_the_same_minute_is_another_window():
    account = decided(LIMITED, 10, NOON)
    account = decided(account, 10, NOON + timedelta(days=1))
    assert (account.counters.minute, account.counters.day) == (10, 10)


def test_what_is_spent_in_the_first_instant_of_a_window_counts():
    midnight = NOON.replace(hour=0, minute=0, second=0)
    account = decided(decided(Account(ALICE, 100), 10, midnight), 1, midnight)
    counters = account.counters.minute, account.counters.hour, account.counters.day
    assert counters == (11, 11, 11)


def test_a_clock_that_was_set_back_does_not_open_a_window():
    account = decided(LIMITED, 10, NOON)
    with pytest.raises(SpendLimitExceeded):
        decided(account, 1, NOON - timedelta(minutes=5))


def test_counters_go_on_without_a_limit():
    """A limit set in the middle of a day counts what was spent of it before."""
    account = decided(Account(ALICE, 100), 30, NOON)
    account = account._replace(policy=Policy(limits=SpendLimits(day=40)))
    with pytest.raises(SpendLimitExceeded) as refusal:
        decided(account, 11, NOON)
    assert refusal.value.spent == 30


@pytest.mark.shared(False)
async def test_the_counters_of_minute_hour_and_day_are_kept_apart_in_the_book(database, client):
    user_id = await database.user(100)
    # In the future, so that no window ends before the spend.
    await database.execute(
        "UPDATE user_credits SET counted_at = clock_timestamp() + interval '2 days',"
        " spent_this_minute = 1, spent_this_hour = 2, spent_this_day = 4"
    )
    await client.spend_credits(user_id, amount=10)
    rows = await database.fetch(
        "SELECT spent_this_minute, spent_this_hour, spent_this_day,"
        " counted_at <= clock_timestamp() FROM user_credits"
    )
    assert tuple(rows[0]) == (11, 12, 14, True)


async def test_limits_hold_across_two_processes(database):
    limited, floored, frozen = [await database.user(1000) for _ in range(3)]
    with (
        process("serve", CREDIT_DATABASE_URL=database.service_url) as one,
        process("serve", CREDIT_DATABASE_URL=database.service_url) as two,
    ):
        targets = [f"127.0.0.1:{server.wait_until_listening()}" for server in (one, two)]
        async with CreditClient(targets[0]) as left, CreditClient(targets[1]) as right:
            await left.set_account_policy(limited, spend_limits=limits(day=50))
            await right.set_account_policy(floored, min_balance=960)
            await left.set_account_policy(frozen, frozen=True)
            with pytest.raises(AccountFrozen):
                await right.spend_credits(frozen, amount=1)
            asked = [
                client.spend_credits(user_id, amount=1)
                if n % 2
                else client.hold_credits(user_id, amount=1)
                for n in range(40)
                for client in (left, right)
                for user_id in (limited, floored)
            ]
            answers = await asyncio.gather(*asked, return_exceptions=True)
    refusals = [answer for answer in answers if isinstance(answer, Exception)]
    assert sorted(type(refusal).__name__ for refusal in refusals) == [
        *["InsufficientCredits"] * 40,
        *["SpendLimitExceeded"] * 30,
    ]
    rows = await database.fetch(
        "SELECT balance - held, spent_this_day FROM user_credits WHERE user_id = $1", limited
    )
    assert tuple(rows[0]) == (950, 50)
    assert not await database.faults()

"""Account policies: frozen accounts, their own floors, and who may set them; and grants."""

from dataclasses import replace
from datetime import UTC, timedelta
from uuid import uuid4

import grpc
import pytest
from kit.callers import EVERY_ROLE, bearer
from kit.requests import limits
from kit.rule_tables import ALICE, NOON, TERMS, spend
from kit.services import running, server_settings
from kit.storm import connected
from kit.waiting import eventually, patience

from credit_service.client import item_error
from credit_service.errors import (
    AboveSpendLimit,
    AccountFrozen,
    HoldExpired,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidRequest,
    SpendLimitExceeded,
    UserNotFound,
)
from credit_service.rpc.access import Authenticator
from credit_service.rules.batch_state import BatchState
from credit_service.rules.decide import decide
from credit_service.rules.model import Account, Policy
from credit_service.rules.terms import Terms
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


async def expired(client, hold):
    """Waits until the time of a hold has passed."""

    async def over():
        found = await client.get_hold(hold.user_id, hold.id)
        return found.state == pb.HOLD_STATE_EXPIRED

    await eventually(over)


async def changes(database, user_id):
    """The recorded changes, without their times."""
    rows = await database.fetch(
        "SELECT change, caller, frozen, min_balance, limit_per_minute, limit_per_hour,"
        " limit_per_day FROM credit_policy_changes WHERE user_id = $1 ORDER BY change",
        user_id,
    )
    return [tuple(row) for row in rows]


async def test_a_frozen_account_refuses_spends_and_holds_and_allows_the_rest(database, client):
    user_id = await database.user(100)
    spent = await client.spend_credits(user_id, amount=10, idempotency_key="spend:1:1")
    held = await client.hold_credits(user_id, amount=10)
    given_up = await client.hold_credits(user_id, amount=10)
    too_much = await client.hold_credits(user_id, amount=10)
    lost = await client.hold_credits(user_id, amount=10, ttl=timedelta(seconds=1))
    answer = await client.set_account_policy(user_id, frozen=True)
    assert answer.credit.frozen
    assert answer.policy.frozen
    assert (await client.get_user_credit(user_id)).frozen

    await expired(client, lost.hold)
    items = [pb.BatchSpendItem(user_id=str(user_id), amount=1, idempotency_key="b")]
    with pytest.raises(AccountFrozen):
        await client.spend_credits(user_id, amount=1)
    with pytest.raises(AccountFrozen):
        await client.hold_credits(user_id, amount=1)
    with pytest.raises(AccountFrozen):
        await client.capture_hold(user_id, lost.hold.id)
    with pytest.raises(AccountFrozen):
        await client.capture_hold(user_id, too_much.hold.id, amount=11, allow_overage=True)
    for mode in (pb.BATCH_MODE_ATOMIC, pb.BATCH_MODE_INDEPENDENT):
        (result,) = await client.batch_spend_credits(items, mode=mode)
        assert isinstance(item_error(result), AccountFrozen)

    repeated = await client.spend_credits(user_id, amount=10, idempotency_key="spend:1:1")
    assert repeated.replayed
    await client.capture_hold(user_id, held.hold.id)
    await client.release_hold(user_id, given_up.hold.id)
    await client.extend_hold(user_id, too_much.hold.id)
    await client.capture_hold(user_id, too_much.hold.id)
    await client.refund_credits(user_id, transaction_id=spent.transaction.id)
    await client.purchase_credits(user_id, 1, payment=None)
    credit = (await client.grant_credits(user_id, 1, reason="sorry")).credit
    assert (credit.balance, credit.held) == (100 - 20 + 2, 0)

    assert not (await client.set_account_policy(user_id, frozen=False)).credit.frozen
    await client.spend_credits(user_id, amount=1)
    assert not await database.faults()


@pytest.mark.shared(False)
@pytest.mark.parametrize("floor", [25, -25], ids=["a reserve", "a credit line"])
async def test_the_floor_of_an_account_overrides_the_configured_one(database, client, floor):
    user_id = await database.user(100)
    answer = await client.set_account_policy(user_id, min_balance=floor)
    assert answer.policy.min_balance == answer.credit.min_balance == floor
    with pytest.raises(InsufficientCredits) as refusal:
        await client.spend_credits(user_id, amount=101 - floor)
    assert refusal.value.shortfall == 1
    await client.hold_credits(user_id, amount=50)
    quote = await client.quote_cost({"render": 20}, user_id=user_id)
    assert quote.shortfall == max(0, 100 - 50 + floor)
    with pytest.raises(InsufficientCredits):
        await client.hold_credits(user_id, amount=51 - floor)
    spent = await client.spend_credits(user_id, amount=50 - floor)
    assert spent.credit.available == floor
    row = await database.fetch("SELECT floor FROM credit_transactions WHERE type = 'spend'")
    assert row[0][0] == floor
    assert not await database.faults()


async def test_an_account_below_a_raised_floor_still_receives_credits(database, client):
    user_id = await database.user(100)
    spent = await client.spend_credits(user_id, amount=60)
    held = await client.hold_credits(user_id, amount=10)
    await client.set_account_policy(user_id, min_balance=1000)
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=1)
    await client.capture_hold(user_id, held.hold.id)
    await client.refund_credits(user_id, transaction_id=spent.transaction.id)
    await client.grant_credits(user_id, 5, reason="a gift")
    assert (await client.get_user_credit(user_id)).balance == 95


async def test_an_expired_hold_below_a_raised_floor_cannot_be_captured(database, client):
    user_id = await database.user(100)
    lost = await client.hold_credits(user_id, amount=10, ttl=timedelta(seconds=1))
    await client.set_account_policy(user_id, min_balance=95)
    await expired(client, lost.hold)
    with pytest.raises(HoldExpired):
        await client.capture_hold(user_id, lost.hold.id)


def test_a_floor_of_zero_is_the_accounts_own_floor():
    state = BatchState.of(NOON, Account(ALICE, 10, policy=Policy(min_balance=0)))
    with pytest.raises(InsufficientCredits):
        decide(state, spend(11), replace(TERMS, min_balance=-5))


async def test_unset_fields_stay_and_zero_removes_a_limit(database, client):
    user_id = await database.user(100)
    first = await client.set_account_policy(
        user_id, frozen=True, min_balance=-3, spend_limits=limits(1, 2, 3)
    )
    assert first.policy == pb.AccountPolicy(
        frozen=True, min_balance=-3, spend_limits=limits(1, 2, 3)
    )
    second = await client.set_account_policy(user_id, frozen=False)
    assert second.policy == pb.AccountPolicy(
        frozen=False, min_balance=-3, spend_limits=limits(1, 2, 3)
    )
    third = await client.set_account_policy(user_id, min_balance=0)
    assert third.policy == pb.AccountPolicy(
        frozen=False, min_balance=0, spend_limits=limits(1, 2, 3)
    )
    with pytest.raises(AboveSpendLimit):
        await client.spend_credits(user_id, amount=50)
    fourth = await client.set_account_policy(user_id, spend_limits=limits(hour=60))
    assert fourth.policy.spend_limits == limits(hour=60)
    await client.spend_credits(user_id, amount=50)
    with pytest.raises(SpendLimitExceeded):
        await client.spend_credits(user_id, amount=11)
    last = await client.set_account_policy(user_id, spend_limits=limits())
    assert last.policy.spend_limits == limits()
    await client.spend_credits(user_id, amount=50)
    assert await changes(database, user_id) == [
        (1, "local", True, -3, 1, 2, 3),
        (2, "local", False, -3, 1, 2, 3),
        (3, "local", False, 0, 1, 2, 3),
        (4, "local", False, 0, None, 60, None),
        (5, "local", False, 0, None, None, None),
    ]
    assert not await database.faults()


@pytest.mark.shared(False)
async def test_every_change_is_recorded_with_caller_and_time_and_stays(database, tmp_path):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    authenticator = Authenticator(tmp_path / "identities.toml")
    user_id = await database.user()
    settings = server_settings(database.service_url, authenticator=authenticator)
    async with running(settings) as service:
        client = await service.client(token="token of operator")
        (before,) = (await database.fetch("SELECT clock_timestamp()"))[0]
        for _ in range(2):
            await client.set_account_policy(user_id, frozen=True)
        (after,) = (await database.fetch("SELECT clock_timestamp()"))[0]
        credit = await client.get_user_credit(user_id)
    assert await changes(database, user_id) == [
        (number, "the-operator", True, None, None, None, None) for number in (1, 2)
    ]
    rows = await database.fetch("SELECT changed_at FROM credit_policy_changes ORDER BY change")
    assert before <= rows[0][0] <= rows[1][0] <= after
    assert credit.last_updated.ToDatetime(UTC) == rows[1][0]
    assert (credit.seq, credit.balance, credit.frozen) == (0, 0, True)
    for statement in (
        "UPDATE credit_policy_changes SET caller = 'nobody'",
        "DELETE FROM credit_policy_changes",
        "TRUNCATE credit_policy_changes",
    ):
        with pytest.raises(Exception, match="append-only"):
            await database.execute(statement)


async def test_each_field_of_a_policy_can_be_reset_to_the_configured_value(database):
    user_id = await database.user(100)
    own = {
        "frozen": True,
        "min_balance": 0,
        "alert_below": 0,
        "spend_limits": limits(1, 2, 3),
    }
    configured = {
        "frozen": False,
        "min_balance": None,
        "alert_below": None,
        "spend_limits": limits(),
    }
    assert set(own) | {"allowance", "top_up"} == set(pb.AccountPolicy.DESCRIPTOR.fields_by_name)
    fields = {name: pb.PolicyField.Value(f"POLICY_FIELD_{name.upper()}") for name in own}
    settings = server_settings(database.service_url, terms=Terms(TERMS.prices, -20))
    async with running(settings) as service:
        client = await service.client()
        for name, field in fields.items():
            await client.set_account_policy(user_id, **own)
            changed = await client.set_account_policy(user_id, reset=[field, field])
            assert changed.policy == pb.AccountPolicy(**{**own, name: configured[name]})
        await client.set_account_policy(user_id, frozen=False)
        with pytest.raises(InsufficientCredits):
            await client.spend_credits(user_id, amount=101)
        everything = await client.set_account_policy(user_id, reset=fields.values())
        assert everything.policy == pb.AccountPolicy(**configured)
        assert everything.credit.min_balance == -20
        spent = await client.spend_credits(user_id, amount=101)
    assert spent.credit.balance == -1
    assert (await changes(database, user_id))[-1][3:] == (None, None, None, None)
    assert not await database.faults()


async def test_the_threshold_for_alerts_is_the_accounts_own_or_the_configured_one(database):
    user_id = await database.user(100)
    terms = replace(TERMS, alert_below=20)
    async with running(server_settings(database.service_url, terms=terms)) as service:
        client = await service.client()
        assert (await client.get_user_credit(user_id)).alert_below == 20
        for own in (30, 0, -5):
            changed = await client.set_account_policy(user_id, alert_below=own)
            assert changed.policy.alert_below == own
            assert changed.credit.alert_below == own
            assert (await client.get_user_credit(user_id)).alert_below == own
        reset = await client.set_account_policy(user_id, reset=[pb.POLICY_FIELD_ALERT_BELOW])
        assert not reset.policy.HasField("alert_below")
        assert reset.credit.alert_below == 20
    async with running(server_settings(database.service_url)) as service:
        credit = await (await service.client()).get_user_credit(user_id)
        assert not credit.HasField("alert_below")


async def test_a_field_is_reset_while_another_is_set(database, client):
    user_id = await database.user(10)
    await client.set_account_policy(user_id, min_balance=5)
    changed = await client.set_account_policy(
        user_id, frozen=True, reset=[pb.POLICY_FIELD_MIN_BALANCE]
    )
    assert changed.policy == pb.AccountPolicy(frozen=True, spend_limits=limits())
    assert await changes(database, user_id) == [
        (1, "local", False, 5, None, None, None),
        (2, "local", True, None, None, None, None),
    ]


async def test_bad_policies_are_refused(database, client):
    user_id = await database.user(10)
    before = await database.book()
    for field, arguments in (
        ("frozen", {}),
        ("min_balance", {"min_balance": 10**12 + 1}),
        ("min_balance", {"min_balance": -(10**12) - 1}),
        ("spend_limits.per_minute", {"spend_limits": limits(minute=-1)}),
        ("spend_limits.per_hour", {"spend_limits": limits(hour=-1)}),
        ("spend_limits.per_day", {"spend_limits": limits(day=10**15 + 1)}),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            await client.set_account_policy(user_id, **arguments)
        assert refusal.value.field == field
    with pytest.raises(UserNotFound):
        await client.set_account_policy(uuid4(), frozen=True)
    with pytest.raises(InvalidRequest):
        await client.set_account_policy("nobody", frozen=True)
    assert await database.book() == before
    for floor, limit in ((10**12, 10**15), (-(10**12), 1)):
        await client.set_account_policy(
            user_id, min_balance=floor, spend_limits=limits(limit, limit, limit)
        )


async def test_grants_give_credits_with_a_reason(database, client):
    user_id = await database.user()
    grant = await client.grant_credits(
        user_id,
        7,
        reason="Ticket 12",
        idempotency_key="grant:1",
        reference="t",
        metadata={"a": "b"},
    )
    entry = grant.transaction
    assert (entry.type, entry.amount, entry.balance_change) == (pb.TRANSACTION_TYPE_GRANT, 7, 7)
    assert (entry.description, entry.reference, entry.metadata) == ("Ticket 12", "t", {"a": "b"})
    assert (grant.credit.balance, grant.replayed) == (7, False)
    again = await client.grant_credits(
        user_id, 7, reason="Another reason", idempotency_key="grant:1"
    )
    assert again.replayed
    assert again.transaction == entry
    with pytest.raises(IdempotencyKeyReused) as refusal:
        await client.grant_credits(user_id, 8, reason="Ticket 12", idempotency_key="grant:1")
    assert refusal.value.field == "amount"
    with pytest.raises(IdempotencyKeyReused) as refusal:
        await client.purchase_credits(user_id, 7, payment=None, idempotency_key="grant:1")
    assert refusal.value.field == "call"
    tried = await client.grant_credits(user_id, 1, reason="a try", validate_only=True)
    assert (tried.transaction.id, tried.credit.balance) == ("", 7)
    for field, arguments in (
        ("reason", {"amount": 1, "reason": ""}),
        ("reason", {"amount": 1, "reason": "x" * 501}),
        ("amount", {"amount": 0, "reason": "x"}),
        ("amount", {"amount": 10**12 + 1, "reason": "x"}),
    ):
        with pytest.raises(InvalidRequest) as refusal:
            await client.grant_credits(user_id, **arguments)
        assert refusal.value.field == field
    with pytest.raises(UserNotFound):
        await client.grant_credits(uuid4(), 1, reason="x")
    assert not await database.faults()


@pytest.mark.parametrize("role", ["worker", "gateway", "bridge", "operator", "auditor"])
async def test_only_operators_grant_and_set_policies(database, tmp_path, role):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    authenticator = Authenticator(tmp_path / "identities.toml")
    user_id = str(await database.user(10))
    expected = grpc.StatusCode.OK if role == "operator" else grpc.StatusCode.PERMISSION_DENIED
    async with (
        running(server_settings(database.service_url, authenticator=authenticator)) as service,
        connected(service.target) as stub,
    ):
        grant = pb.GrantCreditsRequest(
            user_id=user_id, amount=1, reason="x", idempotency_key="grant:1"
        )
        policy = pb.SetAccountPolicyRequest(user_id=user_id, frozen=True)
        for call in (
            stub.GrantCredits(grant, metadata=bearer(role), timeout=patience(10)),
            stub.SetAccountPolicy(policy, metadata=bearer(role), timeout=patience(10)),
        ):
            assert await call.code() == expected

"""The calls for holds over a real socket: every answer and every refusal."""

import hashlib
from datetime import timedelta
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from kit.commands import ask, lanes
from kit.hold_tables import hold as hold_command
from kit.refusals import refused
from kit.services import TERMS, running, server_settings
from kit.shown_holds import CAPTURED, EXPIRED, HELD, RELEASED, SECOND, figures, recorded, shows
from kit.waiting import eventually

from credit_service.errors import (
    AccountFrozen,
    HoldExpired,
    HoldNotActive,
    HoldNotFound,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidRequest,
    PermissionDenied,
    PriceChanged,
    TooManyHolds,
    UserNotFound,
)
from credit_service.rpc.access import Authenticator
from credit_service.rules.terms import Terms
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared


async def expired(client, user_id, **what):
    """A hold whose time has passed."""
    made = (await client.hold_credits(user_id, ttl=SECOND, **what)).hold
    await eventually(lambda: shows(client, user_id, made.id, EXPIRED))
    return made


async def test_a_hold_is_made_and_shown(client, database):
    user_id = await database.user(100)
    response = await client.hold_credits(
        user_id,
        operation="render",
        quantity=3,
        ttl=timedelta(minutes=5),
        expected_cost=15,
        idempotency_key="hold:7:1",
        description="three of them",
        reference="job 7",
        metadata={"queue": "fast"},
    )
    entry, hold = response.transaction, response.hold
    assert figures(response.credit) == (100, 15, 85)
    assert not response.replayed
    assert (entry.type, entry.amount) == (pb.TRANSACTION_TYPE_HOLD, 15)
    assert (entry.balance_change, entry.held_change) == (0, 15)
    assert (entry.balance_after, entry.held_after) == (100, 15)
    assert (entry.id, entry.hold_id) == (hold.id, hold.id)
    assert (entry.idempotency_key, entry.reference) == ("hold:7:1", "job 7")
    assert (entry.description, dict(entry.metadata)) == ("three of them", {"queue": "fast"})
    assert (hold.user_id, hold.state, hold.amount) == (str(user_id), HELD, 15)
    assert (hold.operation, hold.quantity, hold.unit_cost) == ("render", 3, 5)
    assert (hold.price_version, hold.reference) == (TERMS.prices.version, "job 7")
    assert (hold.captured_amount, hold.settled_transaction_id) == (0, "")
    assert hold.create_time == entry.timestamp
    assert life(hold) == timedelta(minutes=5)
    assert await client.get_hold(user_id, hold.id) == hold
    assert [each async for each in client.list_holds(user_id)] == [hold]
    assert await client.get_transaction(user_id, transaction_id=hold.id) == entry


def life(hold):
    return hold.expire_time.ToDatetime() - hold.create_time.ToDatetime()


async def test_a_hold_without_a_ttl_lasts_15_minutes(client, database):
    user_id = await database.user(100)
    assert life((await client.hold_credits(user_id, amount=1)).hold) == timedelta(minutes=15)


@pytest.mark.parametrize(
    ("part", "taken", "left"),
    [
        ({}, 15, 85),
        ({"amount": 4}, 4, 96),
        ({"quantity": 2}, 10, 90),
        ({"amount": 20, "allow_overage": True}, 20, 80),
        ({"quantity": 4, "allow_overage": True}, 20, 80),
    ],
)
async def test_a_capture_takes_its_part_and_frees_the_rest(client, database, part, taken, left):
    user_id = await database.user(100)
    hold = (await client.hold_credits(user_id, operation="render", quantity=3)).hold
    response = await client.capture_hold(user_id, hold.id, idempotency_key="c", **part)
    entry = response.transaction
    assert (entry.type, entry.amount) == (pb.TRANSACTION_TYPE_CAPTURE, taken)
    assert (entry.balance_change, entry.held_change) == (-taken, -15)
    assert (entry.hold_id, entry.operation) == (hold.id, "render")
    assert (response.replayed, response.late) == (False, False)
    assert figures(response.credit) == (left, 0, left)
    shown = response.hold
    assert (shown.state, shown.captured_amount) == (CAPTURED, taken)
    assert shown.settled_transaction_id == entry.id
    assert await client.get_hold(user_id, hold.id) == shown
    again = await client.capture_hold(user_id, hold.id, idempotency_key="c", **part)
    assert (again.replayed, again.transaction, again.hold) == (True, entry, shown)
    assert not await database.faults()


@pytest.mark.parametrize("part", [{"amount": 0}, {"quantity": 0}])
async def test_a_capture_of_zero_releases(client, database, part):
    user_id = await database.user(100)
    hold = (await client.hold_credits(user_id, operation="render")).hold
    first, again = [
        await client.capture_hold(user_id, hold.id, idempotency_key="c", **part) for _ in range(2)
    ]
    assert first.transaction.type == pb.TRANSACTION_TYPE_RELEASE
    assert first.hold.state == RELEASED
    assert figures(first.credit) == (100, 0, 100)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.transaction == first.transaction
    assert not await database.faults()


async def test_a_release_is_done_once_and_replayed_to_all_callers(client, database):
    user_id = await database.user(100)
    hold = (await client.hold_credits(user_id, amount=30)).hold
    first = await client.release_hold(user_id, hold.id, idempotency_key="r")
    assert first.transaction.type == pb.TRANSACTION_TYPE_RELEASE
    assert first.hold.settled_transaction_id == first.transaction.id
    assert figures(first.credit) == (100, 0, 100)
    for key in ("r", "another"):
        again = await client.release_hold(user_id, hold.id, idempotency_key=key)
        assert (again.replayed, again.transaction) == (True, first.transaction)
        assert again.hold.state == RELEASED
    assert not await database.faults()


async def test_a_release_of_an_expired_hold_returns_its_expiry(client, database):
    user_id = await database.user(100)
    hold = await expired(client, user_id, amount=30)
    response = await client.release_hold(user_id, hold.id)
    assert response.replayed
    assert response.transaction.type == pb.TRANSACTION_TYPE_EXPIRE
    assert (response.transaction.idempotency_key, response.transaction.hold_id) == ("", hold.id)
    assert response.hold.state == EXPIRED
    assert figures(response.credit) == (100, 0, 100)


async def test_a_late_capture_is_a_spend_of_its_own(client, database):
    user_id = await database.user(100)
    hold = await expired(client, user_id, operation="render")
    response = await client.capture_hold(user_id, hold.id, idempotency_key="c")
    assert response.late
    assert not response.replayed
    entry = response.transaction
    assert (entry.balance_change, entry.held_change, entry.hold_id) == (-5, 0, hold.id)
    assert (response.hold.state, response.hold.captured_amount) == (EXPIRED, 5)
    assert figures(response.credit) == (95, 0, 95)
    again = await client.capture_hold(user_id, hold.id, idempotency_key="c")
    assert (again.late, again.replayed, again.transaction) == (True, True, entry)
    refund = await client.refund_credits(user_id, entry.id, amount=2)
    assert (refund.credit.balance, refund.transaction.operation) == (97, "render")
    assert not await database.faults()


async def test_an_extension_delays_the_end_and_never_brings_it_forward(client, database):
    user_id = await database.user(100)
    hold = (await client.hold_credits(user_id, amount=1, ttl=timedelta(minutes=5))).hold
    longer = await client.extend_hold(user_id, hold.id, ttl=timedelta(hours=24))
    assert longer.state == HELD
    assert life(longer) >= timedelta(hours=24)
    assert await client.extend_hold(user_id, hold.id, ttl=SECOND) == longer
    assert await client.extend_hold(user_id, hold.id) == longer
    assert await client.get_hold(user_id, hold.id) == longer
    assert len([each async for each in client.get_transaction_history(user_id)]) == 1


async def test_a_repeated_hold_shows_its_current_state(client, database):
    user_id = await database.user(100)
    seen = []

    async def again():
        response = await client.hold_credits(user_id, amount=1, idempotency_key="h")
        seen.append((response.replayed, response.hold.state, response.transaction.seq))
        return response.hold

    hold = await again()
    await again()
    await client.capture_hold(user_id, hold.id)
    await again()
    assert seen == [(False, HELD, 2), (True, HELD, 2), (True, CAPTURED, 2)]


async def test_validated_calls_write_nothing_and_name_no_entry(client, database):
    user_id = await database.user(100)
    hold = (await client.hold_credits(user_id, amount=30)).hold
    before = await database.book()
    made = await client.hold_credits(user_id, amount=5, validate_only=True)
    assert (made.hold.id, made.hold.state, made.hold.amount) == ("", HELD, 5)
    assert (made.transaction.hold_id, figures(made.credit)) == ("", (100, 30, 70))
    taken = await client.capture_hold(user_id, hold.id, amount=4, validate_only=True)
    given_up = await client.release_hold(user_id, hold.id, validate_only=True)
    assert (taken.transaction.amount, given_up.transaction.amount) == (4, 30)
    for response in (made, taken, given_up):
        assert (response.transaction.id, response.transaction.seq, response.replayed) == (
            "",
            0,
            False,
        )
    assert (taken.hold.state, given_up.hold.state) == (HELD, HELD)
    with pytest.raises(InsufficientCredits):
        await client.hold_credits(user_id, amount=71, validate_only=True)
    assert await database.book() == before


async def test_a_validated_hold_is_not_mistaken_for_another_one_of_its_batch(database):
    user_id = await database.user(100)
    validated = hold_command(5, "v", user=user_id, validate_only=True)
    real = hold_command(7, "h", user=user_id)
    async with lanes(database.service_url) as clerk:
        first, second = await ask(clerk, validated, real)
    assert (first.hold.amount, second.hold.amount) == (5, 7)
    assert second.hold.seq == second.entry.seq


BAD_TTLS = [
    Duration(),
    Duration(seconds=-1),
    Duration(seconds=365 * 86_400),
    Duration(seconds=86_400, nanos=1),
    Duration(nanos=999_999_999),
    Duration(seconds=1, nanos=-1),
    Duration(seconds=2**63 - 1, nanos=2**31 - 1),
    Duration(seconds=-(2**63), nanos=-(2**31)),
]


@pytest.mark.parametrize("ttl", BAD_TTLS, ids=str)
async def test_a_bad_ttl_is_refused(stub, client, database, ttl):
    user_id = await database.user(100)
    hold_id = (await client.hold_credits(user_id, amount=1)).hold.id
    before = await database.book()
    user = {"user_id": str(user_id), "ttl": ttl}
    for call in (
        stub.HoldCredits(pb.HoldCreditsRequest(amount=1, idempotency_key="k", **user)),
        stub.ExtendHold(pb.ExtendHoldRequest(hold_id=hold_id, **user)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
        answer = refused(failure.value)
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        )
        assert list(answer.violations) == ["ttl"]
    assert await database.book() == before


@pytest.mark.parametrize("ttl", [SECOND, timedelta(hours=24)])
async def test_a_ttl_at_its_limits_is_taken(client, database, ttl):
    user_id = await database.user(100)
    assert life((await client.hold_credits(user_id, amount=1, ttl=ttl)).hold) == ttl


@pytest.fixture
async def other_hold(client, database):
    """A hold of another user."""
    return (await client.hold_credits(await database.user(100), amount=1)).hold.id


@pytest.mark.parametrize("call", ["capture_hold", "release_hold", "extend_hold", "get_hold"])
async def test_a_hold_must_belong_to_the_user(client, database, other_hold, call):
    user_id = await database.user(100)
    await client.hold_credits(user_id, amount=1)
    settle = getattr(client, call)
    for unknown in (other_hold, f"{user_id}-1", f"{user_id}-999", f"{user_id}-{10**15}"):
        with pytest.raises(HoldNotFound) as failure:
            await settle(user_id, unknown)
        answer = refused(failure.value)
        assert (answer.code, answer.reason) == (grpc.StatusCode.NOT_FOUND, "HOLD_NOT_FOUND")
    for malformed in ("", "rubbish", str(user_id), f"{user_id}-", f"{user_id}-x", f"{user_id}--1"):
        with pytest.raises(InvalidRequest) as failure:
            await settle(user_id, malformed)
        assert list(refused(failure.value).violations) == ["hold_id"]
    stranger = uuid4()
    with pytest.raises(UserNotFound):
        await settle(stranger, f"{stranger}-1")
    with pytest.raises(InvalidRequest):
        await settle("nobody", other_hold)
    assert not await database.faults()


async def test_each_refusal_carries_its_code_and_facts(database):
    terms = Terms(TERMS.prices, 0, 2)
    async with running(server_settings(database.service_url, terms=terms)) as service:
        client = await service.client()
        user_id = await database.user(30)
        lost = await expired(client, user_id, amount=25)
        first = (await client.hold_credits(user_id, amount=10, idempotency_key="h")).hold

        async def refusal(kind, call):
            with pytest.raises(kind) as failure:
                await call
            return refused(failure.value)

        answer = await refusal(InsufficientCredits, client.hold_credits(user_id, amount=21))
        assert answer.code == grpc.StatusCode.FAILED_PRECONDITION
        assert answer.facts == {
            "required": "21",
            "available": "20",
            "held": "10",
            "shortfall": "1",
        }
        over = client.capture_hold(user_id, first.id, amount=31, allow_overage=True)
        answer = await refusal(InsufficientCredits, over)
        assert answer.facts["shortfall"] == "1"
        answer = await refusal(InvalidRequest, client.capture_hold(user_id, first.id, amount=11))
        assert list(answer.violations) == ["amount"]
        answer = await refusal(InvalidRequest, client.capture_hold(user_id, first.id, quantity=1))
        assert list(answer.violations) == ["quantity"]
        answer = await refusal(HoldExpired, client.capture_hold(user_id, lost.id))
        assert (answer.code, answer.reason) == (
            grpc.StatusCode.FAILED_PRECONDITION,
            "HOLD_EXPIRED",
        )
        answer = await refusal(HoldExpired, client.extend_hold(user_id, lost.id))
        assert answer.code == grpc.StatusCode.FAILED_PRECONDITION
        wrong = client.hold_credits(user_id, operation="render", expected_cost=4)
        assert (await refusal(PriceChanged, wrong)).facts["cost"] == "5"
        reused = client.hold_credits(user_id, amount=11, idempotency_key="h")
        answer = await refusal(IdempotencyKeyReused, reused)
        assert answer.facts == {"field": "amount", "transaction_id": first.id}
        second = (await client.hold_credits(user_id, amount=1)).hold
        answer = await refusal(TooManyHolds, client.hold_credits(user_id, amount=1))
        assert (answer.code, answer.facts["limit"]) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "2")
        assert 0 < answer.retry_seconds <= 15 * 60
        await client.set_account_policy(user_id, frozen=True)
        answer = await refusal(AccountFrozen, client.hold_credits(user_id, amount=1))
        assert answer.code == grpc.StatusCode.FAILED_PRECONDITION
        await refusal(AccountFrozen, client.capture_hold(user_id, lost.id, amount=1))
        await client.capture_hold(user_id, first.id)
        await client.release_hold(user_id, second.id)
        for hold, state in ((first, "CAPTURED"), (second, "RELEASED")):
            for call in (client.capture_hold, client.extend_hold):
                answer = await refusal(HoldNotActive, call(user_id, hold.id))
                assert (answer.code, answer.facts) == (
                    grpc.StatusCode.FAILED_PRECONDITION,
                    {"state": state},
                )
        answer = await refusal(HoldNotActive, client.release_hold(user_id, first.id))
        assert answer.facts == {"state": "CAPTURED"}
    assert not await database.faults()


async def test_holds_are_deleted_with_their_user(client, database):
    user_id = await database.user(100)
    hold = (await client.hold_credits(user_id, amount=1)).hold
    await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    for call in (client.get_hold, client.capture_hold, client.release_hold, client.extend_hold):
        with pytest.raises(UserNotFound):
            await call(user_id, hold.id)
    assert await recorded(database, user_id) == []


ROLES = ("worker", "gateway", "bridge", "operator", "auditor")
MAY_CALL = {
    "GetHold": ROLES,
    "ListHolds": ("gateway", "operator", "auditor"),
    "HoldCredits": ("worker", "gateway", "operator"),
    "ReleaseHold": ("worker", "gateway", "operator"),
    "ExtendHold": ("worker", "operator"),
    "CaptureHold": ("worker", "operator"),
}


@pytest.mark.parametrize("role", ROLES)
async def test_each_role_makes_its_calls_for_holds_and_no_other(database, tmp_path, role):
    file = tmp_path / "identities.toml"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(f'[[identity]]\nname = "it"\nrole = "{role}"\ntoken_sha256 = "{digest}"\n')
    user_id = await database.user(100)
    async with running(server_settings(database.service_url)) as unguarded:
        client = await unguarded.client()
        one, two = [(await client.hold_credits(user_id, amount=9)).hold.id for _ in range(2)]
    user = {"user_id": str(user_id)}
    requests = {
        "GetHold": pb.GetHoldRequest(**user, hold_id=one),
        "ListHolds": pb.ListHoldsRequest(**user),
        "HoldCredits": pb.HoldCreditsRequest(**user, amount=1, idempotency_key="1"),
        "ExtendHold": pb.ExtendHoldRequest(**user, hold_id=one),
        "CaptureHold": pb.CaptureHoldRequest(**user, hold_id=one, idempotency_key="2"),
        "ReleaseHold": pb.ReleaseHoldRequest(**user, hold_id=two, idempotency_key="3"),
    }
    settings = server_settings(database.service_url, authenticator=Authenticator(file))
    async with running(settings) as guarded:
        client = await guarded.client(token="secret")
        before = await database.book()
        for name in [name for name, allowed in MAY_CALL.items() if role not in allowed]:
            with pytest.raises(PermissionDenied):
                await client.read(getattr(client.stub, name), requests[name])
        assert await database.book() == before
        for name in [name for name, allowed in MAY_CALL.items() if role in allowed]:
            await client.read(getattr(client.stub, name), requests[name])
    assert not await database.faults()

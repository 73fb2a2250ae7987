"""Every answer to an item of CallMany is the one that its single call gets, errors included."""

import re
from datetime import timedelta
from uuid import uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from kit import many_calls
from kit.callers import EVERY_ROLE, bearer
from kit.many_calls import METHODS, capture, hold, reason, spend
from kit.mistakes import MISTAKES
from kit.requests import limits
from kit.services import running, server_settings
from kit.sound_requests import sound
from kit.storm import connected
from kit.wire import user_with_a_spend

from credit_service.rpc import access
from credit_service.rpc.access import Authenticator, Role
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared

STRANGER = uuid4()


@pytest.fixture
async def stub(service):
    async with connected(service.target) as stub:
        yield stub


async def user(client, database):
    """A user with 90 credits: a spend in place 2, a hold of 20 that is open in 3, captured in 4."""
    user_id = await database.user(100)
    await client.spend_credits(
        user_id, amount=10, idempotency_key="spent", metadata={"a": "b"}, reference="job"
    )
    await client.hold_credits(user_id, operation="render", quantity=4, idempotency_key="held")
    taken = await client.hold_credits(user_id, amount=5, idempotency_key="taken")
    await client.capture_hold(user_id, taken.hold.id, idempotency_key="captured")
    lost = await client.hold_credits(user_id, amount=5, idempotency_key="lost")
    await client.release_hold(user_id, lost.hold.id, idempotency_key="released")
    return user_id


def charged(kind, user_id, operation, quantity=1, **changes):
    item = kind(user_id, **changes)
    request = getattr(item, item.WhichOneof("call"))
    request.charge.operation, request.charge.quantity = operation, quantity
    return item


def held(user_id):
    return f"{user_id}-3"


# The request, as a function of the user's id, and the reason of the answer.
CASES = {
    "spend": (lambda u: spend(u, 7, "new", description="a stem", metadata={"job": "7"}), ""),
    "spend of work": (lambda u: charged(spend, u, "render", 3, key="new", expected_cost=15), ""),
    "spend that was made": (lambda u: spend(u, 10, "spent", reference="job"), ""),
    "spend of another amount": (lambda u: spend(u, 11, "spent"), "IDEMPOTENCY_KEY_REUSED"),
    "spend under a hold's key": (lambda u: spend(u, 20, "held"), "IDEMPOTENCY_KEY_REUSED"),
    "spend of too much": (lambda u: spend(u, 66, "new"), "INSUFFICIENT_CREDITS"),
    "spend at another price": (
        lambda u: charged(spend, u, "render", key="new", expected_cost=4),
        "PRICE_CHANGED",
    ),
    "spend of unknown work": (lambda u: charged(spend, u, "juggle", key="n"), "INVALID_REQUEST"),
    "spend of a stranger": (lambda _: spend(STRANGER, 1, "new"), "USER_NOT_FOUND"),
    "hold": (lambda u: hold(u, 7, "new", reference="job", metadata={"a": "b"}), ""),
    "hold for a minute": (lambda u: hold(u, 7, "new", ttl=Duration(seconds=60)), ""),
    "hold that was made": (lambda u: charged(hold, u, "render", 4, key="held"), ""),
    "hold that ended": (lambda u: hold(u, 5, "lost"), ""),
    "hold of too much": (lambda u: hold(u, 66, "new"), "INSUFFICIENT_CREDITS"),
    "hold of a stranger": (lambda _: hold(STRANGER, 1, "new"), "USER_NOT_FOUND"),
    "capture of all": (lambda u: capture(u, held(u), "new"), ""),
    "capture of an amount": (lambda u: capture(u, held(u), "new", amount=3), ""),
    "capture of a quantity": (lambda u: capture(u, held(u), "new", quantity=2), ""),
    "capture of nothing": (lambda u: capture(u, held(u), "new", amount=0), ""),
    "capture that was made": (lambda u: capture(u, f"{u}-4", "captured"), ""),
    "capture of more": (
        lambda u: capture(u, held(u), "new", amount=21, allow_overage=True),
        "",
    ),
    "capture of more than allowed": (
        lambda u: capture(u, held(u), "new", amount=21),
        "INVALID_REQUEST",
    ),
    "capture of more than there is": (
        lambda u: capture(u, held(u), "new", amount=500, allow_overage=True),
        "INSUFFICIENT_CREDITS",
    ),
    "capture of what was captured": (
        lambda u: capture(u, f"{u}-4", "new"),
        "HOLD_NOT_ACTIVE",
    ),
    "capture of no hold": (lambda u: capture(u, f"{u}-2", "new"), "HOLD_NOT_FOUND"),
    "capture of a stranger's": (lambda u: capture(u, f"{STRANGER}-3", "new"), "HOLD_NOT_FOUND"),
}


def without_times(message):
    """Clears the times in a message, because they differ from call to call."""
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        if field.message_type is Timestamp.DESCRIPTOR:
            message.ClearField(field.name)
            continue
        for part in value if field.is_repeated else (value,):
            if part.DESCRIPTOR.full_name != "google.protobuf.Any":
                without_times(part)
    return message


def without_waits(result):
    """Clears the wait after a limit, because it depends on the time of the call."""
    if not result.HasField("error"):
        return result
    result.error.message = re.sub(r"begins in \d+ s", "begins soon", result.error.message)
    for detail in result.error.details:
        if detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            detail.Pack(error_details_pb2.RetryInfo())
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            info.metadata.pop("retry_ms", None)
            detail.value = info.SerializeToString(deterministic=True)
    return result


def comparable(result, user_id, as_if=STRANGER):
    """A result as if it were another user's, without its index and times."""
    result.ClearField("index")
    data = without_waits(without_times(result)).SerializeToString(deterministic=True)
    return pb.CallManyResult.FromString(data.replace(str(user_id).encode(), str(as_if).encode()))


@pytest.mark.parametrize("case", CASES)
async def test_an_item_is_answered_as_its_single_call_is(case, client, stub, database):
    make, expected = CASES[case]
    one, other = await user(client, database), await user(client, database)
    single = await many_calls.result_of_single_call(stub, make(one))
    (many,) = await many_calls.results(stub, [make(other)])
    assert reason(many) == expected
    assert comparable(many, other) == comparable(single, one)
    rows = await database.fetch(
        "SELECT count(*) FROM credit_transactions WHERE user_id = ANY($1) GROUP BY user_id",
        [one, other],
    )
    assert rows[0] == rows[1]
    assert not await database.faults()


@pytest.mark.parametrize("policy", ["frozen", "limited"])
async def test_an_account_that_may_not_spend_gives_the_same_answers(policy, client, stub, database):
    for kind in (spend, hold):
        pair = []
        for _ in range(2):
            user_id = await user(client, database)
            if policy == "frozen":
                await client.set_account_policy(user_id, frozen=True)
            else:
                await client.set_account_policy(user_id, spend_limits=limits(day=12))
            pair.append(user_id)
        one, other = pair
        single = await many_calls.result_of_single_call(stub, kind(one, 11, "new"))
        (many,) = await many_calls.results(stub, [kind(other, 11, "new")])
        assert reason(many) in {"ACCOUNT_FROZEN", "SPEND_LIMIT_EXCEEDED"}
        assert comparable(many, other) == comparable(single, one)


@pytest.mark.parametrize("kind", METHODS)
async def test_a_mistake_in_an_item_is_named_as_in_its_single_call(kind, client, stub, database):
    user_id = await user_with_a_spend(client, database)
    method = METHODS[kind]
    request = sound(user_id)[method]
    items = []
    for change, _, _ in MISTAKES[method]:
        item = pb.CallManyItem()
        mistaken = getattr(item, kind)
        mistaken.SetInParent()
        for name, value in (request | change).items():
            mistaken.ClearField(name)
            if value is not None:
                mistaken.MergeFrom(type(mistaken)(**{name: value}))
        items.append(item)
    book = await database.book()
    many = []
    for start in range(0, len(items), 20):
        many += await many_calls.results(stub, items[start : start + 20])
    for item, result in zip(items, many, strict=True):
        single = await many_calls.result_of_single_call(stub, item)
        assert reason(result) == "INVALID_REQUEST"
        assert comparable(result, user_id) == comparable(single, user_id, STRANGER)
    assert await database.book() == book


async def test_a_hold_that_has_expired_is_answered_as_in_a_single_call(client, stub, database):
    pair = []
    for _ in range(2):
        user_id = await user(client, database)
        await database.execute(
            "UPDATE credit_holds SET created_at = created_at - interval '1 day',"
            " expires_at = now() - interval '1 hour' WHERE user_id = $1 AND state = 'held'",
            user_id,
        )
        await database.execute(
            "UPDATE user_credits SET next_hold_expiry = now() - interval '1 hour'"
            " WHERE user_id = $1",
            user_id,
        )
        pair.append(user_id)
    one, other = pair
    single = await many_calls.result_of_single_call(stub, capture(one, held(one), "new"))
    (many,) = await many_calls.results(stub, [capture(other, held(other), "new")])
    assert many.capture.late or reason(many) == "HOLD_EXPIRED"
    assert comparable(many, other) == comparable(single, one)


async def test_a_repeated_call_shows_what_it_changed_in_grants(client, stub, database):
    user_id = await database.user()
    await client.grant_credits(
        user_id, 50, reason="gift", valid_for=timedelta(hours=1), idempotency_key="given"
    )
    items = [spend(user_id, 7, "spent"), hold(user_id, 8, "held")]
    first = await many_calls.results(stub, items)
    assert first[0].spend.transaction.grant_changes[0].remaining_change == -7
    again = await many_calls.results(stub, items)
    assert [again[0].spend.replayed, again[1].hold.replayed] == [True, True]
    assert again[0].spend.transaction == first[0].spend.transaction
    assert again[1].hold.transaction == first[1].hold.transaction
    for item, result in zip(items, again, strict=True):
        single = await many_calls.result_of_single_call(stub, item)
        assert comparable(result, user_id) == comparable(single, user_id)


async def test_a_key_is_the_same_in_an_item_and_in_a_single_call(client, stub, database):
    user_id = await database.user(100)
    by_item, by_call = spend(user_id, 1, "first an item"), hold(user_id, 2, "first a call")
    (first,) = await many_calls.results(stub, [by_item])
    repeated = await many_calls.result_of_single_call(stub, by_item)
    assert repeated.spend.replayed
    assert repeated.spend.transaction == first.spend.transaction
    called = await many_calls.result_of_single_call(stub, by_call)
    (again,) = await many_calls.results(stub, [by_call])
    assert again.hold.replayed
    assert again.hold.transaction == called.hold.transaction


async def test_an_item_of_an_unsupported_kind_is_refused_alone(stub, database):
    user_id = await database.user(10)
    empty = pb.CallManyItem()
    later = pb.CallManyItem.FromString(b"\xf2\x3f\x05hello")  # a call of a later release
    dry = spend(user_id, 1, "k", validate_only=True)
    *wrong, right = await many_calls.results(stub, [empty, later, dry, spend(user_id, 1, "k")])
    assert [many_calls.info(result).metadata["field"] for result in wrong] == [
        "call",
        "call",
        "validate_only",
    ]
    assert right.spend.credit.balance == 9


async def test_an_item_needs_the_right_of_its_single_call(database, tmp_path, monkeypatch):
    (tmp_path / "identities.toml").write_text(EVERY_ROLE)
    settings = server_settings(
        database.service_url, authenticator=Authenticator(tmp_path / "identities.toml")
    )
    user_id = await database.user(100)
    monkeypatch.setitem(access.CALLS, "HoldCredits", frozenset({Role.OPERATOR}))
    async with running(settings) as service, connected(service.target) as stub:
        items = [spend(user_id, 1), hold(user_id, 2), capture(user_id, f"{user_id}-7", "k")]
        as_worker = await many_calls.results(stub, items, metadata=bearer("worker"))
        assert [reason(result) for result in as_worker] == [
            "",
            "PERMISSION_DENIED",
            "HOLD_NOT_FOUND",
        ]
        single = await many_calls.result_of_single_call(stub, items[1], metadata=bearer("worker"))
        assert as_worker[1].error == single.error
        assert as_worker[0].spend.transaction.caller == "the-worker"
        as_operator = await many_calls.results(stub, items, metadata=bearer("operator"))
        assert reason(as_operator[1]) == ""
        assert as_operator[1].hold.transaction.caller == "the-operator"
    assert as_operator[1].hold.hold.user_id == str(user_id)


async def test_five_hundred_items_over_many_users_are_each_answered(stub, database):
    users = [await database.user(100) for _ in range(20)]
    items = [spend(users[n % 20], 1 + n // 20, f"spend:{n}") for n in range(500)]
    found = await many_calls.results(stub, items)
    # 1 + 2 + ... + 13 credits are 91 of the 100 that each user has.
    assert [reason(result) for result in found] == [""] * 260 + ["INSUFFICIENT_CREDITS"] * 240
    for item, result in zip(items[:260], found[:260], strict=True):
        paid, asked = result.spend.transaction, item.spend
        assert (paid.user_id, paid.amount) == (asked.user_id, asked.amount)
        assert paid.idempotency_key == asked.idempotency_key
    assert not await database.faults()

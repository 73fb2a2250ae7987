"""Automatic top-ups through the socket: when accounts ask, what the bridge sees and answers."""

import asyncio
from uuid import uuid4

import pytest
from kit.requests import payment

from credit_service.client import item_error
from credit_service.errors import (
    BatchAborted,
    InsufficientCredits,
    InvalidRequest,
    PaymentReused,
    TopUpHasPayment,
    TopUpNotFound,
    TopUpNotOpen,
    UserNotFound,
)
from credit_service.v1 import credit_service_pb2 as pb

pytestmark = pytest.mark.shared

OPEN, SUCCEEDED, FAILED, NOT_NEEDED = (
    pb.TOP_UP_STATE_OPEN,
    pb.TOP_UP_STATE_SUCCEEDED,
    pb.TOP_UP_STATE_FAILED,
    pb.TOP_UP_STATE_NOT_NEEDED,
)
TRY_AGAIN, GIVEN_UP, WITHOUT_NEED = (
    pb.TOP_UP_FAILURE_TRY_AGAIN,
    pb.TOP_UP_FAILURE_GIVEN_UP,
    pb.TOP_UP_FAILURE_NOT_NEEDED,
)
POLICY = pb.TopUp(below=20, pack="hundred", charges_per_month=3)


async def with_top_up(database, client, credits_=100, policy=POLICY):
    user_id = await database.user(credits_)
    await client.set_account_policy(user_id, top_up=policy)
    return user_id


async def requests(client, user_id, *, open_only=False):
    return [each async for each in client.list_top_ups(user_id, open_only=open_only)]


async def the_open_one(client, user_id):
    (found,) = await requests(client, user_id, open_only=True)
    return found


async def asked(database, client, **options):
    """A user who has spent down to 10 credits, and the request that this made."""
    user_id = await with_top_up(database, client, **options)
    await client.spend_credits(user_id, amount=90)
    return user_id, await the_open_one(client, user_id)


async def shown(client, user_id):
    return (await client.get_user_credit(user_id)).top_up


async def test_a_spend_that_leaves_little_is_topped_up_by_the_bridge(database, client):
    user_id = await with_top_up(database, client)
    await client.spend_credits(user_id, amount=80)
    assert await requests(client, user_id) == []
    spent = await client.spend_credits(user_id, amount=1)
    request = await the_open_one(client, user_id)
    assert (request.user_id, request.pack, request.state) == (str(user_id), "hundred", OPEN)
    assert (request.payment_ref, request.tries, request.transaction_id) == ("", 0, "")
    assert request.create_time == request.update_time == spent.transaction.timestamp
    assert 0 < len(request.id) <= 80
    everyone = {each.user_id: each async for each in client.list_top_ups()}
    assert everyone[str(user_id)] == request

    await client.spend_credits(user_id, amount=1)
    noted = await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert noted.needed
    assert noted.top_up.payment_ref == f"pi_{user_id}"
    again = await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert again == noted

    bought = await client.purchase_credits(user_id, 100, payment=payment(f"pi_{user_id}"))
    (closed,) = await requests(client, user_id)
    assert (closed.state, closed.transaction_id) == (SUCCEEDED, bought.transaction.id)
    assert await requests(client, user_id, open_only=True) == []
    status = await shown(client, user_id)
    assert status.policy == POLICY
    assert (status.charges_this_month, status.failures, status.off) == (1, 0, 0)
    assert not status.HasField("open")
    late = await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert (late.needed, late.top_up) == (False, closed)
    assert not await database.faults()


async def test_holds_and_captures_ask_and_releases_and_expiries_do_not(database, client):
    user_id = await with_top_up(database, client)
    hold = await client.hold_credits(user_id, amount=90)
    first = await the_open_one(client, user_id)
    await client.fail_top_up(user_id, first.id, 0, reason="by hand", failure=WITHOUT_NEED)
    await client.capture_hold(user_id, hold.hold.id, amount=85)
    second = await the_open_one(client, user_id)
    await client.fail_top_up(user_id, second.id, 0, reason="by hand", failure=WITHOUT_NEED)
    await client.adjust_credits(user_id, -10, reason="a slip")
    held = await database.fetch("SELECT count(*) FROM credit_top_ups WHERE user_id = $1", user_id)
    assert held[0][0] == 2
    with pytest.raises(InsufficientCredits):
        await client.hold_credits(user_id, amount=50)
    third = await the_open_one(client, user_id)
    assert [each.id for each in await requests(client, user_id)] == [third.id, second.id, first.id]
    assert not await database.faults()


async def test_a_refused_spend_asks_only_while_little_is_left(database, client):
    user_id = await with_top_up(database, client, 30)
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=40)
    assert await requests(client, user_id) == []
    await client.adjust_credits(user_id, -15, reason="a slip")
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=40, validate_only=True)
    assert await requests(client, user_id) == []
    with pytest.raises(InsufficientCredits):
        await client.spend_credits(user_id, amount=40)
    assert (await the_open_one(client, user_id)).pack == "hundred"
    assert not await database.faults()


async def test_validated_repeated_and_jointly_refused_spends_ask_for_nothing(database, client):
    user_id = await with_top_up(database, client)
    await client.spend_credits(user_id, amount=90, validate_only=True)
    items = [
        pb.BatchSpendItem(user_id=str(user_id), amount=amount, idempotency_key=f"{amount}")
        for amount in (90, 11)
    ]
    results = await client.batch_spend_credits(items, mode=pb.BATCH_MODE_ATOMIC)
    refusals = [type(item_error(each)) for each in results]
    assert refusals == [BatchAborted, InsufficientCredits]
    assert await requests(client, user_id) == []
    await client.batch_spend_credits(items[:1], mode=pb.BATCH_MODE_ATOMIC)
    first = await the_open_one(client, user_id)
    await client.fail_top_up(user_id, first.id, 0, reason="by hand", failure=WITHOUT_NEED)
    replayed = await client.spend_credits(user_id, amount=90, idempotency_key="90")
    assert replayed.replayed
    assert await requests(client, user_id, open_only=True) == []


async def test_a_frozen_account_is_not_topped_up(database, client):
    user_id = await with_top_up(database, client)
    hold = await client.hold_credits(user_id, amount=60)
    await client.set_account_policy(
        user_id, frozen=True, top_up=pb.TopUp(below=90, pack="hundred", charges_per_month=3)
    )
    await client.capture_hold(user_id, hold.hold.id)
    assert await requests(client, user_id) == []
    await client.set_account_policy(user_id, frozen=False)
    await client.spend_credits(user_id, amount=1)
    request = await the_open_one(client, user_id)
    await client.set_account_policy(user_id, frozen=True)
    assert not (await client.note_top_up(user_id, request.id, f"pi_{user_id}")).needed


async def test_three_failures_switch_it_off_until_the_customer_pays(database, client):
    user_id, request = await asked(database, client)
    ref, link = f"pi_{user_id}", "https://shop.example/pay"
    await client.note_top_up(user_id, request.id, ref)
    first = await client.fail_top_up(
        user_id, request.id, 1, reason="declined", link=link, failure=TRY_AGAIN
    )
    assert (first.top_up.state, first.top_up.tries, first.off) == (OPEN, 1, 0)
    assert (first.top_up.reason, first.top_up.link) == ("declined", link)
    again = await client.fail_top_up(user_id, request.id, 1, reason="other", failure=TRY_AGAIN)
    assert (again.replayed, again.top_up) == (True, first.top_up)
    with pytest.raises(InvalidRequest) as refusal:
        await client.fail_top_up(user_id, request.id, 3, reason="declined", failure=TRY_AGAIN)
    assert refusal.value.field == "try_number"
    await client.fail_top_up(user_id, request.id, 2, reason="declined", failure=TRY_AGAIN)
    assert (await client.note_top_up(user_id, request.id, ref)).needed
    last = await client.fail_top_up(
        user_id, request.id, 3, reason="declined", failure=GIVEN_UP, payment_ref=ref
    )
    assert (last.top_up.state, last.top_up.tries) == (FAILED, 3)
    assert last.off == pb.TOP_UP_OFF_FAILURES
    repeat = await client.fail_top_up(
        user_id, request.id, 3, reason="declined", failure=GIVEN_UP, payment_ref=ref
    )
    assert (repeat.replayed, repeat.top_up, repeat.off) == (True, last.top_up, last.off)
    await client.spend_credits(user_id, amount=1)
    assert await requests(client, user_id, open_only=True) == []
    status = await shown(client, user_id)
    assert (status.off, status.failures) == (pb.TOP_UP_OFF_FAILURES, 3)

    await client.purchase_credits(user_id, 5, payment=payment(uuid4().hex))
    status = await shown(client, user_id)
    assert (status.off, status.failures) == (0, 0)
    await client.spend_credits(user_id, amount=1)
    assert (await the_open_one(client, user_id)).tries == 0
    assert not await database.faults()


async def test_a_third_failure_with_another_try_leaves_a_request_that_is_not_needed(
    database, client
):
    user_id, request = await asked(database, client)
    await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    for number in (1, 2, 3):
        answer = await client.fail_top_up(
            user_id, request.id, number, reason="declined", failure=TRY_AGAIN
        )
    assert (answer.off, answer.top_up.state) == (pb.TOP_UP_OFF_FAILURES, OPEN)
    noted = await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert (noted.needed, noted.top_up.state) == (False, OPEN)
    await client.set_account_policy(user_id, top_up=POLICY)
    assert (await client.note_top_up(user_id, request.id, f"pi_{user_id}")).needed
    assert (await shown(client, user_id)).failures == 0


async def test_a_reversed_top_up_switches_it_off_until_the_policy_is_set_again(database, client):
    user_id, request = await asked(database, client)
    ref = f"pi_{user_id}"
    await client.note_top_up(user_id, request.id, ref)
    await client.purchase_credits(user_id, 100, payment=payment(ref))
    money = {"paid_minor": 999, "currency": "eur", "reason": "dispute"}
    for revision, reversed_minor in ((1, 0), (2, 1), (2, 1), (3, 0)):
        await client.reverse_purchase(
            ref,
            reversal_ref=f"du_{user_id}",
            revision=revision,
            reversed_minor=reversed_minor,
            **money,
        )
        off = pb.TOP_UP_OFF_REVERSAL if revision > 1 else 0
        assert (await shown(client, user_id)).off == off
    await client.spend_credits(user_id, amount=100)
    assert await requests(client, user_id, open_only=True) == []
    await client.set_account_policy(user_id, top_up=POLICY)
    await client.spend_credits(user_id, amount=1)
    assert (await the_open_one(client, user_id)).state == OPEN
    assert not await database.faults()


async def test_a_month_takes_no_more_charges_than_the_policy_says(database, client):
    policy = pb.TopUp(below=20, pack="small", charges_per_month=2)
    user_id = await with_top_up(database, client, 21, policy)
    for number in (1, 2):
        await client.spend_credits(user_id, amount=2)
        request = await the_open_one(client, user_id)
        await client.note_top_up(user_id, request.id, f"pi_{number}_{user_id}")
        await client.purchase_credits(user_id, 2, payment=payment(f"pi_{number}_{user_id}"))
    await client.spend_credits(user_id, amount=2)
    assert await requests(client, user_id, open_only=True) == []
    assert (await shown(client, user_id)).charges_this_month == 2
    await client.set_account_policy(
        user_id, top_up=pb.TopUp(below=20, pack="small", charges_per_month=3)
    )
    await client.spend_credits(user_id, amount=2)
    assert (await the_open_one(client, user_id)).pack == "small"
    assert not await database.faults()


async def test_a_note_finds_the_purchase_that_came_before_it(database, client):
    user_id, request = await asked(database, client)
    bought = await client.purchase_credits(user_id, 100, payment=payment(f"pi_{user_id}"))
    assert (await the_open_one(client, user_id)).id == request.id
    noted = await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert (noted.needed, noted.top_up.state) == (False, SUCCEEDED)
    assert noted.top_up.transaction_id == bought.transaction.id
    assert (await shown(client, user_id)).charges_this_month == 1
    assert not await database.faults()


async def test_another_purchase_makes_the_open_request_unneeded(database, client):
    user_id, request = await asked(database, client)
    await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    await client.purchase_credits(user_id, 100, payment=payment(uuid4().hex))
    noted = await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert (noted.needed, noted.top_up.state) == (False, OPEN)
    with pytest.raises(TopUpHasPayment) as refusal:
        await client.fail_top_up(user_id, request.id, 0, reason="enough", failure=WITHOUT_NEED)
    assert refusal.value.payment_ref == f"pi_{user_id}"
    for replayed in (False, True):
        answer = await client.fail_top_up(
            user_id,
            request.id,
            0,
            reason="enough",
            failure=WITHOUT_NEED,
            payment_ref=f"pi_{user_id}",
        )
        assert (answer.top_up.state, answer.replayed) == (NOT_NEEDED, replayed)
    assert (await shown(client, user_id)).failures == 0
    assert not await database.faults()


async def test_a_payment_that_is_credited_late_closes_a_request_that_was_given_up(database, client):
    user_id, request = await asked(database, client)
    ref = f"pi_{user_id}"
    await client.note_top_up(user_id, request.id, ref)
    await client.fail_top_up(
        user_id, request.id, 1, reason="declined", failure=GIVEN_UP, payment_ref=ref
    )
    await client.spend_credits(user_id, amount=1)
    other = await the_open_one(client, user_id)
    await client.purchase_credits(user_id, 100, payment=payment(ref))
    states = {each.id: each.state for each in await requests(client, user_id)}
    assert states == {request.id: SUCCEEDED, other.id: OPEN}
    status = await shown(client, user_id)
    assert (status.failures, status.charges_this_month) == (0, 1)
    assert not await database.faults()


async def test_a_request_has_one_payment_and_a_payment_one_request(database, client):
    user_id, request = await asked(database, client)
    other_user, other = await asked(database, client)
    ref = f"pi_{user_id}"
    await client.note_top_up(user_id, request.id, ref)
    with pytest.raises(TopUpHasPayment) as refusal:
        await client.note_top_up(user_id, request.id, "pi_another")
    assert refusal.value.payment_ref == ref
    with pytest.raises(PaymentReused) as refusal:
        await client.note_top_up(other_user, other.id, ref)
    assert (refusal.value.payment_ref, refusal.value.field) == (ref, "top_up_id")
    foreign = uuid4().hex
    await client.purchase_credits(user_id, 1, payment=payment(foreign))
    with pytest.raises(PaymentReused) as refusal:
        await client.note_top_up(other_user, other.id, foreign)
    assert (refusal.value.payment_ref, refusal.value.field) == (foreign, "user_id")


async def test_a_request_that_was_closed_without_a_payment_accepts_none(database, client):
    user_id, request = await asked(database, client)
    await client.fail_top_up(user_id, request.id, 1, reason="no card", failure=GIVEN_UP)
    with pytest.raises(TopUpNotOpen) as refusal:
        await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert refusal.value.state == "FAILED"
    with pytest.raises(TopUpNotOpen) as refusal:
        await client.fail_top_up(user_id, request.id, 2, reason="late", failure=TRY_AGAIN)
    with pytest.raises(TopUpNotOpen):
        await client.fail_top_up(user_id, request.id, 0, reason="late", failure=WITHOUT_NEED)


async def test_the_id_of_a_request_is_never_used_again(database, client):
    user_id, request = await asked(database, client)
    await database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    with pytest.raises(UserNotFound):
        await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    await database.make_anew(user_id, 100)
    await client.set_account_policy(user_id, top_up=POLICY)
    await client.spend_credits(user_id, amount=90)
    assert (await the_open_one(client, user_id)).id != request.id
    with pytest.raises(TopUpNotFound) as refusal:
        await client.note_top_up(user_id, request.id, f"pi_{user_id}")
    assert refusal.value.top_up_id == request.id
    with pytest.raises(TopUpNotFound):
        await client.note_top_up(await database.user(1), request.id, f"pi_{user_id}")


async def test_pages_go_through_all_requests(database, client, stub):
    users = {str((await asked(database, client))[0]) for _ in range(5)}
    seen = [each.user_id async for each in client.list_top_ups(page_size=2)]
    assert seen == sorted(seen)
    assert users <= set(seen)
    user_id = await with_top_up(database, client, 10)
    for _ in range(5):
        await client.spend_credits(user_id, amount=1)
        request = await the_open_one(client, user_id)
        await client.fail_top_up(user_id, request.id, 0, reason="test", failure=WITHOUT_NEED)
    all_of_it = await requests(client, user_id)
    paged = [each async for each in client.list_top_ups(user_id, open_only=False, page_size=2)]
    assert paged == all_of_it
    assert len(paged) == 5
    with pytest.raises(InvalidRequest) as refusal:
        [each async for each in client.list_top_ups(open_only=False)]
    assert refusal.value.field == "open_only"
    with pytest.raises(UserNotFound):
        await requests(client, uuid4())


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (pb.TopUp(below=0, pack="p", charges_per_month=1), "top_up.below"),
        (pb.TopUp(below=1, pack="", charges_per_month=1), "top_up.pack"),
        (pb.TopUp(below=1, pack="Big pack", charges_per_month=1), "top_up.pack"),
        (pb.TopUp(below=1, pack="p", charges_per_month=0), "top_up.charges_per_month"),
        (pb.TopUp(below=1, pack="p", charges_per_month=1001), "top_up.charges_per_month"),
    ],
)
async def test_a_policy_that_makes_no_sense_is_refused(database, client, policy, field):
    with pytest.raises(InvalidRequest) as refusal:
        await client.set_account_policy(await database.user(), top_up=policy)
    assert refusal.value.field == field


async def test_the_policy_is_shown_and_can_be_reset(database, client):
    user_id, request = await asked(database, client)
    answer = await client.set_account_policy(user_id, min_balance=0)
    assert answer.policy.top_up == POLICY
    answer = await client.set_account_policy(user_id, reset=[pb.POLICY_FIELD_TOP_UP])
    assert not answer.policy.HasField("top_up")
    assert not (await client.note_top_up(user_id, request.id, f"pi_{user_id}")).needed
    status = await shown(client, user_id)
    assert not status.HasField("policy")
    assert status.open.id == request.id
    assert not (await client.get_user_credit(await database.user(3))).HasField("top_up")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"top_up_id": ""}, "top_up_id"),
        ({"top_up_id": "t1"}, "top_up_id"),
        ({"reason": ""}, "reason"),
        ({"link": "javascript:alert(1)"}, "link"),
        ({"link": "https://" + "a" * 2041}, "link"),
        ({"failure": pb.TOP_UP_FAILURE_UNSPECIFIED}, "failure"),
        ({"try_number": 0}, "try_number"),
        ({"payment_ref": "a" * 256}, "payment_ref"),
    ],
)
async def test_a_malformed_failure_is_refused(database, client, fields, field):
    user_id, request = await asked(database, client)
    given = {
        "top_up_id": request.id,
        "try_number": 1,
        "reason": "declined",
        "failure": TRY_AGAIN,
    } | fields
    with pytest.raises(InvalidRequest) as refusal:
        await client.fail_top_up(user_id, **given)
    assert refusal.value.field == field


async def test_many_spends_at_once_at_the_threshold_make_one_request(database, client):
    user_id = await with_top_up(database, client)
    await asyncio.gather(*(client.spend_credits(user_id, amount=2) for _ in range(50)))
    assert len(await requests(client, user_id)) == 1
    assert not await database.faults()

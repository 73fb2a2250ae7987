"""The effect of a dispute's result on the book, for charges in a currency other than the account's.

Stripe takes and returns money at the rates of two different days, and its fee may be a withdrawal.
"""

import itertools

import pytest
from kit.bridge_stage import counted

IN_EUROS = {"settled": 1_850, "settled_in": "eur"}
WITH_A_FEE = {"fee_apart": True}


async def disputed(stage, **how):
    """A payment of 2,000 usd for 1,000 credits that is disputed; returns user and dispute."""
    user = await stage.user()
    price = {"currency": "usd", "unit_amount": 2_000, "product_data": {"name": "Credits"}}
    lines = [{"price_data": price, "quantity": 1}]
    paid = await stage.fake.purchase(user, credits_=1_000, line_items=lines)
    await stage.tell(*await stage.events(paid))
    return user, (await stage.fake.do("dispute", payment=paid, **how))["id"]


@pytest.mark.parametrize(
    ("how", "action", "result", "left"),
    [
        (IN_EUROS, "win", {"settled": 1_840}, 1_000),
        (IN_EUROS, "win", {"settled": 1_930}, 1_000),
        (WITH_A_FEE, "win", {"settled": 2_000}, 1_000),
        (IN_EUROS, "lose", {}, 0),
        (IN_EUROS, "lose", {"returned": 12}, 0),
        (WITH_A_FEE, "lose", {}, 0),
        (IN_EUROS | {"amount": 500}, "lose", {"returned": 12}, 750),
        (IN_EUROS | {"amount": 500}, "win", {"settled": 1_840}, 1_000),
    ],
)
async def test_a_won_dispute_leaves_nothing_taken_and_a_lost_one_takes_the_disputed_share(
    stage, how, action, result, left
):
    user, dispute = await disputed(stage, **how)
    await stage.tell(*await stage.events(dispute))
    assert await stage.balance(user) == 1_000 - 1_000 * how.get("amount", 2_000) // 2_000
    await stage.fake.do(action, id=dispute, **result)
    events = await stage.events(dispute)
    assert await stage.tell(*reversed(events), *events) == [(200, "reversal")] * 2 * len(events)
    assert await stage.balance(user) == left
    assert not await stage.database.faults()


async def test_events_of_a_won_dispute_end_in_one_balance_in_every_order(stage):
    orders = list(itertools.permutations(range(4)))
    for order in orders:
        user, dispute = await disputed(stage, **IN_EUROS)
        await stage.fake.do("win", id=dispute, settled=1_840)
        events = await stage.events(dispute)
        assert len(events) == len(order)
        assert {status for status, _ in await stage.tell(*(events[at] for at in order))} == {200}
        assert await stage.balance(user) == 1_000
    assert not await stage.database.faults()


@pytest.mark.parametrize(
    ("action", "result", "reason", "left"),
    [
        ("lose", {"returned": 925}, "dispute_partly_returned", 500),
        ("win", {"settled": 925}, "dispute_partly_returned", 1_000),
        ("lose", {"returned": 1_850}, "dispute_lost_and_returned", 1_000),
    ],
)
async def test_money_that_came_back_in_part_or_contrary_to_the_result_calls_a_person_once(
    stage, action, result, reason, left
):
    user, dispute = await disputed(stage, **IN_EUROS)
    await stage.tell(*await stage.events(dispute))
    await stage.fake.do(action, id=dispute, **result)
    *_, last = await stage.events(dispute)
    before = counted("alerts", reason=reason)
    assert await stage.tell(last, last) == [(200, reason)] * 2
    assert counted("alerts", reason=reason) == before + 1
    assert await stage.balance(user) == left


async def test_a_dispute_that_is_won_after_a_partial_return_gives_back_the_rest(stage):
    user, dispute = await disputed(stage, **IN_EUROS)
    await stage.fake.do("reinstate", id=dispute, amount=925)
    await stage.tell(*await stage.events(dispute))
    assert await stage.balance(user) == 500
    await stage.fake.do("change_dispute", id=dispute, status="won")
    *_, won = await stage.events(dispute)
    assert await stage.tell(won) == [(200, "dispute_partly_returned")]
    assert await stage.balance(user) == 1_000

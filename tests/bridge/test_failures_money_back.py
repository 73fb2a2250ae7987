"""How money goes back: refunds and disputes in any order, number, state and currency."""

import itertools

import pytest
from kit.bridge_stage import counted

EURO = "eur"


def priced(currency, amount):
    price = {"currency": currency, "unit_amount": amount, "product_data": {"name": "Credits"}}
    return [{"price_data": price, "quantity": 1}]


async def test_15_a_refund_before_its_purchase_is_known_grants_and_reverses(stage):
    user = await stage.user()
    session = await stage.fake.session(user)
    paid = (await stage.fake.pay_session(session["id"]))["payment_intent"]
    refund = await stage.fake.refund(paid, amount=300)
    purchase = await stage.events(session["id"], paid)
    (reversal,) = await stage.events(refund["id"])
    assert await stage.tell(reversal) == [(200, "reversal")]
    assert await stage.entries(user) == [100, -33]
    assert await stage.tell(*purchase, reversal) == [(200, "purchase")] * 2 + [(200, "reversal")]
    assert await stage.entries(user) == [100, -33]


async def test_16_two_partial_refunds_take_their_exact_share_in_every_order_and_repetition(stage):
    orders = list(itertools.permutations(range(4)))
    for order, user in zip(orders, await stage.users(len(orders)), strict=True):
        paid = await stage.bought(user, 101, 900)
        first = await stage.fake.refund(paid, amount=100)
        second = await stage.fake.refund(paid, amount=333)
        events = await stage.events(first["id"], second["id"], first["charge"])
        kinds = [event["type"] for event in events]
        assert kinds == ["refund.created"] * 2 + ["charge.refunded"] * 2
        shuffled = [events[place] for place in order]
        assert {status for status, _ in await stage.tell(*shuffled, *shuffled)} == {200}
        assert await stage.balance(user) == 101 - 101 * 433 // 900
        assert len(await stage.entries(user)) == 3
    assert not await stage.database.faults()


@pytest.mark.parametrize(("amount", "parts"), [(900, (300,) * 3), (1000, (333, 333, 334))])
async def test_17_three_refunds_of_a_third_take_all_credits_and_no_more(stage, amount, parts):
    user = await stage.user()
    paid = await stage.bought(user, 100, amount)
    left = []
    for part in parts:
        refund = await stage.fake.refund(paid, amount=part)
        await stage.tell(*await stage.events(refund["id"]))
        left.append(await stage.balance(user))
    assert left == [67, 34, 0]
    assert not await stage.database.faults()


async def test_18_a_refund_that_fails_gives_its_credits_back_and_never_takes_them_after(stage):
    in_order, reversed_, failed_first = await stage.users(3)
    for user, step, left in ((in_order, 1, [0, 100]), (reversed_, -1, [100, 100])):
        refund = await stage.fake.refund(await stage.bought(user))
        (created,) = await stage.events(refund["id"])
        await stage.fake.change_refund(refund["id"], "failed")
        failed = await stage.events(refund["id"])
        assert [event["type"] for event in failed] == [
            "refund.created",
            "refund.updated",
            "charge.refund.updated",
            "refund.failed",
        ]
        found = []
        for sent in ([created], failed[1:])[::step]:
            await stage.tell(*sent[::step])
            found.append(await stage.balance(user))
        assert found == left
    refund = await stage.fake.refund(await stage.bought(failed_first), status="failed")
    for event in reversed(await stage.events(refund["id"])):
        assert await stage.tell(event) == [(200, "reversal")]
        assert await stage.entries(failed_first) == [100]


async def test_19_a_refund_of_a_payment_that_is_not_ours_is_a_200_and_no_entry(stage):
    refund = await stage.fake.refund(await stage.fake.purchase(), amount=100)
    before = await stage.database.book()
    events = await stage.events(refund["id"], refund["charge"])
    assert await stage.tell(*events) == [(200, "not_ours")] * 2
    assert await stage.database.book() == before


async def test_20_a_lost_dispute_takes_once_in_every_order_of_its_events(stage):
    orders = list(itertools.permutations(range(3)))
    for order, user in zip(orders, await stage.users(len(orders)), strict=True):
        dispute = await stage.fake.dispute(await stage.bought(user), amount=450)
        await stage.fake.lose_dispute(dispute["id"])
        events = await stage.events(dispute["id"])
        assert [event["type"].removeprefix("charge.dispute.") for event in events] == [
            "created",
            "funds_withdrawn",
            "closed",
        ]
        assert await stage.tell(*(events[place] for place in order)) == [(200, "reversal")] * 3
        assert await stage.entries(user) == [100, -50]


async def test_21_a_won_dispute_gives_the_credits_back_once_in_either_order(stage):
    for step, user in zip((1, -1), await stage.users(2), strict=True):
        dispute = await stage.fake.dispute(await stage.bought(user))
        await stage.fake.win(dispute["id"])
        events = (await stage.events(dispute["id"]))[::step]
        assert len(events) == 4
        assert await stage.tell(*events, *events) == [(200, "reversal")] * 8
        assert await stage.entries(user) == ([100, -100, 100] if step == 1 else [100])


async def test_22_a_lost_dispute_with_a_partial_return_takes_only_the_rest(stage):
    for step, user in zip((1, -1), await stage.users(2), strict=True):
        dispute = await stage.fake.dispute(await stage.bought(user))
        await stage.fake.lose_dispute(dispute["id"], returned=225)
        events = await stage.events(dispute["id"])
        assert events[-1]["type"] == "charge.dispute.funds_reinstated"
        assert events[-1]["data"]["object"]["status"] == "lost"
        await stage.tell(*events[::step])
        assert await stage.balance(user) == 25
    assert not await stage.database.faults()


async def test_23_an_inquiry_and_a_prevented_dispute_take_nothing(stage):
    user = await stage.user()
    for ends in ("warning_closed", "prevented"):
        dispute = await stage.fake.dispute(await stage.bought(user), withdraw=False)
        for status in ("warning_under_review", ends):
            await stage.fake.do("change_dispute", id=dispute["id"], status=status)
        events = await stage.events(dispute["id"])
        assert await stage.tell(*events) == [(200, "inquiry")] * 3
    assert await stage.entries(user) == [100, 100]


async def test_24_a_full_refund_and_a_dispute_take_no_more_than_was_granted(stage):
    for step, user in zip((1, -1), await stage.users(2), strict=True):
        paid = await stage.bought(user)
        refund, dispute = await stage.fake.refund(paid), await stage.fake.dispute(paid)
        events = await stage.events(refund["id"], dispute["id"])
        assert await stage.tell(*events[::step]) == [(200, "reversal")] * 3
        assert await stage.entries(user) == [100, -100]
        await stage.fake.win(dispute["id"])
        await stage.tell(*(await stage.events(dispute["id"]))[::step])
        assert await stage.balance(user) == 0
    assert not await stage.database.faults()


async def test_25_a_refund_after_a_won_dispute_takes_its_share(stage):
    user = await stage.user()
    paid = await stage.bought(user)
    dispute = await stage.fake.dispute(paid)
    await stage.fake.win(dispute["id"])
    await stage.tell(*await stage.events(dispute["id"]))
    refund = await stage.fake.refund(paid, amount=450)
    assert await stage.tell(*await stage.events(refund["id"])) == [(200, "reversal")]
    assert await stage.entries(user) == [100, -100, 100, -50]


async def test_26_credits_that_were_spent_become_debt_that_the_next_purchase_pays(stage):
    user = await stage.user()
    await stage.delivering()
    paid = await stage.fake.purchase(user)
    await stage.fake.idle()
    await stage.client.spend_credits(user, amount=30)
    refund = await stage.fake.refund(paid)
    await stage.fake.idle()
    assert await stage.statuses(refund["id"]) == [200]
    assert await stage.balance(user) == -30
    await stage.fake.purchase(user)
    await stage.fake.idle()
    assert await stage.balance(user) == 70
    assert await stage.entries(user) == [100, -30, -100, 100]


@pytest.mark.parametrize(
    ("currency", "amount"),
    [("jpy", 900), ("kwd", 9_000), ("huf", 350_000), ("isk", 1300), (EURO, 999_999_999_999)],
)
async def test_34_the_currency_and_the_size_of_the_amount_do_not_change_the_credits(
    stage, currency, amount
):
    user = await stage.user()
    paid = await stage.fake.purchase(user, line_items=priced(currency, amount))
    await stage.tell(*await stage.events(paid))
    assert await stage.entries(user) == [100]
    for part, left in ((amount // 3, 67), (amount - amount // 3, 0)):
        refund = await stage.fake.refund(paid, amount=part)
        assert refund["currency"] == currency
        assert await stage.tell(*await stage.events(refund["id"])) == [(200, "reversal")]
        assert await stage.balance(user) == left


async def test_35_a_refund_is_a_share_of_its_charge_in_any_currency_of_the_session(stage):
    user = await stage.user()
    await stage.fake.settings(api_version="2024-06-20")
    shown = {"amount": 1_234, "currency": "usd", "fx_rate": "1.37"}
    session = await stage.fake.session(user, presentment=shown)
    paid = (await stage.fake.pay_session(session["id"]))["payment_intent"]
    (bought,) = await stage.events(session["id"])
    assert bought["data"]["object"]["currency"] == "usd"
    assert await stage.tell(bought) == [(200, "purchase")]
    refund = await stage.fake.refund(paid, amount=450)
    assert refund["currency"] == EURO
    assert await stage.tell(*await stage.events(refund["charge"])) == [(200, "reversal")]
    assert await stage.entries(user) == [100, -50]


async def test_35_a_dispute_in_a_currency_other_than_its_charge_s_takes_its_share_of_the_whole(
    stage,
):
    user = await stage.user()
    dispute = await stage.fake.dispute(await stage.bought(user))
    await stage.fake.lose_dispute(dispute["id"], returned=450)
    *_, event = await stage.events(dispute["id"])
    dispute = event["data"]["object"]
    for transaction in dispute["balance_transactions"]:
        transaction |= {"amount": transaction["amount"] * 4, "currency": "sek"}
    foreign = {**dispute, "amount": dispute["amount"] * 4, "currency": "sek"}
    reason = "reversal_in_other_currency"
    before = counted("alerts", reason=reason)
    assert await stage.tell({**event, "data": {"object": foreign}}) == [(200, reason)]
    assert counted("alerts", reason=reason) == before + 1
    assert await stage.entries(user) == [100, -50]

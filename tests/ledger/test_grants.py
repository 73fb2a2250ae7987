"""Credits that expire, on the real database: what batches write and what reads show."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest
from kit.commands import (
    LATER,
    SOON,
    ask,
    grant,
    hold,
    keyed,
    kinds,
    lanes,
    purchase,
    reading,
    refund,
    reverse,
    spend,
)
from kit.rule_tables import TERMS
from kit.services import writer_settings
from kit.waiting import eventually

from credit_service.errors import IdempotencyKeyReused
from credit_service.ledger.lanes import Lanes
from credit_service.rules.commands import Adjust, Capture, Expire, RevokeGrant
from credit_service.rules.grant_values import Allowance


async def passed(database):
    """Whether the time of every grant with an expiry has passed."""
    return not await database.fetch("SELECT 1 FROM credit_grants WHERE expire_time > now()")


async def entries(database):
    rows = await database.fetch("SELECT type, amount FROM credit_transactions ORDER BY seq")
    return [tuple(row) for row in rows]


async def test_a_lapse_or_expiry_counts_the_same_before_and_after_it_is_recorded(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk, reading(database.service_url) as reads:
        assert kinds(await ask(clerk, purchase(user_id, 50), grant(user_id, 100, life=SOON)))
        given, pinned = await ask(clerk, spend(user_id, 30), hold(user_id, 40, 1))
        assert (given.account.in_grants, pinned.account.pinned) == (70, 40)
        await eventually(lambda: passed(database))
        await eventually(lambda: expired(database))
        unrecorded = await reads.account(user_id)
        with_entries, *_ = await reads.account_with_entries(user_id, 1)
        assert unrecorded == with_entries
        assert (unrecorded.balance, unrecorded.held, unrecorded.in_grants) == (50, 0, 0)
        assert unrecorded.seq == 4
        assert await reads.due_users(10, []) == [(user_id, 2)]
        ends = await database.fetch(
            "SELECT max(expire_time) FROM credit_grants"
            " UNION ALL SELECT max(expires_at) FROM credit_holds"
        )
        times = [row[0] for row in ends]
        before = min(times) - timedelta(microseconds=1)
        assert await balance_at(reads, user_id, before) == (120, 40)
        past = {time: await balance_at(reads, user_id, time) for time in times}
        assert past[max(times)] == (50, 0)
        await ask(clerk, Expire(user_id=user_id, caller="test"))
        # The past reads the same before and after it is recorded.
        assert past == {time: await balance_at(reads, user_id, time) for time in times}
        assert await balance_at(reads, user_id, before) == (120, 40)
        recorded = await reads.account(user_id)
        assert (recorded.balance, recorded.held, recorded.open_grants) == (50, 0, 0)
        assert await reads.due_users(10, []) == []
    kinds_of = [kind for kind, _ in await entries(database)]
    assert sorted(kinds_of[4:]) in (["expire", "lapse"], ["expire", "lapse", "lapse"])
    assert not await database.faults()


async def balance_at(reads, user_id, time):
    account, _, _ = await reads.account_at(user_id, time, 0)
    return account.balance, account.held


async def expired(database):
    return not await database.fetch("SELECT FROM credit_holds WHERE expires_at > now()")


async def test_an_account_without_grants_needs_no_further_statement(database, monkeypatch):
    user_id = await database.user(100)

    async def never(*_):
        raise AssertionError

    monkeypatch.setattr("credit_service.ledger.grant_store.load_grants", never)
    monkeypatch.setattr("credit_service.ledger.grant_store.upsert_grants", never)
    async with lanes(database.service_url) as clerk:
        [spent] = await ask(clerk, spend(user_id, 30))
        given = await ask(clerk, refund(user_id, spent.entry.seq, 10), hold(user_id, 5, 60))
        assert [answer.account.balance for answer in given] == [80, 80]


async def test_a_repeat_loads_nothing_but_the_entry_under_its_key(database, monkeypatch):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk:
        await ask(clerk, purchase(user_id, 100, ref="pi_1", life=LATER))
        [spent] = await ask(clerk, spend(user_id, 30, key="spend"))
        back, revoked = (
            refund(user_id, spent.entry.seq, 10, key="refund"),
            keyed(RevokeGrant, user_id, key="revoke", grant_seq=1),
        )
        first = await ask(clerk, back)
        last = await ask(clerk, revoked)

        async def never(*_):
            raise AssertionError

        for name in ("grant_store.load_grants", "store.load_refunds", "store.load_purchases"):
            monkeypatch.setattr(f"credit_service.ledger.{name}", never)
        again = await ask(clerk, spend(user_id, 30, key="spend"), back, revoked)
    assert [answer.replayed for answer in again] == [True, True, True]
    assert [answer.entry.seq for answer in again] == [
        spent.entry.seq,
        first[0].entry.seq,
        last[0].entry.seq,
    ]


async def test_refunded_credits_go_back_into_the_grant_that_paid(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk:
        await ask(clerk, grant(user_id, 20, life=LATER), grant(user_id, 100, life=SOON))
        [spent] = await ask(clerk, spend(user_id, 110))
        assert [c.grant_seq for c in spent.entry.grant_changes] == [2, 1]
        await eventually(lambda: passed_of(database, 2))
        [back] = await ask(clerk, refund(user_id, spent.entry.seq))
        assert back.account.balance == 120
        # It lapses after the grace, not at once.
        rows = await database.fetch(
            "SELECT seq, remaining, open, expire_time > now() + interval '6 days' AS grace"
            " FROM credit_grants ORDER BY seq"
        )
        assert [tuple(row) for row in rows] == [(1, 20, True, False), (2, 100, True, True)]
    assert not await database.faults()


async def passed_of(database, seq):
    rows = await database.fetch(
        f"SELECT 1 FROM credit_grants WHERE seq = {seq} AND expire_time < now()"
    )
    return bool(rows)


async def test_a_key_used_again_with_another_expiry_is_refused(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk:
        first, again, other, plain = [
            (await ask(clerk, grant(user_id, 10, key="k", **life)))[0]
            for life in ({"life": LATER}, {"life": LATER}, {"life": SOON}, {})
        ]
        assert (first.replayed, again.replayed) == (False, True)
        assert isinstance(other, IdempotencyKeyReused)
        assert isinstance(plain, IdempotencyKeyReused)


async def test_a_reversal_takes_the_purchases_own_grant_and_moves_the_pins_of_holds(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk:
        await ask(clerk, purchase(user_id, 500), purchase(user_id, 100, ref="pi_1", life=LATER))
        [held] = await ask(clerk, hold(user_id, 60, 600))
        [reversed_] = await ask(clerk, reverse(user_id, "pi_1"))
        assert (reversed_.account.balance, reversed_.account.in_grants) == (500, 0)
        capture = keyed(
            Capture, user_id, hold_seq=held.hold.seq, amount=60, quantity=None, allow_overage=False
        )
        [captured] = await ask(clerk, capture)
        assert captured.account.balance == 440
    assert not await database.faults()


async def test_an_adjustment_down_draws_on_grants_and_one_up_goes_to_the_pool(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk:
        await ask(clerk, purchase(user_id, 100), grant(user_id, 50, life=LATER))
        down, up = await ask(
            clerk,
            keyed(Adjust, user_id, amount=-70, allow_debt=False, description="mistyped"),
            keyed(Adjust, user_id, amount=5, allow_debt=False, description="mistyped"),
        )
        assert [change.remaining_change for change in down.entry.grant_changes] == [-50]
        assert (up.account.balance, up.account.in_grants) == (85, 0)
    assert not await database.faults()


async def test_a_revoked_grant_stays_revoked_and_the_key_replays(database):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk:
        await ask(clerk, grant(user_id, 100, life=LATER))
        await ask(clerk, spend(user_id, 30))
        revoke = keyed(RevokeGrant, user_id, grant_seq=1)
        first, again = [(await ask(clerk, revoke))[0] for _ in range(2)]
        assert (first.entry.type, first.entry.amount, first.account.balance) == (
            "revocation",
            70,
            0,
        )
        assert again.replayed
    assert not await database.faults()


@pytest.mark.parametrize("grants", [30, 1200])
async def test_grants_of_one_account_that_lapse_together_are_settled_in_bounded_batches(
    database, grants
):
    user_id = await database.user()
    async with lanes(database.service_url) as clerk, reading(database.service_url) as reads:
        await ask(clerk, purchase(user_id, 7))
        for first in range(0, grants, 200):
            made = range(first, min(grants, first + 200))
            # Purchases are never refused for having too many.
            await ask(clerk, *(purchase(user_id, 1, life=SOON) for _ in made))
        await eventually(lambda: passed(database))
        assert (await reads.account(user_id)).balance == 7
        [left] = await ask(clerk, spend(user_id, 7))
        assert left.account.balance == 0
        rows = await database.fetch(
            "SELECT count(*) AS grants FROM credit_grant_changes WHERE lapsed_at IS NOT NULL"
            " GROUP BY seq"
        )
        assert max(row[0] for row in rows) <= 500
        assert sum(row[0] for row in rows) == grants
    assert not await database.faults()


async def test_a_read_loads_no_due_holds_or_grants(database, monkeypatch):
    """The database adds them up, however many there are."""
    user_id = await database.user()
    async with lanes(database.service_url) as clerk, reading(database.service_url) as reads:
        await ask(clerk, purchase(user_id, 7), *(grant(user_id, 3, life=SOON) for _ in range(20)))
        await ask(clerk, *(hold(user_id, 2, 1) for _ in range(20)))
        await eventually(lambda: passed(database))
        await eventually(lambda: expired(database))

        async def never(*_):
            raise AssertionError

        for name in ("grant_store.load_grants", "grant_store.load_due_grants"):
            monkeypatch.setattr(f"credit_service.ledger.{name}", never)
        monkeypatch.setattr("credit_service.ledger.store.load_due_holds", never)
        account = await reads.account(user_id)
        assert (account.balance, account.held, account.open_grants) == (7, 0, 0)
        then, _, expiring = await reads.account_at(user_id, await now(database), 0)
        assert (then.balance, then.held, expiring) == (7, 0, [])


async def now(database):
    return (await database.fetch("SELECT now()"))[0][0]


async def test_callers_of_many_users_with_due_grants_are_all_served(database):
    users = [await database.user() for _ in range(12)]
    async with lanes(database.service_url) as clerk:
        for user_id in users:
            await ask(clerk, *(purchase(user_id, 1, life=SOON) for _ in range(90)))
        await ask(clerk, *(purchase(user_id, 5) for user_id in users))
        await eventually(lambda: passed(database))
        given = await ask(clerk, *(spend(user_id, 5) for user_id in users))
        assert [answer.account.balance for answer in given] == [0] * len(users)
    assert not await database.faults()


async def test_an_allowance_counts_in_answers_and_is_given_once(database):
    user_id = await database.user()
    terms = replace(TERMS, allowance=Allowance(20, "month"))
    settings = replace(writer_settings(database.service_url, lanes=1), terms=terms)
    clerk = Lanes(settings)
    try:
        async with reading(database.service_url, terms) as reads:
            assert (await reads.account(user_id)).balance == 20
            assert (await ask(clerk, spend(user_id, 5)))[0].account.balance == 15
            assert (await ask(clerk, spend(user_id, 5)))[0].account.balance == 10
            assert (await reads.account(user_id)).balance == 10
            # A user who is deleted and created again gets no second one in the period.
            await database.execute(f"DELETE FROM auth.users WHERE id = '{user_id}'")
            await database.execute(f"INSERT INTO auth.users (id) VALUES ('{user_id}')")
            assert (await reads.account(user_id)).balance == 0
            await ask(clerk, purchase(user_id, 3))
            assert (await reads.account(user_id)).balance == 3
    finally:
        await clerk.close()
    assert not await database.faults()


async def test_two_services_at_the_instant_of_a_lapse_record_it_once(database):
    user_id = await database.user()
    async with lanes(database.service_url) as one, lanes(database.service_url) as other:
        # More than can be spent before it lapses.
        await ask(one, purchase(user_id, 100), grant(user_id, 1_000_000, life=SOON))
        while not await passed(database):
            given = await asyncio.gather(ask(one, spend(user_id)), ask(other, spend(user_id)))
            assert all(answer.entry.type == "spend" for [answer] in given)
        await asyncio.gather(ask(one, spend(user_id)), ask(other, spend(user_id)))
    lapses = [amount for kind, amount in await entries(database) if kind == "lapse"]
    assert len(lapses) == 1
    assert not await database.faults()

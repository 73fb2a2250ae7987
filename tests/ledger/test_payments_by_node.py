"""Payments of a distributed book, whose entries another node commits at another moment."""

from uuid import uuid4

import pytest
from kit.commands import ask, kinds, lanes, purchase, reverse
from kit.shard_catalog import QUARTERS, lay_out, user_on

from credit_service.database.postgres import Address
from credit_service.errors import LedgerUnavailable, PaymentReused, UserDeleted
from credit_service.rules.model import Outcome

PAYMENT = """
    INSERT INTO credit_purchases
        (payment_ref, user_id, seq, amount, amount_minor, currency, purchased_at)
    VALUES ('pi_1', $1, $2, 10, 999, 'eur', now())
"""


async def knowing(database):
    """An address that knows that the book is distributed."""
    await lay_out(database, QUARTERS)
    address = Address(database.service_url)
    await (await address.connect()).close()
    return address


@pytest.mark.parametrize("call", [purchase, reverse])
async def test_a_payment_whose_entry_is_not_there_yet_refuses_nothing_for_good(database, call):
    address, user_id = await knowing(database), await database.user()
    bought = purchase(user_id, ref="pi_1")
    command = bought if call is purchase else reverse(user_id, "pi_1")
    async with lanes(address.url, address=address) as writers:
        # As the other node sees a first purchase: the payment, and neither account nor entry.
        await database.execute(PAYMENT, user_id, 1)
        assert kinds(await ask(writers, command)) == [LedgerUnavailable]
        await _forget_payment(database)
        assert kinds(await ask(writers, bought)) == [Outcome]
        (again,) = await ask(writers, command)
    assert again.replayed == (call is purchase)
    assert not await database.faults()


async def _forget_payment(database):
    await database.execute("ALTER TABLE credit_purchases DISABLE TRIGGER USER")
    await database.execute("DELETE FROM credit_purchases")
    await database.execute("ALTER TABLE credit_purchases ENABLE TRIGGER USER")


async def test_an_account_that_another_payment_opens_refuses_nothing_for_good(database):
    address, payer = await knowing(database), await database.user()
    other = await user_on(database, QUARTERS, 0)
    command = purchase(other, ref="pi_1")
    async with lanes(address.url, address=address) as writers:
        await database.execute(PAYMENT, payer, 1)
        assert kinds(await ask(writers, command)) == [LedgerUnavailable]
        await _forget_payment(database)
        assert kinds(await ask(writers, purchase(payer, ref="pi_1"))) == [Outcome]
        assert kinds(await ask(writers, command)) == [PaymentReused]


async def test_a_payment_of_a_user_who_is_gone_is_refused_as_on_one_database(database):
    address, other = await knowing(database), await user_on(database, QUARTERS, 0)
    gone = uuid4()
    await database.execute(PAYMENT, gone, 1)
    async with lanes(address.url, address=address) as writers:
        given = await ask(writers, purchase(other, ref="pi_1"), reverse(gone, "pi_1"))
    assert kinds(given) == [UserDeleted, UserDeleted]


async def test_a_payment_of_an_account_that_was_created_again_is_refused(database):
    address = await knowing(database)
    payer, other = [await user_on(database, QUARTERS, 0) for _ in range(2)]
    # The test holds the lock of the account's row, so none of its entries is under way.
    await database.execute(PAYMENT, payer, 7)
    async with lanes(address.url, address=address) as writers:
        for user_id in (payer, other):
            assert kinds(await ask(writers, purchase(user_id, ref="pi_1"))) == [UserDeleted]


async def test_on_one_database_a_payment_without_its_entry_is_of_a_deleted_user(database):
    user_id = await database.user()
    await database.execute(PAYMENT, user_id, 1)
    async with lanes(database.service_url) as writers:
        assert kinds(await ask(writers, purchase(user_id, ref="pi_1"))) == [UserDeleted]

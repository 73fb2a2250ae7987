"""Commands as the servicer makes them, the lanes and reads that take them, and their results."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from uuid import uuid4

from kit.services import TERMS, writer_settings
from kit.waiting import patience

from credit_service.database.postgres import Address
from credit_service.ledger.lanes import Lanes
from credit_service.ledger.read_connections import ReadPool
from credit_service.ledger.reads import Reads
from credit_service.rules.commands import (
    Charge,
    GiveCredits,
    Life,
    MakeHold,
    Purchase,
    Refund,
    Reverse,
    Spend,
)
from credit_service.rules.model import Payment

# The expiry of credits that last an hour, and of credits that lapse while a test waits.
LATER = Life(valid_for=timedelta(hours=1))
SOON = Life(valid_for=timedelta(seconds=1))


@asynccontextmanager
async def lanes(url, count=1, **changes):
    made = Lanes(writer_settings(url, lanes=count, **changes))
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def reading(url, terms=TERMS):
    pool = ReadPool(Address(url), 2)
    await pool.open()
    try:
        yield Reads(pool, pool, terms)
    finally:
        await pool.close()


@asynccontextmanager
async def opened_by_floor(database, terms_of_floor):
    """The database by one connection, and for each floor a lane and reads that know its terms.

    All examples of a test use them, because opening connections takes longer than an example.
    """
    async with AsyncExitStack() as stack:
        kept = await stack.enter_async_context(database.kept_open())
        opened = {}
        for floor, terms in terms_of_floor.items():
            opened[floor] = (
                await stack.enter_async_context(lanes(database.service_url, terms=terms)),
                await stack.enter_async_context(reading(database.service_url, terms)),
            )
        yield kept, opened


def _common(user_id, key, changes):
    return {
        "user_id": user_id,
        "idempotency_key": key or uuid4().hex,
        "description": "",
        "reference": "",
        "metadata": {},
        "validate_only": False,
        "caller": "test",
    } | changes


def keyed(kind, user_id, key=None, **fields):
    """A keyed command of any kind."""
    return kind(**_common(user_id, key, fields))


def spend(user_id, amount=1, key=None, **changes):
    return Spend(charge=Charge(amount), **_common(user_id, key, changes))


def purchase(user_id, amount=10, key=None, ref=None, **changes):
    payment = None if ref is None else Payment(ref, 999, "eur")
    return Purchase(amount=amount, payment=payment, **_common(user_id, key, changes))


def refund(user_id, seq, amount=None, key=None, **changes):
    return Refund(spend_seq=seq, amount=amount, **_common(user_id, key, changes))


def grant(user_id, amount=1, key=None, **changes):
    return GiveCredits(amount=amount, **_common(user_id, key, changes))


def hold(user_id, amount, seconds, key=None):
    return keyed(MakeHold, user_id, key, charge=Charge(amount), ttl=timedelta(seconds=seconds))


def reverse(user_id, payment_ref, reversal_ref="re_1", revision=1, reversed_minor=999, **changes):
    fields = {"paid_minor": 999, "currency": "eur", "reason": "test", "validate_only": False}
    return Reverse(
        user_id=user_id,
        caller="test",
        payment_ref=payment_ref,
        reversal_ref=reversal_ref,
        revision=revision,
        reversed_minor=reversed_minor,
        **(fields | changes),
    )


def submit(writers, *commands, seconds=None):
    """Queues all of them before the lane can take the first."""
    deadline = asyncio.get_running_loop().time() + (patience(10) if seconds is None else seconds)
    return [writers.submit(command, deadline) for command in commands]


async def answers(futures):
    """For each, the outcome or the exception."""
    async with asyncio.timeout(patience(30)):
        return await asyncio.gather(*futures, return_exceptions=True)


async def ask(writers, *commands):
    return await answers(submit(writers, *commands))


def kinds(given):
    return [type(answer) for answer in given]


async def written(database, *commands):
    """The number of entries that have the keys of the commands."""
    keys = [command.idempotency_key for command in commands]
    rows = await database.fetch(
        "SELECT FROM credit_transactions WHERE idempotency_key = ANY($1::text[])", keys
    )
    return len(rows)


async def transactions(database):
    """The number of transactions that wrote the entries of lanes."""
    rows = await database.fetch(
        "SELECT DISTINCT xmin::text FROM credit_transactions WHERE caller = 'test'"
        " AND idempotency_key <> 'opened by the test'"
    )
    return len(rows)

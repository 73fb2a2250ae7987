"""Accounts as they are now: what is due is settled, whether it was recorded yet or not.

A batch settles each due hold and grant by the rules. For a read one statement adds them up, so that
a hundred thousand of them take as much memory as one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.ledger import grant_listing, grant_store, store
from credit_service.rules import allowances
from credit_service.rules.model import Account
from credit_service.rules.user_state import UserState

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from credit_service.ledger.grant_listing import Expiring
    from credit_service.rules.model import Entry
    from credit_service.rules.terms import Terms

# How many times at which credits expire an answer names.
EXPIRING_MAX = 3


def is_simple(account: Account, terms: Terms) -> bool:
    """Whether an account, less what its due holds hold, is already up to date."""
    own = account.policy.allowance
    return not (account.in_grants or (terms.allowance if own is None else own))


async def read_present(
    connection: PoolConnectionProxy, user_ids: Collection[UUID], terms: Terms
) -> list[Account]:
    """Reads accounts of users who exist, whether opened or not.

    Args:
        connection: in a snapshot.
        user_ids: whose; no more than a statement reads.
        terms: with the configured allowance.
    """
    now, accounts = await store.read_accounts(connection, user_ids)
    if without := set(user_ids) - {account.user_id for account in accounts}:
        found = await store.find_newcomers(connection, without)
        accounts += [
            Account(user_id, allowance_until=until)
            for user_id, (known, until) in found.items()
            if known
        ]
    if now is None:
        now = await connection.fetchval("SELECT now()")
    return await present(connection, now, accounts, terms)


async def present(
    connection: asyncpg.Connection | PoolConnectionProxy,
    now: datetime,
    accounts: list[Account],
    terms: Terms | None,
) -> list[Account]:
    """Settles what is due of accounts as they are recorded, without recording it.

    Args:
        connection: in the snapshot that the accounts were read in.
        now: the time of the snapshot.
        accounts: as they are recorded.
        terms: with the configured allowance; None: an allowance counts from its entry on.
    """
    changing = [
        account
        for account in accounts
        if _is_due(account, now)
        or (terms is not None and allowances.due(account, terms, now) is not None)
    ]
    settled = {account.user_id: account for account in await _settled(connection, now, changing)}
    if terms is not None:
        for user_id, account in settled.items():
            settled[user_id] = _with_allowance(account, now, terms)
    return [settled.get(account.user_id, account) for account in accounts]


async def read_at(
    connection: PoolConnectionProxy, entry: Entry, time: datetime
) -> tuple[int, int, list[Expiring]]:
    """Reads what an account had at a time, with all that was due by then settled.

    An allowance counts from its entry on.

    Args:
        connection: in a snapshot.
        entry: the last entry made by then.
        time: when.

    Returns:
        Its balance, what was held, and the next lapses as of then.
    """
    user_id = entry.user_id
    recorded = await grant_store.settled_at(connection, user_id, entry.seq, time)
    seq, balance, held = recorded or (entry.seq, entry.balance_after, entry.held_after)
    _, [account] = await store.read_accounts(connection, [user_id])
    if seq < account.seq:
        listed = await grant_listing.list_expiring_at(connection, user_id, seq, time, EXPIRING_MAX)
        return balance, held, listed
    [settled] = await _settled(connection, time, [account])
    return settled.balance, settled.held, list(settled.expiring or ())


def _is_due(account: Account, now: datetime) -> bool:
    return (account.next_hold_expiry is not None and account.next_hold_expiry <= now) or (
        account.next_lapse is not None and account.next_lapse <= now
    )


async def _settled(
    connection: asyncpg.Connection | PoolConnectionProxy, time: datetime, accounts: list[Account]
) -> list[Account]:
    """The accounts with what is due by a time settled, and with what lapses next."""
    if not accounts:
        return []
    user_ids = [account.user_id for account in accounts]
    due = await grant_listing.settled_accounts(connection, user_ids, time, EXPIRING_MAX)
    return [_less(account, due.get(account.user_id)) for account in accounts]


def _less(account: Account, due: grant_listing.DueChanges | None) -> Account:
    if due is None:
        return account._replace(expiring=())
    return account._replace(
        balance=account.balance - due.lapsed,
        held=account.held - due.ended,
        in_grants=account.in_grants - due.lapsed - due.paid,
        pinned=account.pinned - due.unpinned,
        open_grants=account.open_grants - due.closed,
        expiring=due.expiring,
    )


def _with_allowance(account: Account, now: datetime, terms: Terms) -> Account:
    """Adds the due allowance to a settled account, if one is due."""
    # No other grant of an account in debt has anything left to pay with, so none is loaded. A read
    # has no place in the feed: it keeps the account's.
    user = UserState(now, account, account, number=account.tx)
    allowances.give(user, terms)
    given = user.account
    sums = dict(account.expiring or ())
    for grant in user.grants.values():
        if grant.rest and grant.expire_time is not None:
            sums[grant.expire_time] = sums.get(grant.expire_time, 0) + grant.rest
    return account._replace(
        balance=given.balance,
        in_grants=given.in_grants,
        open_grants=given.open_grants,
        expiring=tuple(sorted(sums.items())[:EXPIRING_MAX]),
    )

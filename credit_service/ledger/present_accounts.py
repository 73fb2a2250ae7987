"""Accounts as they are now: what is due is settled, whether it was recorded yet or not.

A batch settles the same by the same rules before it decides anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.ledger import grant_listing, grant_store, store
from credit_service.ledger.due_loading import Due, find_due
from credit_service.ledger.grant_loading import load_open_grants
from credit_service.rules import allowances
from credit_service.rules.batch_state import BatchState
from credit_service.rules.due import settle
from credit_service.rules.model import Account

if TYPE_CHECKING:
    from collections.abc import Collection
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from credit_service.ledger.grant_listing import Expiring
    from credit_service.rules.model import Entry
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState

_NO_LIMIT = 2**62

# How many times at which credits expire an answer names.
EXPIRING_MAX = 3


def is_simple(account: Account, terms: Terms) -> bool:
    """Whether an account less what its due holds hold is already as it is now."""
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
        connection: in the snapshot of which the accounts are.
        now: the time of that.
        accounts: as they are recorded.
        terms: with the configured allowance; None: an allowance counts from its entry on.
    """
    changing = [
        account
        for account in accounts
        if _is_due(account, now)
        or (terms is not None and allowances.due(account, terms, now) is not None)
    ]
    state = BatchState.of(now, *changing)
    due = await find_due(connection, state, [], _NO_LIMIT)
    await load_open_grants(connection, state, {u: part.ends for u, part in due.items()})
    for user_id, user in state.users.items():
        part = due.get(user_id, Due())
        settle(user, part.ends, part.lapses, terms, next_end=None, next_lapse=None)
    return [_shown(account, state.users.get(account.user_id), now) for account in accounts]


async def read_at(
    connection: PoolConnectionProxy, entry: Entry, time: datetime, terms: Terms
) -> tuple[int, int, list[Expiring]]:
    """Reads what an account had at a time, with all that was due by then settled.

    Args:
        connection: in a snapshot.
        entry: the last that was made by then.
        time: when.
        terms: with the configured allowance, which counts from its entry on.

    Returns:
        Its balance, what was held, and what was to lapse next.
    """
    user_id = entry.user_id
    recorded = await grant_store.settled_at(connection, user_id, entry.seq, time)
    seq, balance, held = recorded or (entry.seq, entry.balance_after, entry.held_after)
    _, [account] = await store.read_accounts(connection, [user_id])
    if seq < account.seq:
        listed = await grant_listing.list_expiring_at(connection, user_id, seq, time, EXPIRING_MAX)
        return balance, held, listed
    state = BatchState.of(time, account)
    due = await find_due(connection, state, [], _NO_LIMIT)
    await load_open_grants(connection, state, {u: part.ends for u, part in due.items()})
    user, part = state.users[user_id], due.get(user_id, Due())
    settle(user, part.ends, part.lapses, terms, next_end=None, next_lapse=None, looked_at=False)
    return user.account.balance, user.account.held, _expiring(user, time)


def _is_due(account: Account, now: datetime) -> bool:
    return (account.next_hold_expiry is not None and account.next_hold_expiry <= now) or (
        account.next_lapse is not None and account.next_lapse <= now
    )


def _shown(account: Account, user: UserState | None, now: datetime) -> Account:
    if user is None:
        return account
    settled = user.account
    return account._replace(
        balance=settled.balance,
        held=settled.held,
        in_grants=settled.in_grants,
        pinned=settled.pinned,
        open_grants=settled.open_grants,
        expiring=tuple(_expiring(user, now)),
    )


def _expiring(user: UserState, now: datetime) -> list[Expiring]:
    sums: dict[datetime, int] = {}
    for granted in user.grants.values():
        time = granted.expire_time
        if granted.open and time is not None and time > now and granted.rest > 0:
            sums[time] = sums.get(time, 0) + granted.rest
    return sorted(sums.items())[:EXPIRING_MAX]

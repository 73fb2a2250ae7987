"""Lists of accounts over all users, a page at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from credit_service.ledger.present_accounts import present
from credit_service.ledger.rows import to_account, to_account_less_due
from credit_service.ledger.statement_texts import SQL
from credit_service.rules.model import FIRST_USER, Account, user_after

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountQuery:
    """Which accounts to list, in the order of their users; a filter that is None lets all pass.

    Attributes:
        first: start at this user.
        in_debt: only those with a balance below zero.
        available_below: only those with fewer credits available.
        changed_since: only those that changed at this time or later.
    """

    page_size: int
    first: UUID = FIRST_USER
    in_debt: bool = False
    frozen: bool | None = None
    available_below: int | None = None
    changed_since: datetime | None = None

    def takes(self, account: Account) -> bool:
        """Whether an account passes the filters on amounts."""
        in_debt = not self.in_debt or account.balance < 0
        return in_debt and (
            self.available_below is None or account.available < self.available_below
        )


async def find_accounts(
    connection: asyncpg.Connection | PoolConnectionProxy, query: AccountQuery, looks_at: int
) -> tuple[datetime, list[Account], UUID | None]:
    """Reads a page of accounts with what is due settled; an allowance counts from its entry on.

    Args:
        connection: in a snapshot.
        query: which accounts.
        looks_at: the maximum number of accounts to look at.

    Returns:
        The moment of the snapshot, the accounts, and the user to go on from; None when there are no
        more.
    """
    rows = await connection.fetch(
        SQL["find_accounts"],
        query.first,
        query.in_debt,
        query.frozen,
        query.available_below,
        query.changed_since,
        query.page_size,
        looks_at,
    )
    now, last_seen = rows[0][-2:]
    # Where grants are due, the row is as it was recorded.
    found = [
        (to_account(row[:-4]) if row[-3] else to_account_less_due(row[:-3]), row[-3])
        for row in rows
        if row[0] is not None
    ]
    last = found[-1][0].user_id if len(found) == query.page_size else last_seen
    due = [account for account, grants_due in found if grants_due]
    settled = {account.user_id: account for account in await present(connection, now, due, None)}
    accounts = [settled.get(account.user_id, account) for account, _ in found]
    shown = [account for account in accounts if query.takes(account)]
    return now, shown, None if last is None else user_after(last)

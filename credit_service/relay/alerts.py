"""Makes the alerts: follows the feed and compares each account with its last announcement.

An account is compared after its last entry of each transaction and after each change of its policy,
so a lapse and an allowance in one transaction make no alert. The last announcements are written in
one transaction with the alerts and with the place of the reader, so that each change makes its
alerts once, even if a process is killed. Nothing is kept in memory from one page to the next.

The first time, it begins at the end of the feed: earlier changes are not announced, and an account
that is low already is announced when it next changes.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, NamedTuple

import structlog

from credit_service.errors import CreditError
from credit_service.relay import alert_store
from credit_service.relay.alert_store import NewAlert
from credit_service.relay.expiring import REST_SECONDS, ExpiringWalk
from credit_service.relay.lease import LeaseLostError
from credit_service.rules.alerts import NOTHING_ANNOUNCED, Change, State, compare, end_cool_down
from credit_service.rules.feed_values import KIND_ENTRY, KIND_POLICY
from credit_service.rules.model import Account, Entry, PolicyChange

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta
    from uuid import UUID

    from credit_service.ledger.feed import Feed, Page
    from credit_service.ledger.read_connections import ReadPool
    from credit_service.relay.alert_store import Horizon
    from credit_service.relay.lease import Reader
    from credit_service.relay.store import Connection
    from credit_service.rules.alerts import Announced, BalanceAlert
    from credit_service.rules.feed_values import Place
    from credit_service.rules.terms import Terms

_log = structlog.get_logger()

READER = "alerts"

_PAGE = 500
_POLL_SECONDS = 0.25
_PAUSE_SECONDS_MAX = 10.0


class _Compared(NamedTuple):
    """A change of an account in the feed.

    Attributes:
        is_last: whether the account is compared after it, because it is the last entry of its
            transaction, or a change of the policy.
    """

    place: Place
    value: Entry | PolicyChange
    is_last: bool

    @property
    def user_id(self) -> UUID:
        return self.place.user_id

    @property
    def is_policy(self) -> bool:
        return self.place.kind == KIND_POLICY

    def after(self, account: Account) -> Account:
        """The account after the change."""
        value = self.value
        if isinstance(value, PolicyChange):
            return account._replace(policy=value.policy)
        return account._replace(balance=value.balance_after, held=value.held_after, seq=value.seq)

    def made(self) -> Change:
        """The change, as alerts name it."""
        value = self.value
        time = value.changed_at if isinstance(value, PolicyChange) else value.timestamp
        return Change(self.place.tx, self.is_policy, self.place.number, time)


class Alerts:
    """Follows the feed and writes alerts; one process at a time does."""

    def __init__(
        self,
        pool: ReadPool,
        feed: Feed,
        terms: Terms,
        *,
        cool_down: timedelta,
        expiring_days: int,
        walk_rest_seconds: float = REST_SECONDS,
    ) -> None:
        """Takes its parts and settings.

        Args:
            pool: connections to the database.
            feed: what happened.
            terms: the configured floor and threshold.
            cool_down: how long after an alert about a balance a better level waits.
            expiring_days: how many days before their expiry credits are announced.
            walk_rest_seconds: how long to wait before looking again for credits that expire soon.
        """
        self._pool = pool
        self._feed = feed
        self._terms = terms
        self._cool_down = cool_down
        self._walk = ExpiringWalk(pool, expiring_days, walk_rest_seconds)
        self._horizon: Horizon | None = None

    async def run(self, reader: Reader) -> None:
        """Makes alerts until it is cancelled; after a failure it tries again from where it was.

        Args:
            reader: the place up to which the alerts are written, claimed under the lease.

        Raises:
            LeaseLostError: another process makes the alerts now.
        """
        pause = _POLL_SECONDS
        while True:
            try:
                more = await self._step(reader)
            except LeaseLostError:
                raise
            except Exception as error:  # The alerts must outlive any failure.
                if isinstance(error, CreditError):
                    _log.warning("alerts not made, trying again", problem=error.reason)
                else:
                    _log.exception("alerts failed")
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, _PAUSE_SECONDS_MAX)
            else:
                pause = _POLL_SECONDS
                if not more:
                    await asyncio.sleep(pause)

    async def _step(self, reader: Reader) -> bool:
        """Makes the alerts of the next page; at the end of the feed, those that time causes.

        Returns:
            Whether there is more to do at once.
        """
        page = await self._feed.page(reader.place, _PAGE, kinds=(KIND_ENTRY, KIND_POLICY))
        changes, place = _compared(page, reader.place)
        if changes:
            async with reader.writing() as connection:
                await self._compare(connection, changes)
                await reader.move(connection, place)
        if not page.caught_up:
            # A page without items means that the feed waits, perhaps for long.
            return bool(page.items)
        more = await self._end_cool_downs(reader, page.boundary)
        await self._walk.step(reader)
        return more

    async def _end_cool_downs(self, reader: Reader, boundary: int) -> bool:
        """Makes the alerts of states that have waited for the end of a cool-down.

        A change from before that end decides first, and it may not be in the feed yet. So first it
        takes a horizon, and when the feed has been read up to there, the cool-downs that ended
        before it count.

        Args:
            reader: one that has read everything below the boundary.
            boundary: the number below which everything is in the feed.

        Returns:
            Whether there may be more of them.
        """
        horizon = self._horizon
        if horizon is None:
            async with self._pool.lend() as connection:
                if await alert_store.find_cooled(connection, None, 1):
                    self._horizon = await alert_store.read_horizon(connection)
            return False
        if boundary <= horizon.tx:
            return False
        async with reader.writing() as connection:
            cooled = await alert_store.find_cooled(connection, horizon.moment, _PAGE)
            states: dict[UUID, Announced] = {}
            made: list[NewAlert] = []
            for user_id, last in cooled.items():
                states[user_id], alerts = end_cool_down(last, self._cool_down)
                made += [_new_alert(user_id, alert) for alert in alerts]
            await alert_store.put_states(connection, states)
            await alert_store.insert_alerts(connection, made)
        more = len(cooled) == _PAGE
        self._horizon = horizon if more else None
        return more

    async def _compare(self, connection: Connection, changes: Sequence[_Compared]) -> None:
        accounts = await self._accounts_before(connection, changes)
        before = await alert_store.load_states(connection, accounts)
        states = dict(before)
        made: list[NewAlert] = []
        for change in changes:
            account = accounts[change.user_id] = change.after(accounts[change.user_id])
            if not change.is_last:
                continue
            last = states.get(account.user_id, NOTHING_ANNOUNCED)
            states[account.user_id], alerts = compare(
                last, self._state(change, account), self._cool_down
            )
            made += [_new_alert(account.user_id, alert) for alert in alerts]
        await alert_store.put_states(
            connection,
            {
                user_id: last
                for user_id, last in states.items()
                if last != before.get(user_id, NOTHING_ANNOUNCED)
            },
        )
        await alert_store.insert_alerts(connection, made)

    async def _accounts_before(
        self, connection: Connection, changes: Sequence[_Compared]
    ) -> dict[UUID, Account]:
        """Loads the facts about each account that the first of its changes lacks."""
        first: dict[UUID, _Compared] = {}
        for change in changes:
            first.setdefault(change.user_id, change)
        policies = await alert_store.load_policies_before(
            connection,
            {user: each.place.tx for user, each in first.items() if not each.is_policy},
        )
        balances = await alert_store.load_balances_after(
            connection, {user: each.place.tx for user, each in first.items() if each.is_policy}
        )
        accounts = {user_id: Account(user_id) for user_id in first}
        for user_id, policy in policies.items():
            accounts[user_id] = accounts[user_id]._replace(policy=policy)
        for user_id, (seq, balance, held) in balances.items():
            accounts[user_id] = accounts[user_id]._replace(balance=balance, held=held, seq=seq)
        return accounts

    def _state(self, change: _Compared, account: Account) -> State:
        return State(
            change.made(),
            account.balance,
            account.held,
            self._terms.floor(account),
            self._terms.threshold(account),
            frozen=account.policy.frozen,
            has_entries=account.seq > 0,
        )


def _compared(page: Page, before: Place) -> tuple[list[_Compared], Place]:
    """The changes of a page, and the place right after them.

    The last entry is left for the next page unless nothing follows it yet, because only the item
    after it says whether it is the last of its transaction.
    """
    items = page.items
    changes: list[_Compared] = []
    for at, (place, value) in enumerate(items):
        following = items[at + 1].place if at + 1 < len(items) else None
        if following is None and place.kind == KIND_ENTRY and not page.caught_up:
            return changes, changes[-1].place if changes else before
        more = following is not None and following[:3] == place[:3]
        if isinstance(value, Entry | PolicyChange):
            changes.append(_Compared(place, value, place.kind == KIND_POLICY or not more))
    return changes, page.place


def _new_alert(user_id: UUID, alert: BalanceAlert) -> NewAlert:
    state, change = alert.state, alert.state.change
    return NewAlert(
        user_id,
        alert.type,
        alert.time,
        {
            "user_id": str(user_id),
            "balance": state.balance,
            "held": state.held,
            "available": state.available,
            "min_balance": state.floor,
            "alert_below": state.alert_below,
            "seq": None if change.is_policy else change.number,
            "policy_change": change.number if change.is_policy else None,
        },
    )

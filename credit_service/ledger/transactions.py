"""A batch of commands as one READ COMMITTED transaction.

Lock the accounts in the order of their users, load in a new statement what the commands refer to,
decide in Python, write each row once, commit. No call is answered before the COMMIT, not even a
refused one, because a refusal may depend on an entry of the same batch.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from credit_service.database.postgres import spoils_connection
from credit_service.errors import CreditError, Refusal
from credit_service.ledger import grant_store, metrics, store, top_up_store
from credit_service.ledger.batch_loading import load
from credit_service.rules import decide
from credit_service.rules.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from credit_service.database.postgres import Address
    from credit_service.database.shard_map import ShardMap
    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import Command
    from credit_service.rules.grant_values import GrantChange
    from credit_service.rules.model import Account, Entry, EntryId
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState


# Not READ WRITE, which would write a database that its administrator has made read-only.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
_BEGIN_HURRIED = f"{_BEGIN}; SET LOCAL lock_timeout = '50ms'"


# The connection was closed during a statement, or between two of them.
_LOST = (asyncpg.PostgresConnectionError, asyncpg.InterfaceError)

# A batch that takes longer may itself be the reason why the server closed the connection: it ends
# transactions that are idle for too long. An ordinary batch takes a few hundredths of it.
_SLOW_SECONDS = 1.0


# On the entries that the service posts by itself.
_OWN_CALLS = {"expiry", "lapse", "revocation", "allowance"}


class BatchTooSlowError(Exception):
    """The connection was lost in a batch that took long; a smaller one may get through."""


class CommitLostError(Exception):
    """The COMMIT of these entries was sent and its answer never came."""

    def __init__(self, entries: list[Entry]) -> None:
        super().__init__(f"the answer to a COMMIT of {len(entries)} entries was lost")
        self.entries = entries


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSettings:
    """What the writers are made of.

    Attributes:
        address: the database, as the service's role.
        terms: prices, floor and the bound on open holds.
        adds_users: whether a purchase, grant or policy for an unknown user adds the user.
        lanes: writer lanes, each with a connection of its own.
        queue_limit: commands that may wait in a lane; more are refused.
        batch_limit: the maximum number of commands in a transaction.
    """

    address: Address
    terms: Terms
    adds_users: bool
    lanes: int
    queue_limit: int
    batch_limit: int


class Way(NamedTuple):
    """How to run a batch.

    Attributes:
        expiries: how many due holds and grants it may settle.
        hurried: whether it waits only a moment for a lock.
        lost: the entries of earlier runs whose COMMIT was sent and never answered.
    """

    expiries: int
    hurried: bool = False
    lost: Sequence[Entry] = ()


class Transactions:
    """One connection, made when it is needed, with no more than one transaction on it."""

    def __init__(self, settings: WriterSettings) -> None:
        """Connects to nothing yet."""
        self._address = settings.address
        self._terms = settings.terms
        self._adds_users = settings.adds_users
        self._connection: asyncpg.Connection | None = None
        self._warning: str | None = None

    async def run(self, commands: list[Command], way: Way) -> list[Outcome | CreditError | None]:
        """Runs the commands as one transaction.

        Args:
            commands: the batch.
            way: how to run it.

        Returns:
            An answer per command, in order; None where more is due of the account than the batch
            may settle, so the command must wait for another batch.

        Raises:
            CommitLostError: the COMMIT was sent and its answer never came.
            BatchTooSlowError: the connection was lost after so long that the batch may be why.
            StaleAccountError: a row was not as it had been read; the batch must start over.
            asyncpg.PostgresError, OSError: as the driver raises them; nothing was written.
        """
        connection = await self._connected()
        began = time.monotonic()
        try:
            await connection.execute(_BEGIN_HURRIED if way.hurried else _BEGIN)
            state = await load(
                connection,
                commands,
                adds_users=self._adds_users,
                terms=self._terms,
                expiries=way.expiries,
            )
            answers = [_decide(state, command, self._terms) for command in commands]
            posted = state.posted
            await self._write(connection, state, posted)
        except Exception as fault:
            await self._roll_back(connection, fault)
            if isinstance(fault, _LOST) and time.monotonic() - began > _SLOW_SECONDS:
                raise BatchTooSlowError from fault
            raise
        await self._commit(connection, posted)
        _count(posted)
        # Entries that the service posts by itself come from no call: a call that is answered with
        # the expiry of a hold repeats an earlier end.
        unclaimed = {(e.user_id, e.seq): e for e in way.lost if e.call not in _OWN_CALLS}
        changes: dict[EntryId, tuple[GrantChange, ...]] = {}
        for user in state.users.values():
            if not user.grant_changes:
                continue
            for entry_id, made in groupby(user.grant_changes, itemgetter(0, 1)):
                changes[entry_id] = (*changes.get(entry_id, ()), *made)
        return [
            _settled(answer, state, unclaimed, changes) if isinstance(answer, Outcome) else answer
            for answer in answers
        ]

    async def find_locked(self, user_ids: set[UUID]) -> set[UUID]:
        """Finds the users whose account rows another transaction has locked at this moment.

        Args:
            user_ids: whose accounts to look at.

        Returns:
            The users whose rows are locked; the look itself waits for no lock.

        Raises:
            asyncpg.PostgresError, OSError: as the driver raises them.
        """
        connection = await self._connected()
        try:
            return await store.find_locked(connection, user_ids)
        except Exception as fault:
            await self._roll_back(connection, fault)
            raise

    @property
    def shards(self) -> ShardMap:
        """The map of the shards as last read."""
        return self._address.shards.map

    async def read_shards(self) -> None:
        """Reads the map of the shards again.

        Raises:
            ShardMapError: the accounts are distributed in a way that this program does not know.
            asyncpg.PostgresError, OSError: as the driver raises them.
        """
        await self._address.shards.read(await self._connected())

    def close(self) -> None:
        """Drops the connection."""
        if self._connection is not None:
            self._connection.terminate()

    async def _write(
        self, connection: asyncpg.Connection, state: BatchState, posted: list[Entry]
    ) -> None:
        users = state.users.values()
        await self._write_accounts(connection, users)
        refunded = [user.spends[seq] for user in users for seq in user.refunded]
        changed_holds = [user.holds[seq] for user in users for seq in user.changed_holds]
        kept_keys = [key for user in users for key in user.kept_keys]
        grants = [user.grants[seq] for user in users for seq in user.changed_grants]
        grant_changes = [change for user in users for change in user.grant_changes]
        allowances = [
            (user.account.user_id, until)
            for user in users
            if (until := user.account.allowance_until) is not None
            and until is not user.loaded.allowance_until
        ]
        policy_changes = [change for user in users for change in user.policy_changes]
        txs = {user_id: user.tx for user_id, user in state.users.items()}
        if posted:
            await store.insert_entries(connection, posted, txs)
        if refunded:
            await store.upsert_refunds(connection, refunded)
        if state.bought:
            entries = [bought.entry for bought in state.bought.values() if bought.entry]
            await store.insert_purchases(connection, entries)
        if changed_holds:
            await store.upsert_holds(connection, changed_holds)
        if grants:
            await grant_store.upsert_grants(connection, grants)
        if grant_changes:
            await grant_store.insert_grant_changes(connection, grant_changes)
        if allowances:
            await grant_store.upsert_allowances(connection, allowances)
        if kept_keys:
            await store.insert_kept_keys(connection, kept_keys)
        if state.new_reversals:
            await store.insert_reversals(connection, state.new_reversals)
        if policy_changes:
            await store.insert_policy_changes(connection, policy_changes, txs)
        if any(user.top_ups.changes for user in users):
            await top_up_store.write_top_ups(connection, users, txs)

    async def _write_accounts(
        self, connection: asyncpg.Connection, users: Iterable[UserState]
    ) -> None:
        opened: list[Account] = []
        moved: list[tuple[Account, int]] = []
        changed: list[tuple[Account, int]] = []
        for user in users:
            account, loaded = user.account, user.loaded
            if account is loaded:
                continue
            if user.is_new:
                opened.append(account)
            elif account.moved_from(loaded):
                moved.append((account, loaded.seq))
            else:
                changed.append((account, loaded.seq))
        if opened:
            if self._adds_users:
                await store.add_users(connection, [account.user_id for account in opened])
            await store.insert_accounts(connection, opened)
        if moved:
            await store.move_accounts(connection, moved)
        if changed:
            await store.update_accounts(connection, changed)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._address.connect()
            self._connection.add_log_listener(self._hear)
        return self._connection

    def _hear(self, _connection: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en == "WARNING":
            self._warning = message.message

    async def _roll_back(self, connection: asyncpg.Connection, fault: Exception) -> None:
        # On a silent or broken line a ROLLBACK would only wait for its own time limit, and another
        # connection may lead to a server that can be written.
        if spoils_connection(fault) or self._address.statements.notice(fault):
            connection.terminate()
        try:
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
        except Exception:
            connection.terminate()
        if connection.is_closed():
            self._connection = None

    async def _commit(self, connection: asyncpg.Connection, entries: list[Entry]) -> None:
        self._warning = None
        try:
            tag = await connection.execute("COMMIT")
            # Citus only warns where a worker has not answered the COMMIT of its shard, and then
            # answers COMMIT itself (FinishRemoteTransactionCommit in its remote_transaction.c).
            if self._warning is not None and self.shards.is_distributed:
                raise ConnectionError(self._warning)
        except Exception as fault:
            connection.terminate()
            self._connection = None
            raise CommitLostError(entries) from fault
        if tag != "COMMIT":
            raise store.StaleAccountError(tag)


def _decide(state: BatchState, command: Command, terms: Terms) -> Outcome | CreditError | None:
    if state.postpones(command):
        return None
    try:
        return decide.decide(state, command, terms)
    except Refusal as refusal:
        # Its frames lead to the answers of the batch, which hold the refusal.
        return refusal.with_traceback(None)


def _settled(
    answer: Outcome,
    state: BatchState,
    lost: dict[EntryId, Entry],
    changes: dict[EntryId, tuple[GrantChange, ...]],
) -> Outcome:
    """Shows the account as the batch left it, and a resolved COMMIT not as a replay."""
    entry, account, replayed, hold, parts, top_up = answer
    if replayed and entry is not None and lost.get((entry.user_id, entry.seq)) == entry:
        del lost[entry.user_id, entry.seq]
        replayed = False
    if parts:
        parts = tuple(
            _settled(part, state, lost, changes) if isinstance(part, Outcome) else part
            for part in parts
        )
    if entry is not None and changes and (made := changes.get((entry.user_id, entry.seq))):
        entry = entry._replace(grant_changes=made)
    return Outcome(entry, state.users[account.user_id].account, replayed, hold, parts, top_up)


def _count(entries: Iterable[Entry]) -> None:
    moved: Counter[str] = Counter()
    for entry in entries:
        moved[entry.type] += entry.amount
    for kind, credits_moved in moved.items():
        metrics.CREDITS.labels(kind).inc(credits_moved)

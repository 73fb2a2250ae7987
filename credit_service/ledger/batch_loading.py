"""The beginning of a batch: lock its accounts, then load what it needs in new statements."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.ledger import store
from credit_service.ledger.due_loading import Due, find_due
from credit_service.ledger.grant_loading import load_grants
from credit_service.ledger.statement_texts import of_distributed_book
from credit_service.ledger.top_up_loading import load_top_ups
from credit_service.rules import allowances
from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import (
    Capture,
    Command,
    Expire,
    Extend,
    GiveCredits,
    Keyed,
    NoteTopUp,
    Purchase,
    Refund,
    Release,
    Reverse,
    RevokeGrant,
    SetPolicy,
    SpendTogether,
)
from credit_service.rules.due import settle
from credit_service.rules.model import Account, Spent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from uuid import UUID

    import asyncpg

    from credit_service.rules.model import Entry, EntryId, Hold
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState

# Where the service adds users by itself, these calls may be a user's first.
_OPENING = (Purchase, GiveCredits, SetPolicy)

_SETTLING = (Capture, Release, Extend)


async def load(
    connection: asyncpg.Connection,
    commands: list[Command],
    *,
    adds_users: bool,
    terms: Terms,
    expiries: int,
) -> BatchState:
    """Locks the accounts of a batch and loads what its commands refer to.

    Args:
        connection: in the batch's transaction.
        commands: the batch.
        adds_users: whether a user may be opened who is not in the user table.
        terms: prices, and the allowance of accounts without one of their own.
        expiries: how many due holds and grants the batch may settle.

    Returns:
        The state of the batch, in which what is due is settled. Where more is due than the batch
        may settle, some users have `more_due`, and nothing else is loaded about them.

    Raises:
        StaleAccountError: an account was opened meanwhile, or a payment can be seen and its entry
            cannot yet; the batch must start over.
    """
    user_ids = {command.user_id for command in commands}
    locked = await store.lock_accounts(connection, user_ids)
    keyed = [command for command in _each(commands) if isinstance(command, Keyed)]
    now, number, known_keys = await store.load_entries_by_key(
        connection,
        # Citus must see the shard of the statement, so it names a user even without a key.
        [command.user_id for command in keyed] or [commands[0].user_id],
        [command.idempotency_key for command in keyed],
        writes=True,
    )
    state = BatchState.of(now, *locked.values(), number=number)
    without_account = user_ids - locked.keys()
    if without_account:
        openers = {c.user_id for c in commands if isinstance(c, _OPENING)} if adds_users else set()
        found = await store.find_newcomers(connection, without_account)
        for user_id, (is_known, until) in found.items():
            if is_known or user_id in openers:
                state.add(Account(user_id, allowance_until=until))
    for key, kept_call, entry in known_keys:
        user = _locked(state, entry.user_id)
        user.by_key[key] = entry
        if kept_call is not None:
            user.kept_calls[key] = kept_call
    due = await find_due(connection, state, commands, expiries)
    ready = [command for command in commands if not state.postpones(command)] if due else commands
    # A repeat is answered with the entry under its key, and needs nothing else.
    fresh = [c for c in ready if not _is_known(state, c)] if known_keys else ready
    await _load_spends(connection, state, fresh)
    await _load_purchases(connection, state, fresh)
    await _load_reversals(connection, state, ready)
    await _load_holds(connection, state, ready)
    await load_grants(connection, state, fresh, {u: part.ends for u, part in due.items()}, terms)
    await load_top_ups(connection, state, ready)
    _settle(state, commands, due, terms)
    return state


def _settle(state: BatchState, commands: list[Command], due: dict[UUID, Due], terms: Terms) -> None:
    """Settles what is due, allowances of the accounts that a call looks at too."""
    allowed = [
        user_id
        for user_id, user in state.users.items()
        if allowances.due(user.account, terms, state.now) is not None
    ]
    if not (due or allowed):
        return
    asked = {c.user_id for c in commands if not isinstance(c, Expire) or c.watched}
    for user_id in dict.fromkeys([*due, *(user_id for user_id in allowed if user_id in asked)]):
        user = state.users[user_id]
        ends, lapses, next_end, next_lapse = due.get(user_id) or Due(
            next_end=user.account.next_hold_expiry, next_lapse=user.account.next_lapse
        )
        settle(
            user,
            ends,
            lapses,
            terms,
            next_end=next_end,
            next_lapse=next_lapse,
            more=user.more_due,
            looked_at=user_id in asked,
        )


def _each(commands: Iterable[Command]) -> Iterator[Command]:
    for command in commands:
        if isinstance(command, SpendTogether):
            yield from command.spends
        else:
            yield command


def _is_known(state: BatchState, command: Command) -> bool:
    """Whether an earlier call used the key of a command."""
    user = state.users.get(command.user_id)
    return (
        user is not None and isinstance(command, Keyed) and command.idempotency_key in user.by_key
    )


def _locked(state: BatchState, user_id: UUID) -> UserState:
    """The part of a user of whom a row was found, so the user has an account."""
    user = state.users.get(user_id)
    if user is None or user.is_new:
        # There was no row to lock and now there is one, so the account is not as it was loaded.
        raise store.StaleAccountError("an account was opened after the lock")
    return user


async def _load_spends(
    connection: asyncpg.Connection, state: BatchState, commands: list[Command]
) -> None:
    spend_ids = {
        (command.user_id, command.spend_seq)
        for command in commands
        if isinstance(command, Refund) and command.spend_seq is not None
    }
    spend_ids |= {
        (command.user_id, command.grant_seq)
        for command in commands
        if isinstance(command, RevokeGrant)
    }
    if not spend_ids:
        return
    refunded = await store.load_refunds(connection, spend_ids)
    for (user_id, seq), entry in (await store.load_entries(connection, spend_ids)).items():
        _locked(state, user_id).spends[seq] = Spent(entry, refunded.get((user_id, seq), 0))


async def _load_purchases(
    connection: asyncpg.Connection, state: BatchState, commands: list[Command]
) -> None:
    refs = {
        command.payment.ref
        for command in commands
        if isinstance(command, Purchase) and command.payment is not None
    }
    refs |= {
        command.payment_ref for command in commands if isinstance(command, Reverse | NoteTopUp)
    }
    purchases = await store.load_purchases(connection, refs) if refs else {}
    if not purchases:
        return
    entry_ids = {(bought.user_id, bought.seq) for bought in purchases.values()}
    entries = await store.load_entries(connection, entry_ids)
    unseen = entry_ids - entries.keys()
    if unseen and of_distributed_book(connection):
        entries |= await _load_unseen(connection, state, unseen)
    asked = {command.user_id for command in commands}
    for ref, bought in purchases.items():
        entry = entries.get((bought.user_id, bought.seq))
        # A user who was deleted and created again has other entries with the same seqs.
        if entry is not None and (entry.payment is None or entry.payment.ref != ref):
            entry = None
        if entry is not None and entry.user_id in asked:
            _locked(state, entry.user_id)
        state.purchases[ref] = bought._replace(entry=entry)


async def _load_unseen(
    connection: asyncpg.Connection, state: BatchState, entry_ids: set[EntryId]
) -> dict[EntryId, Entry]:
    """Reads again the entries that payments name and that were missing, on a distributed book.

    Two nodes commit a payment and its entry, one after the other, so the payment can be seen for a
    moment without its entry. Only a locked account is sure to have no such entry under way.

    Raises:
        StaleAccountError: an entry may be under way; the batch must start over.
    """
    locked = {user_id for user_id, user in state.users.items() if not user.is_new}
    not_locked = {user_id for user_id, _ in entry_ids} - locked
    if not not_locked:
        return {}
    for user_id in await store.find_users(connection, not_locked):
        # It is another call's user, or the payment opens the account. The lock waits for the node.
        if user_id in state.users or not await store.lock_accounts(connection, [user_id]):
            raise store.StaleAccountError("a payment is there without its entry")
    return await store.load_entries(connection, entry_ids)


async def _load_reversals(
    connection: asyncpg.Connection, state: BatchState, commands: list[Command]
) -> None:
    asked = [command for command in commands if isinstance(command, Reverse)]
    payments = {
        command.payment_ref for command in commands if isinstance(command, Reverse | NoteTopUp)
    }
    if payments:
        state.returned.update(await store.load_returned(connection, payments))
    if not asked:
        return
    revisions = {(command.reversal_ref, command.revision) for command in asked}
    recorded = await store.load_reversals(connection, revisions)
    repeated = revisions & recorded.keys()
    entry_ids = {
        (reversal.user_id, reversal.seq)
        for reversal in (recorded[identity] for identity in repeated)
        if reversal.seq is not None
    }
    entries = await store.load_entries(connection, entry_ids) if entry_ids else {}
    for identity in repeated:
        reversal = recorded[identity]
        if reversal.seq is not None:
            entry = entries.get((reversal.user_id, reversal.seq))
            recorded[identity] = reversal._replace(entry=entry)
    for reversal in recorded.values():
        state.add_reversal(reversal)


async def _load_holds(
    connection: asyncpg.Connection, state: BatchState, commands: list[Command]
) -> None:
    hold_ids = {
        (command.user_id, command.hold_seq)
        for command in commands
        if isinstance(command, _SETTLING)
    }
    hold_ids |= {
        (entry.user_id, entry.hold_seq)
        for user in state.users.values()
        for entry in user.by_key.values()
        if entry.hold_seq is not None
    }
    if hold_ids:
        found = await store.load_holds(connection, hold_ids)
        settled = {
            (hold.user_id, hold.settled_seq): hold.seq
            for hold in found.values()
            if hold.settled_seq is not None
        }
        _put_holds(state, found.values())
        if settled:
            for (user_id, seq), entry in (await store.load_entries(connection, settled)).items():
                _locked(state, user_id).ended[settled[user_id, seq]] = entry


def _put_holds(state: BatchState, found: Iterable[Hold]) -> None:
    for hold in found:
        _locked(state, hold.user_id).holds[hold.seq] = hold

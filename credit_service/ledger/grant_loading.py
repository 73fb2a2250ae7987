"""Loading what a batch needs of grants: one statement, and none where no user ever had a grant."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from credit_service.errors import InvalidRequest
from credit_service.ledger import grant_store
from credit_service.ledger.grant_store import AskedGrants
from credit_service.rules.commands import (
    Adjust,
    Capture,
    MakeHold,
    Purchase,
    Refund,
    Release,
    Reverse,
    RevokeGrant,
    Spend,
    SpendTogether,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from uuid import UUID

    import asyncpg

    from credit_service.ledger.grant_store import LoadedGrants
    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import Charge, Command
    from credit_service.rules.model import Hold
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState

# More than any account can have: all open grants are loaded.
_ALL = 2**62


async def load_grants(
    connection: asyncpg.Connection,
    state: BatchState,
    commands: Iterable[Command],
    ended: Mapping[UUID, Iterable[Hold]],
    terms: Terms,
) -> None:
    """Loads grants, pins and changes into the state of a batch.

    Args:
        connection: in the batch's transaction.
        state: the batch, with all else loaded.
        commands: those that are decided.
        ended: by user, the due holds that the batch ends.
        terms: with the prices of charges.
    """
    if not any(user.loaded.grants_made for user in state.users.values()):
        return
    asked = AskedGrants(set(), set(), set(), set(), set(), set(), Counter())
    for command in commands:
        user = state.users.get(command.user_id)
        if user is not None and user.loaded.grants_made > 0:
            _ask(asked, state, user, command, terms)
    for user_id, holds in ended.items():
        if state.users[user_id].loaded.pinned > 0:
            asked.holds.update((user_id, hold.seq) for hold in holds)
    for user_id, user in state.users.items():
        if user.loaded.grants_made > 0:
            # The key of a call without a payment is compared with the life that it asked for.
            asked.grants.update(
                (user_id, entry.seq)
                for entry in user.by_key.values()
                if entry.type in {"purchase", "grant"} and entry.payment is None
            )
    if any(asked):
        _put(state, asked, await grant_store.load_grants(connection, asked, state.now))


def _ask(
    asked: AskedGrants, state: BatchState, user: UserState, command: Command, terms: Terms
) -> None:
    """Adds what a command of a user who had grants needs."""
    user_id, has_credits = command.user_id, user.loaded.in_grants > 0
    drawn = 0
    match command:
        case Refund(spend_seq=int(seq)):
            asked.entries.add((user_id, seq))
        case Reverse():
            bought = state.purchases.get(command.payment_ref)
            if bought is not None and bought.user_id == user_id:
                asked.purchases.add((user_id, bought.seq))
                asked.all_holds.add(user_id)
            drawn = _ALL
        case RevokeGrant():
            asked.grants.add((user_id, command.grant_seq))
            drawn = _ALL
        case Purchase(rollover=rollover) if rollover is not None:
            asked.series.add((user_id, rollover.series))
            drawn = _ALL
        case Spend() | MakeHold():
            drawn = _cost(command.charge, terms)
        case Adjust():
            drawn = max(0, -command.amount)
        case SpendTogether():
            drawn = sum(_cost(spend.charge, terms) for spend in command.spends)
        case Capture() | Release():
            hold = user.holds.get(command.hold_seq)
            if hold is not None:
                asked.holds.add((user_id, hold.seq))
                drawn = _captured(command, hold) if isinstance(command, Capture) else 0
    if drawn and has_credits:
        asked.draws[user_id] = min(_ALL, asked.draws[user_id] + drawn)


def _cost(charge: Charge, terms: Terms) -> int:
    if charge.operation is None or charge.quantity is None:
        return charge.amount or 0
    try:
        return terms.prices.price(charge.operation, charge.quantity, "charge").cost
    except InvalidRequest:
        return 0  # the rules refuse it


def _captured(command: Capture, hold: Hold) -> int:
    if command.quantity is not None:
        return command.quantity * (hold.unit_cost or 0)
    return hold.amount if command.amount is None else command.amount


def _put(state: BatchState, asked: AskedGrants, loaded: LoadedGrants) -> None:
    for granted in loaded.grants:
        state.users[granted.user_id].grants[granted.seq] = granted
    for user_id, seq in asked.entries:
        state.users[user_id].drawn[seq] = []
    for user_id, seq in asked.purchases:
        state.users[user_id].reversed[seq] = []
    for granted in loaded.grants:
        if granted.reversed > granted.counted:
            state.users[granted.user_id].reversed[granted.seq] = []
    for change in loaded.changes:
        user = state.users[change.user_id]
        if change.seq in user.drawn:
            user.drawn[change.seq].append(change)
        if change.reversed_seq in user.reversed:
            user.reversed[change.reversed_seq].append(change)
        hold_seq = change.hold_seq
        if hold_seq is not None:
            pins = user.pins.setdefault(hold_seq, {})
            pins[change.grant_seq] = pins.get(change.grant_seq, 0) + change.pinned_change
    for user_id in {change.user_id for change in loaded.changes}:
        user = state.users[user_id]
        whole = user_id in asked.all_holds
        user.pins = {
            hold_seq: {seq: pinned for seq, pinned in pins.items() if pinned > 0}
            for hold_seq, pins in user.pins.items()
            if whole or (user_id, hold_seq) in asked.holds
        }

"""Loading what a batch needs of top-ups: one statement, and none for accounts that have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from credit_service.ledger import top_up_store
from credit_service.rules.commands import (
    Capture,
    FailTopUp,
    MakeHold,
    NoteTopUp,
    Purchase,
    Reverse,
    SetPolicy,
    Spend,
    SpendTogether,
)
from credit_service.rules.top_up_values import TopUpCounts, TopUpRequest, TopUps

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    import asyncpg

    from credit_service.rules.batch_state import BatchState
    from credit_service.rules.commands import Command

_NO_COUNTS = TopUpCounts()

# The commands that may ask for a top-up or change one.
_CONCERNED = (
    Spend,
    SpendTogether,
    MakeHold,
    Capture,
    Purchase,
    Reverse,
    SetPolicy,
    NoteTopUp,
    FailTopUp,
)


async def load_top_ups(
    connection: asyncpg.Connection, state: BatchState, commands: Iterable[Command]
) -> None:
    """Loads counts and requests into the state of a batch.

    Args:
        connection: in the batch's transaction.
        state: the batch, with its accounts.
        commands: those that are decided.
    """
    user_ids: set[UUID] = set()
    numbers: set[tuple[UUID, int]] = set()
    payment_refs: set[str] = set()
    for command in commands:
        user = state.users.get(command.user_id)
        # An account whose top-ups never changed has no row to load.
        if user is None or not user.loaded.top_up_changes or not isinstance(command, _CONCERNED):
            continue
        user_ids.add(command.user_id)
        match command:
            case NoteTopUp() | FailTopUp():
                numbers.add((command.user_id, command.top_up.number))
        match command:
            case Purchase(payment=payment) if payment is not None:
                payment_refs.add(payment.ref)
            case Reverse() | NoteTopUp():
                payment_refs.add(command.payment_ref)
    if not user_ids:
        return
    loaded = await top_up_store.load_top_ups(connection, user_ids, numbers, payment_refs)
    requests: dict[UUID, dict[int, TopUpRequest]] = {user_id: {} for user_id in user_ids}
    for request in loaded.requests:
        if request.user_id in user_ids:
            requests[request.user_id][request.number] = request
    for user_id in user_ids:
        state.users[user_id].top_ups = TopUps(
            loaded.counts.get(user_id, _NO_COUNTS),
            requests[user_id],
            frozenset(
                each.payment_ref
                for each in loaded.requests
                if each.payment_ref in payment_refs and each.user_id != user_id
            ),
        )

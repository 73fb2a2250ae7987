"""The sweeper: records the expiry of holds on accounts that no call touches.

No answer ever needs it, for expiry is decided by a comparison. It submits commands like any other
caller, so every replica may run one at the same time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from credit_service.errors import CreditError, UserNotFound
from credit_service.rules.commands import Expire
from credit_service.rules.holds import SERVICE

if TYPE_CHECKING:
    from credit_service.ledger.ledger import Ledger

_log = structlog.get_logger()

_PAUSE_SECONDS = 1.0
_USERS_AT_ONCE = 500
_WAIT_SECONDS = 10.0


async def sweep(ledger: Ledger) -> None:
    """Records what is due, once a second, or at once again while more is due than one go takes."""
    while True:
        due = 0
        try:
            due = await record_due(ledger)
        except CreditError as error:
            _log.warning("expiry not recorded, trying again", problem=error.reason)
        except Exception:
            # Whatever it is, it must not end the sweeper.
            _log.exception("sweeper failed")
        if due < _USERS_AT_ONCE:
            await asyncio.sleep(_PAUSE_SECONDS)


async def record_due(ledger: Ledger) -> int:
    """Records the expiry of holds that are due.

    Returns:
        How many users had any, 500 at most.

    Raises:
        Unavailable: the database is away, or the lanes are full.
    """
    user_ids = await ledger.reads.due_users(_USERS_AT_ONCE)
    commands = (Expire(user_id=user_id, caller=SERVICE) for user_id in user_ids)
    answers = await asyncio.gather(
        *(ledger.enqueue(command, _WAIT_SECONDS) for command in commands), return_exceptions=True
    )
    for answer in answers:
        # A user who was deleted meanwhile has no holds any more.
        if isinstance(answer, BaseException) and not isinstance(answer, UserNotFound):
            raise answer
    return len(user_ids)

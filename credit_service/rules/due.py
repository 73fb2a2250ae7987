"""Settles ends of holds, lapses of grants and an allowance, in the order of their due times.

The result is the same whether a call looks in time or an hour later. So a batch settles what is due
before it decides anything about an account, a read does the same on what it loaded, and the sweeper
only records it.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from credit_service.rules import allowances, grants, holds

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from credit_service.rules.model import Account, Hold
    from credit_service.rules.terms import Terms
    from credit_service.rules.user_state import UserState


def settle(
    user: UserState,
    ends: Sequence[Hold],
    lapses: Sequence[int],
    terms: Terms,
    *,
    next_end: datetime | None,
    next_lapse: datetime | None,
    more: bool = False,
    looked_at: bool = True,
) -> None:
    """Settles what is due of an account; at the same instant holds end first, then grants lapse.

    Args:
        user: whose account; what its due holds have set aside, and of which grants, is loaded.
        ends: its due holds, in the order of their times.
        lapses: the seqs of its open grants whose time has passed, in the order of their times.
        terms: with the configured allowance.
        next_end: at or before the expiry of every open hold that is left; None where none is.
        next_lapse: at or before the expiry of every open grant that is left; None where none
            expires.
        more: whether more is due. Then these come before all that is left, next_end and next_lapse
            are not used, and no allowance is given yet.
        looked_at: whether a call looks at the account, which gives it the allowance that is due.
    """
    last = None
    waiting = list(reversed(ends))
    for instant, together in groupby(lapses, lambda seq: user.grants[seq].expire_time):
        last = _end_holds(user, waiting, instant) or last
        grants.lapse(user, together, instant)
        last = instant
    last = _end_holds(user, waiting, None) or last
    account = user.account
    if more:
        next_end = last or account.next_hold_expiry
        next_lapse = last or account.next_lapse
    next_end = next_end if account.open_holds else None
    next_lapse = next_lapse if account.open_grants else None
    if (next_end, next_lapse) != (account.next_hold_expiry, account.next_lapse):
        user.account = account._replace(next_hold_expiry=next_end, next_lapse=next_lapse)
    if looked_at and not more:
        allowances.give(user, terms)


def next_due(account: Account, terms: Terms) -> datetime | None:
    """The earliest time at which anything of an account is due; None: never.

    Args:
        account: as it is recorded.
        terms: with the configured allowance.
    """
    times = account.next_hold_expiry, account.next_lapse, allowances.next_time(account, terms)
    return min((time for time in times if time is not None), default=None)


def _end_holds(user: UserState, waiting: list[Hold], until: datetime | None) -> datetime | None:
    """Ends the holds due by an instant (None: all); returns when the last of them was due."""
    last = None
    while waiting and (until is None or waiting[-1].expires_at <= until):
        last = waiting[-1].expires_at
        holds.expire(user, waiting.pop())
    return last

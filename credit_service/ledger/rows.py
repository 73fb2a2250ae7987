"""The values of the ledger as rows of its tables, and rows as values.

The columns of a table have one order everywhere: in the fields of its value, here, and in the
statements.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from credit_service.rules.grant_values import Allowance, Grant
from credit_service.rules.model import (
    Account,
    Entry,
    Payment,
    Policy,
    SpendCounters,
    SpendLimits,
    TopUp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from credit_service.rules.model import PolicyChange, Reversal

POLICY_COLUMNS = (
    "frozen",
    "min_balance",
    *(f"limit_per_{window}" for window in SpendLimits._fields),
    *(f"allowance_{name}" for name in Allowance._fields),
    "alert_below",
    *(f"top_up_{name}" for name in TopUp._fields),
)

_METADATA = Entry._fields.index("metadata")
_PAYMENT = Entry._fields.index("payment")
_HOLD = _PAYMENT + len(Payment._fields)
_POLICY = Account._fields.index("policy")
_ALLOWANCE = _POLICY + 2 + len(SpendLimits._fields)
_COUNTERS = _ALLOWANCE + len(Allowance._fields) + 1 + len(TopUp._fields)
_POLICY_CHANGES = _COUNTERS + len(SpendCounters._fields)
_NO_ALLOWANCE = (None,) * len(Allowance._fields)
_NO_TOP_UP = (None,) * len(TopUp._fields)
_VALID_FOR = Grant._fields.index("valid_for")
_MICROSECOND = timedelta(microseconds=1)
_NO_PAYMENT = (None,) * len(Payment._fields)


def to_columns(rows: Iterable[tuple[object, ...]]) -> list[Sequence[object]]:
    """Turns one or more rows into the columns that unnest takes, which fills short ones with NULL.

    So a column of NULLs alone is sent empty: the driver looks at every value of a column twice.
    """
    columns = zip(*rows, strict=True)
    return [() if column.count(None) == len(column) else column for column in columns]


def account_row(account: Account) -> tuple[object, ...]:
    """The row of an account."""
    return (
        *account[:_POLICY],
        *_policy_columns(account.policy),
        *account.counters,
        *account[_POLICY + 2 : -1],
    )


def moved_row(account: Account) -> tuple[object, ...]:
    """The columns of an account's row that entries and holds change, after its user."""
    return (*account[:_POLICY], *account.counters, account.tx)


def policy_row(change: PolicyChange, tx: int) -> tuple[object, ...]:
    """The row of a change of policy, with its place in the feed."""
    return (*change[:-1], *_policy_columns(change.policy), tx)


def _policy_columns(policy: Policy) -> tuple[object, ...]:
    frozen, min_balance, limits, allowance, alert_below, top_up = policy
    return (
        frozen,
        min_balance,
        *limits,
        *(allowance or _NO_ALLOWANCE),
        alert_below,
        *(top_up or _NO_TOP_UP),
    )


def reversal_row(reversal: Reversal) -> tuple[object, ...]:
    """The row of a reversal."""
    # All but the entry, the last field, which is written separately.
    return reversal[:-1]


def to_account(row: Sequence[Any] | asyncpg.Record) -> Account:
    """The account of a row."""
    policy = _policy(tuple(row[_POLICY:_COUNTERS]))
    counters = SpendCounters(*row[_COUNTERS:_POLICY_CHANGES])
    return Account._make((*row[:_POLICY], policy, counters, *row[_POLICY_CHANGES:], None))


def to_policy(columns: Sequence[Any]) -> Policy:
    """The policy of its columns."""
    frozen, min_balance, minute, hour, day, amount, period, carry_over, alert_below, *top_up = (
        columns
    )
    return Policy(
        frozen,
        min_balance,
        SpendLimits(minute, hour, day),
        None if amount is None else Allowance(amount, period, carry_over),
        alert_below,
        None if top_up[0] is None else TopUp(*top_up),
    )


# Most accounts have the policy of defaults, and the others have few different ones.
_policy = lru_cache(maxsize=1024)(to_policy)


def to_account_less_due(row: Sequence[Any] | asyncpg.Record) -> Account:
    """The account of a row whose last column is the credits of holds that are due to expire.

    An account without grants is then up to date.
    """
    *columns, due = row
    account = to_account(columns)
    return account._replace(held=account.held - due, expiring=()) if due else account


def grant_row(grant: Grant) -> tuple[object, ...]:
    """The row of a grant."""
    valid_for = grant.valid_for
    microseconds = None if valid_for is None else valid_for // _MICROSECOND
    return (*grant[:_VALID_FOR], microseconds, *grant[_VALID_FOR + 1 :])


def to_grant(row: Sequence[Any] | asyncpg.Record) -> Grant:
    """The grant of a row."""
    grant = Grant._make(row)
    if grant.valid_for is None:
        return grant
    return grant._replace(valid_for=row[_VALID_FOR] * _MICROSECOND)


def entry_row(entry: Entry, tx: int) -> tuple[object, ...]:
    """The row of an entry, with its place in the feed."""
    metadata = orjson.dumps(entry.metadata).decode() if entry.metadata else None
    return (
        *entry[:_METADATA],
        metadata,
        *entry[_METADATA + 1 : _PAYMENT],
        *(entry.payment or _NO_PAYMENT),
        entry.hold_seq,
        tx,
    )


def to_entry(row: Sequence[Any] | asyncpg.Record) -> Entry:
    """The entry of a row; further columns after its own are left alone."""
    metadata, payment_ref = row[_METADATA], row[_PAYMENT]
    return Entry._make(
        (
            *row[:_METADATA],
            orjson.loads(metadata) if metadata else {},
            *row[_METADATA + 1 : _PAYMENT],
            None if payment_ref is None else Payment(*row[_PAYMENT:_HOLD]),
            row[_HOLD],
            (),
        )
    )

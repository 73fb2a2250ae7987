"""The values of the ledger as rows of its tables, and rows as values.

The columns of a table have one order everywhere: in the fields of its value, here, and in the
statements.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from credit_service.rules.model import (
    Account,
    Entry,
    Payment,
    Policy,
    SpendCounters,
    SpendLimits,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from credit_service.rules.model import PolicyChange, Reversal

_METADATA = Entry._fields.index("metadata")
_PAYMENT = Entry._fields.index("payment")
_POLICY = Account._fields.index("policy")
_COUNTERS = _POLICY + 2 + len(SpendLimits._fields)
_NO_PAYMENT = (None,) * len(Payment._fields)


def to_columns(rows: Iterable[tuple[object, ...]]) -> list[Sequence[object]]:
    """Turns one or more rows into the columns that unnest takes, which fills short ones with NULL.

    So a column of NULLs alone is sent empty: the driver looks at every value of a column twice.
    """
    columns = zip(*rows, strict=True)
    return [() if column.count(None) == len(column) else column for column in columns]


def account_row(account: Account) -> tuple[object, ...]:
    """The row of an account."""
    frozen, min_balance, limits, _ = account.policy
    return (
        *account[:_POLICY],
        frozen,
        min_balance,
        *limits,
        *account.counters,
        account.policy_changes,
    )


def policy_row(change: PolicyChange) -> tuple[object, ...]:
    """The row of a change of policy."""
    frozen, min_balance, limits, _ = change.policy
    return (*change[:-1], frozen, min_balance, *limits)


def reversal_row(reversal: Reversal) -> tuple[object, ...]:
    """The row of a reversal."""
    # All but the entry, which is written by itself.
    return reversal[:-2]


def to_account(row: Sequence[Any] | asyncpg.Record) -> Account:
    """The account of a row."""
    limits = SpendLimits(*row[_POLICY + 2 : _COUNTERS])
    policy = Policy(row[_POLICY], row[_POLICY + 1], limits)
    counters = SpendCounters(*row[_COUNTERS:-1])
    return Account(row[0])._replace(
        **dict(zip(Account._fields, (*row[:_POLICY], policy, counters, row[-1]), strict=False))
    )


def to_account_less_due(row: Sequence[Any] | asyncpg.Record) -> Account:
    """The account of a row whose last column is what it holds though it is due to expire."""
    *columns, due = row
    account = to_account(columns)
    return account._replace(held=account.held - due) if due else account


def entry_row(entry: Entry) -> tuple[object, ...]:
    """The row of an entry."""
    metadata = orjson.dumps(entry.metadata).decode() if entry.metadata else None
    return (
        *entry[:_METADATA],
        metadata,
        *entry[_METADATA + 1 : _PAYMENT],
        *(entry.payment or _NO_PAYMENT),
        entry.hold_seq,
    )


def to_entry(row: Sequence[Any] | asyncpg.Record) -> Entry:
    """The entry of a row."""
    *head, payment_ref, amount_minor, currency, hold_seq = row
    head[_METADATA] = orjson.loads(head[_METADATA]) if head[_METADATA] else {}
    payment = Payment(payment_ref, amount_minor, currency) if payment_ref is not None else None
    return Entry(*(*head, payment, hold_seq))

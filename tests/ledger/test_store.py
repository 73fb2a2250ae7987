"""The columns of a table have one order: in its value's fields and in every statement and row."""

import re

import pytest

from credit_service.ledger.rows import POLICY_COLUMNS, account_row, moved_row
from credit_service.ledger.store import SQL
from credit_service.rules.grant_values import Grant, GrantChange
from credit_service.rules.model import (
    Account,
    Entry,
    Hold,
    KeptKey,
    Payment,
    Policy,
    PolicyChange,
    Reversal,
    SpendCounters,
)
from credit_service.rules.top_up_values import TopUpCounts, TopUpRequest

_PARTS = {
    "payment": tuple(f"payment_{name}" for name in Payment._fields),
    "policy": POLICY_COLUMNS,
    "counters": (
        "counted_at",
        "spent_this_minute",
        "spent_this_hour",
        "spent_this_day",
    ),
    "entry": (),
    "expiring": (),
    "grant_changes": (),
    "valid_for": ("valid_for_us",),
}


def columns(value):
    """The columns of a value's row, by the names of its fields."""
    return tuple(column for name in value._fields for column in _PARTS.get(name, (name,)))


CHANGE = ("change_user_id", "change_seq", *GrantChange._fields[2:], "step")

READS = [
    ("lock_accounts", Account, (), ()),
    ("get_account", Account, ("now",), ("due",)),
    ("changed_accounts", Account, (), ("due",)),
    ("read_accounts", Account, (), ("now",)),
    ("list_known_accounts", Account, (), ("due",)),
    ("load_entries_by_key", Entry, ("now", "tx", "key", "kept_call"), ()),
    ("load_entries", Entry, (), ()),
    ("list_entries", Entry, (), ("newest", "grants_made")),
    ("load_holds", Hold, (), ()),
    ("load_due_holds", Hold, (), ()),
    ("list_holds", Hold, ("now",), ()),
    ("load_reversals", Reversal, (), ()),
    ("read_feed", Entry, ("feed_id", "boundary", "passed", "tx", "kind", "other"), ()),
    ("load_due_grants", Grant, (), ()),
    ("load_grants", Grant, (), CHANGE),
    (
        "load_top_ups",
        TopUpCounts,
        ("user_id",),
        ("request_user_id", *TopUpRequest._fields[1:]),
    ),
    ("list_top_ups", TopUpRequest, (), ()),
    ("list_open_top_ups", TopUpRequest, (), ()),
]


@pytest.mark.parametrize(("statement", "value", "before", "after"), READS)
async def test_a_read_answers_in_the_order_of_the_fields(database, statement, value, before, after):
    connection = await database.connect()
    try:
        prepared = await connection.prepare(SQL[statement])
        names = tuple(attribute.name for attribute in prepared.get_attributes())
    finally:
        await connection.close()
    assert names == (*before, *columns(value), *after)


WRITES = [
    ("insert_accounts", Account, ()),
    ("update_accounts", Account, ("old_seq",)),
    ("insert_entries", Entry, ("tx",)),
    ("upsert_holds", Hold, ()),
    ("insert_policy_changes", PolicyChange, ("tx",)),
    ("insert_reversals", Reversal, ()),
    ("insert_kept_keys", KeptKey, ()),
    ("upsert_grants", Grant, ()),
    ("insert_grant_changes", GrantChange, ("step",)),
    ("upsert_top_ups", TopUpRequest, ()),
]


def listed(text):
    return tuple(re.findall(r"\w+", text))


@pytest.mark.parametrize(("statement", "value", "after"), WRITES)
def test_a_write_takes_its_columns_in_the_order_of_the_fields(statement, value, after):
    sql = SQL[statement]
    alias, taken = re.search(r"\) AS (\w+) \(([^)]*)\)", sql).groups()
    assert listed(taken) == (*columns(value), *after)
    into = re.search(r"INSERT INTO \w+(?: AS \w+)? \(([^)]*)\)", sql)
    if into:
        written = re.search(r"\nSELECT\n(.*?)\nFROM", sql, re.DOTALL)[1]
        assert listed(into[1]) == (*columns(value), *after)
        assert tuple(re.findall(rf"{alias}\.(\w+)", written)) == (*columns(value), *after)
    else:
        pairs = re.findall(rf"^    (\w+) = {alias}\.(\w+)", sql, re.MULTILINE)
        assert all(column == source for column, source in pairs)
        assert tuple(column for column, _ in pairs) == columns(value)[1:]


def moved_columns():
    """The columns written for an account in which only credits moved, after its seq is compared."""
    sql = SQL["move_accounts"]
    (taken,) = re.search(r"\) AS moved \(([^)]*)\)", sql).groups()
    pairs = re.findall(r"^    (\w+) = moved\.(\w+)", sql, re.MULTILINE)
    assert all(column == source for column, source in pairs)
    *written, old_seq = listed(taken)
    assert old_seq == "old_seq"
    assert written[1:] == [column for column, _ in pairs]
    return written


def test_an_account_in_which_credits_moved_is_written_in_the_order_of_its_columns():
    # A value of its own in each column, so that no two of them can be exchanged unnoticed.
    account = Account._make(range(len(Account._fields)))._replace(
        policy=Policy(), counters=SpendCounters(*"abcd")
    )
    whole = dict(zip(columns(Account), account_row(account), strict=True))
    assert moved_row(account) == tuple(whole[column] for column in moved_columns())


def test_credits_alone_moved_only_where_no_other_column_changed():
    account = Account._make(range(len(Account._fields)))._replace(
        policy=Policy(), counters=SpendCounters()
    )
    other = {"policy": Policy(frozen=True), "counters": SpendCounters(minute=1)}
    for name in Account._fields:
        if name in {"user_id", "expiring"}:
            continue  # one never changes, the other has no column
        changed = account._replace(**{name: other.get(name, -1)})
        names = _PARTS.get(name, (name,))
        assert changed.moved_from(account) == (set(names) <= set(moved_columns())), name

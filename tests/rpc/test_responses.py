"""Entries as messages: a message says what its entry holds, alone or in a page."""

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from credit_service.ledger.rows import entry_row, to_entry
from credit_service.rpc import responses
from credit_service.rules.grant_values import GrantChange
from credit_service.rules.model import Entry, Payment, transaction_id
from credit_service.v1 import credit_service_pb2 as pb

CHANGES_SHOWN = 100
ADOPTED_TEXT_SHOWN = 10_000

BIGINT = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1])
SEQ = st.integers(1, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
TIME = st.datetimes(timezones=st.just(UTC))

USER = UUID("3f2b8c1e-9d4a-4f6b-8a57-0c1d2e3f4a5b")
CHANGE = st.builds(
    GrantChange,
    user_id=st.just(USER),
    seq=SEQ,
    grant_seq=SEQ,
    hold_seq=st.none() | SEQ,
    remaining_change=BIGINT,
    pinned_change=BIGINT,
    remaining_after=BIGINT,
    pinned_after=BIGINT,
    expire_after=st.none(),
    lapsed_at=st.none(),
)
ENTRY = st.builds(
    Entry,
    user_id=st.just(USER),
    seq=SEQ,
    type=st.sampled_from(sorted(responses.TYPES)),
    call=st.sampled_from(["SpendCredits", "HoldCredits", "adopted"]),
    amount=BIGINT,
    requested_amount=st.none() | BIGINT,
    balance_change=BIGINT,
    held_change=BIGINT,
    balance_after=BIGINT,
    held_after=BIGINT,
    floor=st.none() | BIGINT,
    description=TEXT | st.just("x" * (ADOPTED_TEXT_SHOWN + 1)),
    timestamp=TIME,
    operation=st.none() | TEXT,
    quantity=st.none() | BIGINT,
    unit_cost=st.none() | BIGINT,
    price_version=st.none() | TEXT,
    reference=TEXT,
    metadata=st.dictionaries(TEXT, TEXT | st.just("y" * (ADOPTED_TEXT_SHOWN + 1)), max_size=3),
    related_seq=st.none() | SEQ,
    idempotency_key=st.none() | TEXT,
    caller=TEXT,
    payment=st.none() | st.builds(Payment, TEXT, BIGINT, TEXT),
    hold_seq=st.none() | SEQ,
)
CHANGED = st.lists(CHANGE, max_size=3).map(tuple) | CHANGE.map(
    lambda change: (change,) * (CHANGES_SHOWN + 1)
)


def as_named(entry, *, written):
    """The message of an entry by its constructor, every field named."""
    shown = ADOPTED_TEXT_SHOWN if entry.call == "adopted" else None
    stamp = Timestamp()
    stamp.FromDatetime(entry.timestamp)
    hold_seq = None if entry.type == "hold" and not written else entry.hold_seq
    return pb.CreditTransaction(
        id=transaction_id(USER, entry.seq) if written else "",
        user_id=str(USER),
        seq=entry.seq if written else 0,
        type=responses.TYPES[entry.type],
        amount=entry.amount,
        balance_change=entry.balance_change,
        held_change=entry.held_change,
        balance_after=entry.balance_after,
        held_after=entry.held_after,
        description=entry.description[:shown],
        timestamp=stamp,
        operation=entry.operation,
        quantity=entry.quantity,
        unit_cost=entry.unit_cost,
        price_version=entry.price_version,
        reference=entry.reference,
        metadata={name: text[:shown] for name, text in entry.metadata.items()},
        related_transaction_id=entry.related_seq and transaction_id(USER, entry.related_seq),
        hold_id=hold_seq and transaction_id(USER, hold_seq),
        idempotency_key=entry.idempotency_key,
        caller=entry.caller,
        payment=entry.payment and pb.Payment(**entry.payment._asdict()),
        grant_changes=[
            pb.GrantChange(
                grant_id=transaction_id(USER, change.grant_seq),
                remaining_change=change.remaining_change,
                held_change=change.pinned_change,
                remaining_after=change.remaining_after,
                held_after=change.pinned_after,
                hold_id=change.hold_seq and transaction_id(USER, change.hold_seq),
            )
            for change in entry.grant_changes[:CHANGES_SHOWN]
        ],
        more_grant_changes=len(entry.grant_changes) > CHANGES_SHOWN,
    )


def as_bytes(message):
    return message.SerializeToString(deterministic=True)


@given(ENTRY, CHANGED, st.booleans())
def test_an_entry_has_the_same_bytes_as_a_message_with_every_field_named(entry, changes, written):
    entry = entry._replace(grant_changes=changes)
    message = responses.transaction(entry, written=written)
    assert as_bytes(message) == as_bytes(as_named(entry, written=written))


@given(st.lists(ENTRY, max_size=4))
def test_entries_of_a_page_have_the_same_bytes_as_entries_alone(entries):
    page = pb.GetTransactionHistoryResponse()
    for entry in entries:
        responses.transaction(entry, into=page.transactions.add())
    alone = [responses.transaction(entry) for entry in entries]
    assert as_bytes(page) == as_bytes(pb.GetTransactionHistoryResponse(transactions=alone))


@given(ENTRY)
def test_an_entry_comes_back_from_its_row(entry):
    assert to_entry(entry_row(entry, tx=7)) == entry


@given(TIME)
def test_a_time_is_rendered_as_protobuf_does_it(time):
    expected = Timestamp()
    expected.FromDatetime(time)
    assert responses.timestamp(time) == expected


def test_a_time_before_1970_has_no_negative_nanoseconds():
    message = responses.timestamp(datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC))
    assert (message.seconds, message.nanos) == (-1, 999_999_000)

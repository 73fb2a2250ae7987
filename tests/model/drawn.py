"""Random requests, and the service's answers in the terms of the model."""

from dataclasses import asdict, dataclass, replace
from uuid import UUID

from hypothesis import strategies as st
from model.ledger import Entry, Prices, Refused, Request

from credit_service.errors import Refusal
from credit_service.rules import model
from credit_service.rules.terms import Terms
from credit_service.v1 import credit_service_pb2 as pb

ALICE, BOB, STRANGER = (UUID(int=number) for number in (1, 2, 3))
GIVEN_KEY = "given:1"


@dataclass(frozen=True)
class Again:
    """The request `back` places earlier, word for word or with some of its fields altered."""

    back: int
    altered: dict[str, object]

    def after(self, earlier):
        first = earlier[-1 - self.back % len(earlier)]
        altered = {f: value for f, value in self.altered.items() if _takes(first, f, value)}
        return replace(first, **altered)


def _takes(request, field, value):
    match field:
        case "amount":
            return request.operation is None if value else request.transaction is not None
        case "expected_cost":
            return request.call == "SpendCredits"
        case "payment":
            return request.call == "PurchaseCredits"
        case "quantity":
            return request.operation is not None
        case "transaction":
            return request.transaction is not None
        case _:
            return True


def _requests():
    amounts = st.sampled_from([1, 1, 1, 2, 2, 3, 4, 4, 5, 10**12])
    common = {
        "user": st.sampled_from([ALICE] * 6 + [BOB] * 4 + [STRANGER]),
        "key": st.sampled_from([*"abcdefghijklmnopqrstuvwx", GIVEN_KEY]),
        "note": st.sampled_from(["", "a note"]),
        "validate_only": st.sampled_from([False] * 4 + [True]),
    }
    purchases = st.builds(
        Request,
        call=st.just("PurchaseCredits"),
        amount=amounts,
        payment=st.sampled_from([None, "pi_1", "pi_2", "pi_3"]),
        **common,
    )
    spend = {
        "call": st.just("SpendCredits"),
        "expected_cost": st.sampled_from([None] * 9 + [1, 2, 3]),
        **common,
    }
    spends = st.builds(Request, amount=amounts, **spend)
    charges = st.builds(
        Request,
        operation=st.sampled_from(["stem_separation", "stem_separation", "render", "mastering"]),
        quantity=st.sampled_from([1, 1, 1, 2, 2, 10**12]),
        **spend,
    )
    refunds = st.builds(
        Request,
        call=st.just("RefundCredits"),
        transaction=st.sampled_from([1, 2, 2, 3, 3, 4, 5]),
        amount=st.none() | amounts,
        **common,
    )
    refunds_of_no_spend = st.builds(
        Request, call=st.just("RefundCredits"), amount=amounts, **common
    )
    return st.one_of(
        purchases, spends, spends, charges, charges, refunds, refunds, refunds, refunds_of_no_spend
    )


def _repeats():
    alterations = st.fixed_dictionaries(
        {},
        optional={
            "user": st.sampled_from([ALICE, BOB]),
            "key": st.sampled_from("abcdefghijklmnop"),
            "note": st.just("another note"),
            "expected_cost": st.integers(1, 6),
            "validate_only": st.booleans(),
            "amount": st.none() | st.integers(1, 4),
            "quantity": st.integers(1, 2),
            "payment": st.none() | st.sampled_from(["pi_1", "pi_2"]),
            "transaction": st.integers(1, 5),
        },
    )
    return st.builds(Again, st.integers(0, 5), st.just({}) | alterations)


STEPS = st.one_of(_requests(), _requests(), _repeats())


def asked(steps, earlier):
    """The requests of the steps; each also becomes one that later steps may repeat."""
    requests = []
    for step in steps:
        if isinstance(step, Request):
            earlier.append(step)
        elif earlier:
            earlier.append(step.after(earlier))
        else:
            continue
        requests.append(earlier[-1])
    return requests


def as_entry(entry: model.Entry) -> Entry:
    """An entry of the service in the model's terms."""
    assert (entry.held_change, entry.held_after) == (0, 0)
    assert entry.reference == entry.description
    return Entry(
        seq=entry.seq,
        type=entry.type,
        amount=entry.amount,
        balance_change=entry.balance_change,
        balance_after=entry.balance_after,
        key=entry.idempotency_key,
        note=entry.description,
        operation=entry.operation,
        quantity=entry.quantity,
        unit_cost=entry.unit_cost,
        price_version=entry.price_version,
        transaction=entry.related_seq,
        payment=entry.payment.ref if entry.payment else None,
    )


def message_as_entry(message: pb.CreditTransaction) -> Entry:
    """An entry as it came over the wire in the model's terms."""
    return Entry(
        seq=message.seq,
        type=pb.TransactionType.Name(message.type).removeprefix("TRANSACTION_TYPE_").lower(),
        amount=message.amount,
        balance_change=message.balance_change,
        balance_after=message.balance_after,
        key=message.idempotency_key,
        note=message.description,
        operation=message.operation or None,
        quantity=message.quantity or None,
        unit_cost=message.unit_cost or None,
        price_version=message.price_version or None,
        transaction=int(message.related_transaction_id.rpartition("-")[2])
        if message.related_transaction_id
        else None,
        payment=message.payment.ref or None,
    )


def as_refused(refusal: Refusal) -> Refused:
    """A refusal in the model's terms, without the words about a field, which are for people."""
    facts = {name: fact for name, fact in asdict(refusal).items() if name != "problem"}
    return Refused(refusal.reason, facts)


def as_prices(terms: Terms) -> Prices:
    """The terms as the model takes them."""
    unit_costs = {name: price.unit_cost for name, price in terms.prices.prices.items()}
    return Prices(unit_costs, terms.prices.version, terms.min_balance)

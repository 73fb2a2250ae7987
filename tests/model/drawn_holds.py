"""Random requests about holds, and the service's answers in the terms of the model."""

from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from uuid import UUID

from hypothesis import strategies as st
from model.holds import Done, Line, Refused, Request

from credit_service.errors import CreditError
from credit_service.rules.commands import (
    Capture,
    Charge,
    Extend,
    MakeHold,
    Purchase,
    Refund,
    Release,
    SetPolicy,
    Spend,
)
from credit_service.rules.model import parse_transaction_id, transaction_id
from credit_service.rules.pricing import Price, PriceList
from credit_service.rules.terms import Terms

ALICE = UUID(int=1)
UNIT_COSTS = {"stem_separation": 3, "render": 2}
PRICES = PriceList({name: Price(cost, "piece") for name, cost in UNIT_COSTS.items()})
CAP = 3
TERMS = Terms(PRICES, 0, CAP)
KEYS = "abcdefghijklmnopqrstuvwx"


@dataclass(frozen=True)
class Again:
    """The request `back` places earlier, word for word, or with another key."""

    back: int
    key: str | None


def _requests(ttls):
    amounts = st.sampled_from([1, 1, 2, 2, 3, 4, 6])
    places = st.sampled_from([2, 2, 2, 3, 3, 3, 1, 4, 5, 6, 7])
    keys = st.sampled_from(KEYS)
    common = {"key": keys, "validate_only": st.sampled_from([False] * 5 + [True])}
    operation = {
        "operation": st.sampled_from(["stem_separation", "render", "render", "mastering"]),
        "quantity": st.integers(1, 2),
    }

    def of(call, **fields):
        return st.builds(Request, call=st.just(call), **fields)

    capture = {"hold": places, "overage": st.booleans(), **common}
    return st.one_of(
        of("HoldCredits", amount=amounts, ttl=ttls, **common),
        of("HoldCredits", amount=amounts, ttl=ttls, **common),
        of("HoldCredits", ttl=ttls, **operation, **common),
        of("CaptureHold", **capture),
        of("CaptureHold", amount=st.integers(0, 6), **capture),
        of("CaptureHold", quantity=st.integers(1, 3), **capture),
        of("ReleaseHold", hold=places, **common),
        of("ExtendHold", hold=places, ttl=ttls),
        of("PurchaseCredits", amount=amounts, **common),
        of("SpendCredits", amount=amounts, **common),
        of("SpendCredits", **operation, **common),
        of("RefundCredits", transaction=places, amount=st.none() | amounts, **common),
    )


POLICIES = st.one_of(
    st.builds(
        Request, call=st.just("SetAccountPolicy"), frozen=st.sampled_from([False, False, True])
    ),
    st.builds(Request, call=st.just("SetAccountPolicy"), per_day=st.sampled_from([0, 2, 5, 9])),
    st.builds(Request, call=st.just("SetAccountPolicy"), floor=st.sampled_from([-4, 0, 0, 2])),
)


def opening(credits_):
    """Credits, and holds in the places that most requests name."""
    return [
        Request(call="PurchaseCredits", key="opening", amount=credits_),
        Request(call="HoldCredits", key="first", operation="render", quantity=2, ttl=10),
        Request(call="HoldCredits", key="second", amount=1, ttl=2),
    ]


def steps(ttls):
    requests = _requests(ttls)
    again = st.builds(Again, st.integers(0, 6), st.none() | st.sampled_from(KEYS))
    return st.one_of(requests, requests, requests, requests, requests, again)


def asked(drawn, earlier):
    """The requests of the steps; each also becomes one that later steps may repeat."""
    requests = []
    for step in drawn:
        if isinstance(step, Again):
            if not earlier:
                continue
            first = earlier[-1 - step.back % len(earlier)]
            earlier.append(replace(first, key=step.key) if step.key and first.key else first)
        else:
            earlier.append(step)
        requests.append(earlier[-1])
    return requests


def as_command(request):
    """A request as the servicer gives it to the rules."""
    who = {"user_id": ALICE, "caller": "test"}
    common = who | {
        "idempotency_key": request.key,
        "description": "",
        "reference": "",
        "metadata": {},
        "validate_only": request.validate_only,
    }
    amount, ttl = {"amount": request.amount}, {"ttl": timedelta(seconds=request.ttl)}
    priced = {"charge": Charge(request.amount, request.operation, request.quantity)}
    part = amount | {"quantity": request.quantity, "allow_overage": request.overage}
    hold = {"hold_seq": request.hold}
    limits = None if request.per_day is None else (0, 0, request.per_day)
    policy = {"frozen": request.frozen, "min_balance": request.floor, "limits": limits}
    kind, fields = {
        "PurchaseCredits": (Purchase, common | amount | {"payment": None}),
        "SpendCredits": (Spend, common | priced),
        "RefundCredits": (Refund, common | amount | {"spend_seq": request.transaction}),
        "HoldCredits": (MakeHold, common | priced | ttl),
        "CaptureHold": (Capture, common | hold | part),
        "ReleaseHold": (Release, common | hold),
        "ExtendHold": (Extend, who | hold | ttl),
        "SetAccountPolicy": (SetPolicy, who | policy),
    }[request.call]
    return kind(**fields)


async def call(client, user, request):
    """Sends a request; returns the response or the error."""
    common = {"idempotency_key": request.key, "validate_only": request.validate_only}
    amount, ttl = {"amount": request.amount}, {"ttl": timedelta(seconds=request.ttl)}
    priced = amount | {"operation": request.operation, "quantity": request.quantity or 1}
    part = amount | {"quantity": request.quantity, "allow_overage": request.overage}
    hold_id = request.hold and transaction_id(user, request.hold)
    spent = request.transaction and transaction_id(user, request.transaction)
    send, fields = {
        "PurchaseCredits": (client.purchase_credits, common | amount | {"payment": None}),
        "SpendCredits": (client.spend_credits, common | priced),
        "RefundCredits": (client.refund_credits, common | amount | {"transaction_id": spent}),
        "HoldCredits": (client.hold_credits, common | priced | ttl),
        "CaptureHold": (client.capture_hold, common | part | {"hold_id": hold_id}),
        "ReleaseHold": (client.release_hold, common | {"hold_id": hold_id}),
        "ExtendHold": (client.extend_hold, {"hold_id": hold_id} | ttl),
    }[request.call]
    try:
        return await send(user, **fields)
    except CreditError as error:
        return error


def as_line(entry):
    """An entry of the service in the model's terms."""
    return Line(
        seq=entry.seq,
        type=entry.type,
        amount=entry.amount,
        balance_change=entry.balance_change,
        held_change=entry.held_change,
        key=entry.idempotency_key,
        hold=entry.hold_seq,
        transaction=entry.related_seq,
    )


def as_refused(refusal):
    """A refusal in the model's terms: no words for people, no estimated waits, seqs as names."""
    facts = asdict(refusal)
    if refusal.reason == "IDEMPOTENCY_KEY_REUSED":
        seq = parse_transaction_id(facts["transaction_id"])[1]
        return Refused(refusal.reason, {"field": facts["field"], "seq": seq})
    if refusal.reason in {"TOO_MANY_HOLDS", "SPEND_LIMIT_EXCEEDED"}:
        assert facts.pop("retry_ms") >= 1
    if refusal.reason.endswith("_NOT_FOUND"):
        facts = {}
    facts.pop("problem", None)
    return Refused(refusal.reason, facts)


def as_done(outcome, request):
    hold = outcome.hold and (outcome.hold.seq, outcome.hold.state, outcome.hold.captured)
    if request.call == "HoldCredits" and request.validate_only and not outcome.replayed:
        assert hold[1:] == ("held", 0)
        hold = None
    return Done(outcome.entry and as_line(outcome.entry), outcome.replayed, hold)

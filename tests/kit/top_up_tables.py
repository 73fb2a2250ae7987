"""Commands about top-ups, and an account that has them, for the tests of the rules."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from credit_service.rules.batch_state import BatchState
from credit_service.rules.commands import (
    Capture,
    Charge,
    FailTopUp,
    MakeHold,
    NoteTopUp,
    Purchase,
    Release,
    Reverse,
    SetPolicy,
    Spend,
    SpendTogether,
)
from credit_service.rules.model import Account, Payment, Policy, TopUp
from credit_service.rules.pricing import PriceList
from credit_service.rules.terms import Terms
from credit_service.rules.top_up_values import TopUpId

ALICE, BOB = UUID(int=1), UUID(int=2)
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)
TERMS = Terms(PriceList({}), 0)
POLICY = TopUp(below=20, pack="hundred", per_month=3)


def account(available=100, held=0, policy=POLICY, *, user=ALICE, frozen=False):
    return Account(
        user,
        available + held,
        held,
        last_updated=NOON - timedelta(days=1),
        policy=Policy(frozen=frozen, top_up=policy),
    )


def state(*accounts, now=NOON):
    return BatchState.of(now, *(accounts or (account(),)))


def _keyed(key, validate_only, user=ALICE):
    return {
        "user_id": user,
        "idempotency_key": key,
        "description": "",
        "reference": "",
        "metadata": {},
        "validate_only": validate_only,
        "caller": "worker",
    }


def spend(amount, key, *, only=False):
    return Spend(charge=Charge(amount), **_keyed(key, only))


def together(*spends):
    return SpendTogether(user_id=ALICE, caller="worker", spends=spends)


def hold(amount, key, *, only=False):
    return MakeHold(charge=Charge(amount), ttl=timedelta(hours=1), **_keyed(key, only))


def capture(seq, key, amount=None, *, only=False):
    asked = {"hold_seq": seq, "amount": amount, "quantity": None, "allow_overage": False}
    return Capture(**asked, **_keyed(key, only))


def release(seq, key):
    return Release(hold_seq=seq, **_keyed(key, False))


def purchase(amount, ref, *, key=None, only=False, user=ALICE):
    return Purchase(
        amount=amount, payment=Payment(ref, 100, "eur"), **_keyed(key or f"buy:{ref}", only, user)
    )


def reverse(ref, revision, reversed_minor, *, only=False):
    return Reverse(
        user_id=ALICE,
        caller="bridge",
        payment_ref=ref,
        reversal_ref=f"re:{ref}",
        revision=revision,
        reversed_minor=reversed_minor,
        paid_minor=100,
        currency="eur",
        reason="refund",
        validate_only=only,
    )


def set_policy(top_up=None, *, frozen=None, reset=()):
    return SetPolicy(
        user_id=ALICE,
        caller="operator",
        frozen=frozen,
        min_balance=None,
        limits=None,
        top_up=top_up,
        reset=reset,
    )


def note(request, ref, *, user=ALICE):
    return NoteTopUp(user_id=user, caller="bridge", top_up=_id(request), payment_ref=ref)


def fail(request, number, failure="try_again", ref="", *, reason="declined"):
    return FailTopUp(
        user_id=ALICE,
        caller="bridge",
        top_up=_id(request),
        try_number=number,
        reason=reason,
        link="",
        failure=failure,
        payment_ref=ref,
    )


def _id(request):
    return request if isinstance(request, TopUpId) else request.id


def policy_of(user_id, top_up):
    """Sets the policy of any user."""
    return replace(set_policy(top_up), user_id=user_id)


def note_of(user_id, request, ref):
    """Notes a payment for the request of this number and creation time."""
    return note(TopUpId(user_id, *request), ref, user=user_id)


def fail_of(user_id, request, number, failure="try_again", ref=""):
    """Records a failed try of the request of this number and creation time."""
    made = fail(TopUpId(user_id, *request), number, failure, ref)
    return replace(made, user_id=user_id)

"""The reversal of a refund or of a partial capture. Pure: an object in, a reversal out.

A reversal says how much of a purchase's money one refund or dispute holds now, so events may repeat
or come in any order. Only the ratio of its two amounts matters, and a ratio has a meaning only
inside one currency.
"""

from __future__ import annotations

from stripe_bridge.fields import MINOR_MAX, Object, currency, id_of, minor
from stripe_bridge.invoice_lines import billed, cost_with_tax, is_credit
from stripe_bridge.model import Basis, Nothing, Notice, Reversal, Unresolved


class CurrencyMismatch(Unresolved):
    """A refund is in another currency than its charge, so that its share is unknown."""

    def __init__(self, refund_id: str) -> None:
        super().__init__(
            "currency_mismatch", f"{refund_id} is in another currency than its charge."
        )


def basis_of_intent(intent_id: str, charge: Object) -> Basis:
    """Says how much was paid for a purchase with one payment intent.

    It is the amount of the charge, not the captured amount, because the captured amount changes
    over time with several captures, and the first reversal of a payment fixes what was paid.

    Args:
        intent_id: the intent's.
        charge: its charge.

    Raises:
        Unresolved: amount_malformed, currency_malformed.
    """
    paid, paid_in = paid_amount(charge, "amount")
    return Basis(intent_id, paid, paid_in, paid, paid, paid_in)


def basis_of_invoice(
    invoice: Object, lines: list[Object], contributed_minor: int | None, charge: Object
) -> Basis:
    """Says how much was paid for an invoice: all that it billed.

    Its payments, those outside Stripe included, and the customer's balance paid it together. Credit
    lines of a change of plan are not part of this: a refund of all the money takes all the credits.

    Args:
        invoice: as API versions since 2025-03-31 show it.
        lines: all of its lines.
        contributed_minor: the part that the charge paid; None: Stripe does not show it, and the
            whole charge counts.
        charge: one of the charges that paid it.

    Raises:
        Unresolved: id_malformed, amount_malformed, currency_malformed.
    """
    paid = billed(invoice, lines)
    charged, charged_in = paid_amount(charge, "amount")
    after_credits = paid + sum(cost_with_tax(line) for line in lines if is_credit(line))
    if paid <= 0 or after_credits <= 0:
        raise Unresolved("amount_malformed", f"The total of {id_of(invoice)} is 0.")
    contributed = min(charged if contributed_minor is None else contributed_minor, after_credits)
    return Basis(
        id_of(invoice),
        paid,
        currency(invoice),
        paid * contributed // after_credits,
        charged,
        charged_in,
    )


def of_capture(intent: Object) -> Reversal | None:
    """Says what a partial capture reverses: the amount that was authorized and never received.

    Args:
        intent: a payment intent in any API version.

    Returns:
        The reversal, whose revision grows with the amount received; None: all was received.
    """
    amount, received = intent.get("amount"), intent.get("amount_received")
    if intent.get("status") != "succeeded" or type(amount) is not int or type(received) is not int:
        return None
    if not 0 <= received < amount <= MINOR_MAX:
        return None
    intent_id = id_of(intent)
    return Reversal(
        intent_id,
        intent_id,
        received + 1,
        amount - received,
        amount,
        currency(intent),
        "captured in part",
    )


def of_refund(refund: Object, *, basis: Basis, failed: bool = False) -> Reversal | Nothing:
    """Says what a refund reverses (Stripe: "The Refund object").

    A pending refund reverses its share already, because the money is promised. If the refund fails,
    a second revision gives the share back.

    Args:
        refund: in any API version.
        basis: the money paid for the purchase, in all and by the refunded charge.
        failed: the event was `refund.failed`, which overrides the status.

    Returns:
        The reversal: revision 1 with the refund's amount, or revision 2 with 0 once it failed or
        was cancelled. A refund above its charge reverses the whole charge.

    Raises:
        CurrencyMismatch: the refund is in another currency than its charge.
        Unresolved: id_malformed, amount_malformed, currency_malformed.
    """
    refund_id = id_of(refund)
    status = refund.get("status")
    if failed or status in ("failed", "canceled"):
        reason = "refund canceled" if status == "canceled" else "refund failed"
        return make_reversal(basis, refund_id, 2, 0, reason=reason)
    amount = minor(refund, "amount")
    if currency(refund) != basis.charge_currency:
        raise CurrencyMismatch(refund_id)
    return make_reversal(basis, refund_id, 1, basis.share(amount), reason="refund")


def make_reversal(
    basis: Basis,
    caused_by: str,
    revision: int,
    reversed_minor: int,
    *,
    reason: str,
    notice: Notice | None = None,
) -> Reversal:
    """Makes a reversal of the purchase of `basis`; the arguments are the fields of `Reversal`."""
    return Reversal(
        basis.paid_by,
        caused_by,
        revision,
        reversed_minor,
        basis.paid_minor,
        basis.currency,
        reason,
        notice,
    )


def paid_amount(obj: Object, field: str) -> tuple[int, str]:
    """Reads an amount above zero and its currency."""
    paid = minor(obj, field)
    if not paid:
        raise Unresolved("amount_malformed", f"The {field} of {id_of(obj)} is 0.")
    return paid, currency(obj)

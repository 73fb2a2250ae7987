"""Takes back the credits of money that refunds and disputes took back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Protocol, get_args

from stripe_bridge import reversals
from stripe_bridge.deciding import decide
from stripe_bridge.fields import id_of, whole_list
from stripe_bridge.model import Nothing, Outcome, Reversal, Settled

if TYPE_CHECKING:
    from stripe_bridge.credit_api import CreditWrites
    from stripe_bridge.fields import Object
    from stripe_bridge.payments import Intent, Invoice, Payments
    from stripe_bridge.purchases import Purchases
    from stripe_bridge.stripe_api import StripeReads

_GRAVEST_FIRST = get_args(Outcome)


class _Rule(Protocol):
    def __call__(self, obj: Object, /, *, charge: Object, paid_by: str) -> Reversal | Nothing: ...


class MoneyBack:
    """Reverses the purchases of refunded and disputed charges.

    Every method raises as `Settler` does.
    """

    def __init__(
        self, stripe: StripeReads, payments: Payments, writes: CreditWrites, purchases: Purchases
    ) -> None:
        """Reverses through `writes`, and first credits through `purchases` what nobody has."""
        self._stripe = stripe
        self._payments = payments
        self._writes = writes
        self._purchases = purchases

    async def refund(self, obj: Object, *, failed: bool = False) -> Settled:
        """Takes back what a refund holds; `failed` says that it failed, whatever its status."""
        charge = await self._payments.charge_of(obj)
        return await self._reversed(obj, charge, partial(reversals.of_refund, failed=failed))

    async def dispute(self, obj: Object) -> Settled:
        """Takes back what a dispute holds."""
        charge = await self._payments.charge_of(obj)
        return await self._reversed(obj, charge, reversals.of_dispute)

    async def charge(self, obj: Object) -> Settled:
        """Takes back what every refund of a charge holds."""
        refunds = whole_list(obj.get("refunds"))
        if refunds is None:
            refunds = [refund async for refund in self._stripe.refunds(charge=id_of(obj))]
        settled = [await self._reversed(each, obj, reversals.of_refund) for each in refunds]
        if not settled:
            return Settled("nothing", "no_refunds")
        gravest = min(settled, key=lambda each: _GRAVEST_FIRST.index(each.outcome))
        refs = dict.fromkeys(ref for each in settled for ref in each.refs)
        alerts = any(each.alerts for each in settled)
        return Settled(gravest.outcome, gravest.reason, tuple(refs), alerts)

    async def _reversed(self, obj: Object, charge: Object | None, rule: _Rule) -> Settled:
        """Reverses the purchase of a charge, and makes that first where nobody has."""
        if charge is None:
            return Settled("nothing", "not_ours")
        tried: list[Intent | Invoice] = []
        async for each in self._payments.paid_by(charge):
            if settled := await self._reverse(obj, charge, rule, each.id):
                return settled
            tried.append(each)
        grant = await self._purchases.behind(tried)
        bought = await self._purchases.credit(grant)
        if isinstance(grant, Nothing) or bought.outcome == "nothing":
            return bought
        # Where nothing may be written, the purchase is still missing, and all that there is to say.
        return await self._reverse(obj, charge, rule, grant.paid_by) or bought

    async def _reverse(
        self, obj: Object, charge: Object, rule: _Rule, paid_by: str
    ) -> Settled | None:
        """Posts what an object takes back; None where no purchase was made for its payment."""

        def decided(obj: Object, _: list[Object] | None) -> Reversal | Nothing:
            return rule(obj, charge=charge, paid_by=paid_by)

        reversal = await decide(self._stripe, decided, obj)
        if isinstance(reversal, Nothing):
            return Settled("nothing", reversal.reason)
        return await self._writes.reverse(reversal)

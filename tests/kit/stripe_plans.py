"""The lives of subscriptions at the fake: changes of plan, months, refunds, and their credits.

The expected credits follow the words of the contract and not the bridge's rules: each line that
bills a share of a month gives that share of the credits, less the share given back and the share of
the money that was refunded.
"""

from dataclasses import dataclass, field
from fractions import Fraction

from kit.stripe_fakes import FakeStripe


@dataclass(frozen=True)
class Plan:
    """The price and the credits of a month of a plan."""

    price: str
    amount: int
    credits: int


@dataclass
class Billed:
    """A line that bills a share of a month, in percent, and the share given back later."""

    plan: Plan
    left: int
    given_back: int = 0

    @property
    def credits(self) -> Fraction:
        return Fraction(self.plan.credits * self.left, 100)

    @property
    def credits_kept(self) -> Fraction:
        return Fraction(self.plan.credits * (self.left - self.given_back), 100)


@dataclass
class Invoice:
    """The lines of an invoice, its total, the amount paid, and the amount refunded."""

    id: str
    lines: list[Billed]
    total: int
    paid: int
    refunded: int = 0

    @property
    def credits_left(self) -> Fraction:
        billed = sum(line.credits for line in self.lines)
        kept = sum(line.credits_kept for line in self.lines)
        gone = billed * self.refunded / self.total if self.refunded else Fraction(0)
        return max(kept - gone, Fraction(0))


@dataclass(frozen=True)
class Change:
    """The new plan (its place), the rest of the month (percent), and the time of billing."""

    plan: int
    left: int
    bill: str = "now"


@dataclass(frozen=True)
class PlanLife:
    """A subscription: months of changes, and refunds of some invoices.

    Attributes:
        first: the plan that it begins with, by its place.
        months: the changes within each month, in the order of time.
        refunds: (the invoice, percent of its money), after all changes.
    """

    first: int
    months: tuple[tuple[Change, ...], ...]
    refunds: tuple[tuple[int, int], ...] = ()

    async def play(self, fake: FakeStripe, user: object, plans: list[Plan]) -> list[Invoice]:
        """Plays it at the fake; returns its invoices as they are at the end."""
        return await _Played(fake, user, plans).play(self)


@dataclass
class _Played:
    fake: FakeStripe
    user: object
    plans: list[Plan]
    subscription: str = ""
    invoices: list[Invoice] = field(default_factory=list)
    pending: list[Billed] = field(default_factory=list)

    async def play(self, life: PlanLife) -> list[Invoice]:
        plan = self.plans[life.first]
        # Not the subscription: a month of a plan without credits would then wait for a person.
        customer = await self.fake.do("customer", metadata={"credit_user_id": str(self.user)})
        begun = await self.fake.do("subscribe", price=plan.price, customer=customer["id"])
        self.subscription = begun["lines"]["data"][0]["subscription"]
        self.billed(begun, Billed(plan, 100))
        for place, changes in enumerate(life.months):
            if place:
                plan = await self.month(plan)
            for change in changes:
                plan = await self.change(change)
        await self.month(plan)
        for which, percent in life.refunds:
            await self.refund(self.invoices[which % len(self.invoices)], percent)
        return self.invoices

    def billed(self, shown: dict, line: Billed) -> None:
        self.invoices.append(
            Invoice(shown["id"], [*self.pending, line], shown["total"], shown["amount_paid"])
        )
        self.pending, self.latest = [], line

    async def month(self, plan: Plan) -> Plan:
        shown = await self.fake.do("renew", subscription=self.subscription)
        self.billed(shown, Billed(plan, 100))
        return plan

    async def change(self, change: Change) -> Plan:
        plan = self.plans[change.plan]
        self.latest.given_back = change.left
        shown = await self.fake.do(
            "change_plan",
            subscription=self.subscription,
            price=plan.price,
            left=change.left,
            bill=change.bill,
        )
        line = Billed(plan, change.left)
        if shown is None:
            self.pending.append(line)
            self.latest = line
        else:
            self.billed(shown, line)
        return plan

    async def refund(self, invoice: Invoice, percent: int) -> None:
        left = invoice.paid - invoice.refunded
        amount = left * percent // 100
        if amount:
            await self.fake.refund(invoice.id, amount)
            invoice.refunded += amount

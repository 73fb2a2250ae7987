"""The ledger that Stripe's payments must produce: sums over payments, without any event.

Written from the words of the contract and not from the bridge's rules, so that the two can
disagree.
"""

from dataclasses import dataclass, field


@dataclass
class Payment:
    """One payment as Stripe now has it.

    Attributes:
        ref: its reference in the ledger.
        user: the user who paid for credits; None: it is for something else.
        credits: the credits that it buys.
        amount: in minor units, like all money here.
        paid: whether the money has come.
        refunds: the money that each refund holds, by its id.
        disputes: the money that each dispute holds, by its id.
    """

    ref: str
    user: object
    credits: int
    amount: int
    paid: bool
    refunds: dict[str, int] = field(default_factory=dict)
    disputes: dict[str, int] = field(default_factory=dict)

    @property
    def refundable(self) -> int:
        """The money that no refund holds yet."""
        return self.amount - sum(self.refunds.values()) if self.paid else 0

    @property
    def credits_left(self) -> int:
        """The user's credits from it: those bought, less the share of the money that went back."""
        if not self.paid or self.user is None:
            return 0
        gone = min(self.amount, sum(self.refunds.values()) + sum(self.disputes.values()))
        return self.credits - (self.credits * gone // self.amount if gone else 0)


def balance(user: object, payments: list[Payment]) -> int:
    """The credits of a user who bought and never spent."""
    return sum(each.credits_left for each in payments if each.user == user)

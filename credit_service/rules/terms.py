"""The terms: the part of the configuration that the rules use."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from credit_service.rules.grant_values import Allowance
    from credit_service.rules.model import Account
    from credit_service.rules.pricing import PriceList


@dataclass(frozen=True, slots=True)
class Terms:
    """The configuration that the rules use.

    Attributes:
        prices: the price list.
        min_balance: the floor of an account without one of its own, in credits.
        open_holds: how many holds an account may have open.
        refund_grace: how long credits live that come back to a grant whose time has passed.
        allowance: the free credits of an account without an allowance of its own; None: none.
        alert_below: the threshold for alerts of an account without one of its own, in credits;
            None: none.
    """

    prices: PriceList
    min_balance: int
    open_holds: int = 100
    refund_grace: timedelta = timedelta(days=7)
    allowance: Allowance | None = None
    alert_below: int | None = None

    def floor(self, account: Account) -> int:
        """The credits that a spend or hold must leave available."""
        own = account.policy.min_balance
        return self.min_balance if own is None else own

    def threshold(self, account: Account) -> int | None:
        """The available credits below which an account is low; None: it never is."""
        own = account.policy.alert_below
        return self.alert_below if own is None else own

    def shortfall(self, account: Account, cost: int) -> int:
        """The credits that the account lacks to pay `cost` and keep the floor; 0 if none."""
        return max(0, cost + self.floor(account) - account.available)

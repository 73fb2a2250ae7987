"""What spends and holds have in common: their cost, and whether the account may pay it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from credit_service.errors import (
    AccountFrozen,
    InsufficientCredits,
    PriceChanged,
    SpendLimitExceeded,
)
from credit_service.rules.batch_state import spent_in_windows, windows

if TYPE_CHECKING:
    from datetime import datetime

    from credit_service.rules.batch_state import Terms
    from credit_service.rules.commands import Charge
    from credit_service.rules.model import Account


class Priced(TypedDict):
    """The part of an entry or hold that tells how its amount came about."""

    amount: int
    operation: str | None
    quantity: int | None
    unit_cost: int | None
    price_version: str | None


def price(charge: Charge, terms: Terms) -> Priced:
    """Prices a charge, or takes the amount it names.

    Raises:
        InvalidRequest: the operation is not on the price list.
        PriceChanged: the cost is not the expected one.
    """
    if charge.operation is None or charge.quantity is None:
        amount, unit_cost, version = charge.amount or 0, None, None
    else:
        line = terms.prices.price(charge.operation, charge.quantity, "charge")
        amount, unit_cost, version = line.cost, line.unit_cost, terms.prices.version
    if charge.expected_cost is not None and charge.expected_cost != amount:
        raise PriceChanged(amount, terms.prices.version)
    return {
        "amount": amount,
        "operation": charge.operation,
        "quantity": charge.quantity,
        "unit_cost": unit_cost,
        "price_version": version,
    }


def require_not_frozen(account: Account) -> None:
    """Lets an account spend unless it is frozen.

    Raises:
        AccountFrozen: it is.
    """
    if account.frozen:
        raise AccountFrozen


def require_within_limits(account: Account, cost: int, now: datetime) -> None:
    """Lets an account spend `cost` more credits in the present minute, hour and day.

    Raises:
        SpendLimitExceeded: that is more than one of them allows; of several it is the longest, for
            until that ends no trial succeeds.
    """
    limits = account.limit_per_minute, account.limit_per_hour, account.limit_per_day
    if limits == (None, None, None):
        return
    spent = spent_in_windows(account, now)
    asked = zip(limits, spent, windows(now), strict=True)
    for limit, used, (name, start, length) in reversed(list(asked)):
        if limit is not None and used + cost > limit:
            left_ms = int((start + length - now).total_seconds() * 1000) + 1
            raise SpendLimitExceeded(name, limit, used, left_ms)


def require_affordable(account: Account, cost: int, terms: Terms) -> None:
    """Lets an account pay `cost` credits if that keeps its floor.

    Raises:
        InsufficientCredits: it does not.
    """
    shortfall = terms.shortfall(account, cost)
    if shortfall > 0:
        raise InsufficientCredits(
            required=cost, available=account.available, held=account.held, shortfall=shortfall
        )

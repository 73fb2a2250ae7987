"""The common rules of spends and holds: their cost, and whether the account may pay it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from credit_service.errors import (
    AccountFrozen,
    InsufficientCredits,
    PriceChanged,
)

if TYPE_CHECKING:
    from credit_service.rules.commands import Charge
    from credit_service.rules.model import Account
    from credit_service.rules.terms import Terms


class Priced(TypedDict):
    """The part of an entry or hold that explains its amount."""

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
    """Checks that an account is not frozen.

    Raises:
        AccountFrozen: it is.
    """
    if account.policy.frozen:
        raise AccountFrozen


def require_affordable(account: Account, cost: int, terms: Terms) -> None:
    """Checks that an account can pay `cost` credits and keep its floor.

    Raises:
        InsufficientCredits: it does not.
    """
    shortfall = terms.shortfall(account, cost)
    if shortfall > 0:
        raise InsufficientCredits(
            required=cost, available=account.available, held=account.held, shortfall=shortfall
        )

"""The price list: the prices of operations, and the cost of a piece of work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

from credit_service.errors import InvalidRequest
from credit_service.fields import AMOUNT_MAX


@dataclass(frozen=True, slots=True)
class Price:
    """What one `unit` of an operation costs, in credits."""

    unit_cost: int
    unit: str


@dataclass(frozen=True, slots=True)
class Line:
    """One priced item: `cost` = quantity x unit_cost, in credits."""

    operation: str
    quantity: int
    unit_cost: int
    cost: int


@dataclass(frozen=True, slots=True)
class PriceList:
    """The prices of all operations. `version` changes when any of them does."""

    prices: dict[str, Price]
    version: str = field(init=False)

    def __post_init__(self) -> None:
        listed = {name: [price.unit_cost, price.unit] for name, price in self.prices.items()}
        digest = hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "version", digest[:12])

    def price(self, operation: str, quantity: int, field: str) -> Line:
        """Prices `quantity` units of an operation.

        Args:
            operation: a name of the list.
            quantity: units, 1 to 10^12.
            field: the request's field that named the charge, for the error.

        Raises:
            InvalidRequest: the operation is not on the list, or the cost is above 10^12.
        """
        price = self.prices.get(operation)
        if price is None:
            known = ", ".join(sorted(self.prices))
            raise InvalidRequest(
                f"{field}.operation", f"{operation!r} is not on the price list ({known})."
            )
        cost = price.unit_cost * quantity
        if cost > AMOUNT_MAX:
            raise InvalidRequest(
                f"{field}.quantity", f"would cost {cost} credits; the maximum is {AMOUNT_MAX}."
            )
        return Line(operation, quantity, price.unit_cost, cost)

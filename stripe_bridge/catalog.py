"""The catalogue of credits on sale, read from a TOML file, and the policy that grants follow.

    [[pack]]                          # a page can show it, the checkout can sell it
    id = "starter"
    name = "100 credits"
    credits = 100
    price = "price_1PgafmB7WZ01zgkW"  # or lookup_key = "credits_100"
    amount_minor = 900                # what the page shows; Stripe's price is what is paid
    currency = "eur"
    valid_for = "365d"                # how long its credits live; without it for ever

    [[price]]                         # any other price that gives credits, a monthly one too
    lookup_key = "studio_monthly"
    credits = 500                     # per unit
    expires = "period"                # its credits lapse at the end of the month that they are for
    carry_over = 1                    # or so many months later,
    cap = 1000                        # but no more than so many of them, per unit

A line item whose price is not listed gives no credits.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ValidationError,
    model_validator,
)

from credit_service.runtime.environment import ConfigurationError
from stripe_bridge.durations import duration_or_none

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic_core import ErrorDetails

CREDITS_MAX = 10**12

# The maximum that the credit service accepts.
VALID_FOR_MAX = timedelta(days=3653)
CARRY_OVER_MAX = 120  # periods: the months of ten years


class Validity(NamedTuple):
    """How long the credits of a price live; the default: for ever.

    Attributes:
        valid_for: how long after their purchase they lapse.
        by_period: whether they lapse at the end of the period of the plan.
        carry_over: by how many periods later than that.
        cap: how many credits of earlier periods, per unit, stay when a period begins; None: all.
    """

    valid_for: timedelta | None = None
    by_period: bool = False
    carry_over: int = 0
    cap: int | None = None


class Listed(NamedTuple):
    """The credits that one unit of a listed price gives, and how long they live."""

    credits: int
    validity: Validity = Validity()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """A credit pack on sale.

    Attributes:
        id: names it in our own calls.
        name: for people.
        credits: how many one of it gives.
        price: the id of its Stripe price; None when `lookup_key` names it.
        lookup_key: of its Stripe price; None when `price` names it.
        amount_minor: the price to display, in minor units; credits never depend on it.
        currency: of that, in lower case.
        valid_for: how long its credits live after the purchase; None: for ever.
    """

    id: str
    name: str
    credits: int
    price: str | None
    lookup_key: str | None
    amount_minor: int
    currency: str
    valid_for: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Catalog:
    """The packs, and the credits of one unit of each listed Stripe price (also of a pack's price).

    Attributes:
        packs: in the order of the file.
        by_price: by the id of the price.
        by_lookup_key: by the price's lookup key, which can move from a price to its successor.
    """

    packs: tuple[Pack, ...] = ()
    by_price: Mapping[str, Listed] = field(default_factory=dict)
    by_lookup_key: Mapping[str, Listed] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """Whether no price gives credits."""
        return not self.by_price and not self.by_lookup_key

    @classmethod
    def read(cls, path: Path) -> Catalog:
        """Reads a catalogue file.

        Raises:
            ConfigurationError: it cannot be read or used; one line names the file and every fault.
        """
        try:
            return cls.parse(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"{path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{path}: is not UTF-8") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}: {error}") from None

    @classmethod
    def parse(cls, text: str) -> Catalog:
        """Reads a catalogue from the text of its file.

        Raises:
            ConfigurationError: it cannot be used; one line names every fault.
        """
        try:
            listed = _File.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"is not TOML: {error}") from error
        except ValidationError as error:
            raise ConfigurationError("; ".join(map(_problem, error.errors()))) from None
        priced: list[_Priced] = [*listed.pack, *listed.price]
        return cls(
            tuple(Pack(**pack.model_dump()) for pack in listed.pack),
            {entry.price: entry.listed() for entry in priced if entry.price is not None},
            {entry.lookup_key: entry.listed() for entry in priced if entry.lookup_key is not None},
        )

    def pack(self, id: str) -> Pack | None:  # noqa: A002  # the file's own word
        """Finds a pack; None if none has that id."""
        return next((pack for pack in self.packs if pack.id == id), None)

    def find(self, price: object) -> Listed | None:
        """Finds the credits of one unit of a Stripe price; None: the price is not listed.

        Args:
            price: its id, or the price (or, before 2020, plan) object. The id decides before the
                lookup key.
        """
        known: dict[str, object] = price if isinstance(price, dict) else {"id": price}
        price_id, lookup_key = known.get("id"), known.get("lookup_key")
        if isinstance(price_id, str) and price_id in self.by_price:
            return self.by_price[price_id]
        return self.by_lookup_key.get(lookup_key) if isinstance(lookup_key, str) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Decides which payments give credits, as far as Stripe's objects do not.

    Attributes:
        catalog: the credits of prices.
        allow_client_reference_id: whether that field names the user of a session without our
            metadata. On a payment link the buyer chooses its value, and so can pay for someone
            else.
        allow_free_orders: whether orders and invoices that cost nothing, because of a promotion
            code or a trial, give credits too.
        max_credits_per_purchase: a larger purchase waits for a person.
        allowed_currencies: a purchase in another one waits for a person; empty allows all.
        invoice_billing_reasons: only these invoices give credits. `manual` must not be among them,
            because a checkout payment with an invoice sends one too, and would be credited twice.
    """

    catalog: Catalog
    allow_client_reference_id: bool = False
    allow_free_orders: bool = False
    max_credits_per_purchase: int = CREDITS_MAX
    allowed_currencies: frozenset[str] = frozenset()
    invoice_billing_reasons: frozenset[str] = frozenset(
        {"subscription_create", "subscription_cycle", "subscription_update"}
    )


def _matching(pattern: str, meaning: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {meaning}")
        return text

    return AfterValidator(check)


def _amount(value: int) -> int:
    if not 1 <= value <= CREDITS_MAX:
        raise ValueError(f"must be 1 to {CREDITS_MAX}")
    return value


def _duration(text: object) -> timedelta:
    duration = duration_or_none(text)
    if duration is None or not timedelta(hours=1) <= duration <= VALID_FOR_MAX:
        most = VALID_FOR_MAX.days
        raise ValueError(f"must be a time such as 365d, 12w or 48h, from 1h to {most}d")
    return duration


def _carry_over(value: int) -> int:
    if not 0 <= value <= CARRY_OVER_MAX:
        raise ValueError(f"must be 0 to {CARRY_OVER_MAX} periods")
    return value


def _cap(value: int) -> int:
    if not 0 <= value <= CREDITS_MAX:
        raise ValueError(f"must be 0 to {CREDITS_MAX}")
    return value


_Duration = Annotated[timedelta, BeforeValidator(_duration)]
_Amount = Annotated[int, AfterValidator(_amount)]
_StripeName = Annotated[
    str, _matching("[!-~]( ?[!-~]){0,199}", "1 to 200 ASCII characters without space around")
]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _Priced(_Table):
    credits: _Amount
    price: _StripeName | None = None
    lookup_key: _StripeName | None = None
    valid_for: _Duration | None = None

    def listed(self) -> Listed:
        return Listed(self.credits, Validity(self.valid_for))

    @model_validator(mode="after")
    def _one_price(self) -> Self:
        if (self.price is None) == (self.lookup_key is None):
            raise ValueError("must have either price or lookup_key")
        return self


class _Pack(_Priced):
    id: Annotated[str, _matching("[a-z0-9][a-z0-9_-]{0,63}", "a short word of a-z, 0-9, _ and -")]
    name: Annotated[str, _matching(r"\S(.{0,98}\S)?", "1 to 100 characters in one line")]
    amount_minor: _Amount
    currency: Annotated[str, _matching("[a-z]{3}", "a three-letter code in lower case such as eur")]


class _Price(_Priced):
    expires: (
        Annotated[str, _matching("period", "period, the only expiry that has a name")] | None
    ) = None
    carry_over: Annotated[int, AfterValidator(_carry_over)] = 0
    cap: Annotated[int, AfterValidator(_cap)] | None = None

    def listed(self) -> Listed:
        by_period = self.expires is not None
        return Listed(self.credits, Validity(self.valid_for, by_period, self.carry_over, self.cap))

    @model_validator(mode="after")
    def _one_expiry(self) -> Self:
        if self.expires and self.valid_for:
            raise ValueError("must have either expires or valid_for")
        if self.carry_over and not self.expires:
            raise ValueError('carry_over needs expires = "period"')
        if self.cap is not None and not self.carry_over:
            raise ValueError("cap needs a carry_over of 1 or more")
        return self


class _File(_Table):
    pack: list[_Pack] = []
    price: list[_Price] = []

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        if not self.pack and not self.price:
            raise ValueError("must hold [[pack]] or [[price]] tables")
        priced: list[_Priced] = [*self.pack, *self.price]
        for what, names in (
            ("pack", [pack.id for pack in self.pack]),
            ("price", [entry.price for entry in priced]),
            ("lookup_key", [entry.lookup_key for entry in priced]),
        ):
            repeated = [name for name, count in Counter(names).items() if name and count > 1]
            if repeated:
                raise ValueError(f"lists {what} {repeated[0]} twice")
        return self


def _problem(problem: ErrorDetails) -> str:
    text = problem["msg"].removeprefix("Value error, ")
    loc: list[Any] = list(problem["loc"])
    if len(loc) > 1 and isinstance(loc[1], int):
        loc[:2] = [f"{loc[0]} {loc[1] + 1}"]
    return ": ".join([*map(str, loc), text])

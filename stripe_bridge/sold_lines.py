"""The lines that a session or an invoice sold, and how long their credits live. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from stripe_bridge.catalog import CREDITS_MAX
from stripe_bridge.fields import id_of
from stripe_bridge.model import FOREVER, Life, Rollover, Unresolved
from stripe_bridge.plan_periods import interval_of, later

if TYPE_CHECKING:
    from stripe_bridge.catalog import Validity
    from stripe_bridge.fields import Object
    from stripe_bridge.plan_periods import Period


class Line(NamedTuple):
    """A line of a session or an invoice, with price and quantity as Stripe shows them.

    Attributes:
        price: its id, or the price object.
        quantity: the number of units.
        is_free: it cost nothing, because of a trial or a full discount.
        share: which part of a plan's period it is for; 1 for everything else.
        period: the time that it is for; None: it shows none.
        begins_period: it is for a whole period of a plan.
    """

    price: object
    quantity: object
    is_free: bool
    share: Fraction = Fraction(1)
    period: Period | None = None
    begins_period: bool = False


def life_of(paid: list[tuple[Line, Validity]], source: Object, series: str | None) -> Life:
    """Says how long the credits of lines that are purchased together live.

    Args:
        paid: the lines, whose quantities are known, with how long their credits live; at least one.
            The one whose credits live longest decides.
        source: their object.
        series: names the purchases of the plan; None: there is no plan.

    Raises:
        Unresolved: period_unknown: credits should live for a period, and the line is for none.
    """
    if any(not each.by_period and each.valid_for is None for _, each in paid):
        return FOREVER
    spans = [each.valid_for for _, each in paid if each.valid_for is not None]
    ends = [_end(line, each, source) for line, each in paid if each.by_period]
    if not ends:
        return Life(valid_for=max(spans))
    created = source.get("created")
    if spans and type(created) is int:
        ends.append(_time(created) + max(spans))
    return Life(expire_time=max(ends), rollover=None if spans else _rollover(paid, series))


def _end(line: Line, validity: Validity, source: Object) -> datetime:
    if line.period is None:
        raise _unknown(source)
    if not validity.carry_over:
        return _time(line.period.end)
    interval = interval_of(line.price)
    if interval is None:
        raise _unknown(source)
    return _time(later(line.period, interval, validity.carry_over))


def _rollover(paid: list[tuple[Line, Validity]], series: str | None) -> Rollover | None:
    """Says which credits of earlier periods lapse: those above the cap of the periods that begin.

    The rest of a period belongs to the series too, but makes no credits lapse.
    """
    capped = [(line, each.cap) for line, each in paid if each.carry_over]
    if series is None or not capped or any(cap is None for _, cap in capped):
        return None
    begun = [
        (cap or 0) * line.quantity
        for line, cap in capped
        if line.begins_period and type(line.quantity) is int
    ]
    return Rollover(series, min(sum(begun), CREDITS_MAX) if begun else CREDITS_MAX)


def _time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _unknown(source: Object) -> Unresolved:
    return Unresolved(
        "period_unknown", f"{id_of(source)} does not show when the period of its plan ends."
    )

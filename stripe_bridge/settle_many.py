"""Settles many objects, a few at once; the failure of one does not stop the others."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from credit_service.errors import CreditError, OutcomeUnknown, Unavailable
from stripe_bridge import failure_log
from stripe_bridge.model import Unresolved
from stripe_bridge.stripe_api import StripeAway, StripeRefuses

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from stripe_bridge.fields import Object
    from stripe_bridge.model import Settled

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that could not be settled.

    Attributes:
        id: of Stripe's object, or the name of a list that could not be read to its end.
        reason: a snake_case word.
        detail: a sentence for the operator.
        passing: a later try may succeed without any change.
        away: Stripe or the credit service gives no answer, so other objects fail as well.
    """

    id: str
    reason: str
    detail: str
    passing: bool = False
    away: bool = False


async def settle_many(
    listed: AsyncIterator[Object],
    settle: Callable[[Object], Awaitable[Settled]],
    *,
    retry_seconds: Sequence[float] = (),
) -> AsyncIterator[list[tuple[Object, Settled | Finding]]]:
    """Settles the objects of a list, and yields them in small groups with the result of each.

    Args:
        listed: the objects.
        settle: settles one of them.
        retry_seconds: the pause before each further try after a failure that may pass. After a
            group of which nothing was settled, there are no further tries until something is
            settled again.

    Raises:
        StripeAway, StripeRefuses: the list cannot be read.
    """
    group: list[Object] = []
    pauses = retry_seconds
    async for obj in listed:
        group.append(obj)
        if len(group) == _AT_ONCE:
            settled = await _settle(group, settle, pauses)
            yield settled
            # Otherwise a long list would take days while the credit service or Stripe is away.
            pauses = () if all(_may_pass(found) for _, found in settled) else retry_seconds
            group = []
    if group:
        yield await _settle(group, settle, pauses)


async def _settle(
    group: list[Object],
    settle: Callable[[Object], Awaitable[Settled]],
    retry_seconds: Sequence[float],
) -> list[tuple[Object, Settled | Finding]]:
    found = await asyncio.gather(*(_patiently(obj, settle, retry_seconds) for obj in group))
    return list(zip(group, found, strict=True))


async def _patiently(
    obj: Object, settle: Callable[[Object], Awaitable[Settled]], retry_seconds: Sequence[float]
) -> Settled | Finding:
    found = await _once(obj, settle)
    for pause in retry_seconds:
        if not _may_pass(found):
            break
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # spreads load, hides nothing
        found = await _once(obj, settle)
    return found


def _may_pass(found: Settled | Finding) -> bool:
    return isinstance(found, Finding) and found.passing


async def _once(obj: Object, settle: Callable[[Object], Awaitable[Settled]]) -> Settled | Finding:
    name = str(obj.get("id"))
    try:
        return await settle(obj)
    except Unresolved as unresolved:
        return Finding(name, unresolved.reason, unresolved.detail)
    except StripeAway as error:
        return Finding(name, "stripe_away", str(error), passing=True, away=True)
    except StripeRefuses as refuses:
        return Finding(name, "stripe_refuses", str(refuses), passing=True)
    except CreditError as error:
        away = isinstance(error, (Unavailable, OutcomeUnknown))
        return Finding(name, error.reason.lower(), str(error), passing=True, away=away)
    except Exception as error:
        # An unexpected error with one object must not hide the payments after it.
        failure_log.log_failure("settling_failed", error, object=name)
        return Finding(name, "failed", "An unexpected failure, which is logged.")

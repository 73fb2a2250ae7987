"""The calls of the load that `CreditClient` makes, each with coalescing and without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmark.calls import DEADLINE_SECONDS, Users, key
from credit_service.client import CreditClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from benchmark.calls import Call

_TOGETHER = ", coalesced"


def _spend(client: CreditClient, users: Users) -> Call:
    def spend() -> Awaitable[object]:
        return client.spend_credits(users.draw(), amount=1, idempotency_key=key())

    return spend


def _hold_and_capture(client: CreditClient, users: Users) -> Call:
    async def work() -> None:
        user = users.draw()
        held = await client.hold_credits(user, amount=1, idempotency_key=key())
        await client.capture_hold(user, held.hold.id, idempotency_key=key())

    return work


_CALLS: Mapping[str, Callable[[CreditClient, Users], Call]] = {
    "client spend": _spend,
    "client hold and capture": _hold_and_capture,
}

NAMES = frozenset(name + how for name in _CALLS for how in ("", _TOGETHER))


def coalesced(name: str) -> str:
    """Names the same call made by a client that coalesces."""
    return name + _TOGETHER


class Clients:
    """The clients of this process: for each server one that coalesces and one that does not."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, bool], CreditClient] = {}

    def call(self, target: str, name: str, users: Users) -> Call:
        """Returns a function that makes one call at a time.

        Args:
            target: host:port of the server.
            name: of `NAMES`.
            users: to draw from.
        """
        plain = name.removesuffix(_TOGETHER)
        place = (target, name != plain)
        if place not in self._made:
            self._made[place] = CreditClient(
                target, coalesce=place[1], deadline_seconds=DEADLINE_SECONDS
            )
        return _CALLS[plain](self._made[place], users)

    async def close(self) -> None:
        """Closes them."""
        for client in self._made.values():
            await client.close()

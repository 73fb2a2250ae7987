"""A process whose callers spend, hold and capture through one client, until its input ends.

It prints one line with each request before the call, and one with the result after it.
"""

import asyncio
import itertools
import random
import sys

from credit_service.client import CreditClient
from credit_service.errors import CreditError

CALLERS = 30

# Shorter than a service takes to start, so that some calls get no answer.
DEADLINE_SECONDS = 1.0


class Callers:
    """Callers of one client, each with one call in flight."""

    def __init__(self, client: CreditClient, name: str, users: list[str]) -> None:
        self._client, self._users = client, users
        self._keys = (f"{name}:{number}" for number in itertools.count())

    async def call(self, over: asyncio.Event) -> None:
        """Makes one call after another until `over` is set."""
        while not over.is_set():
            user = random.choice(self._users)
            if random.random() < 0.6:
                await self._answered("spend", user, {"amount": 1})
                continue
            held = await self._answered("hold", user, {"amount": 2})
            if held is not None:
                await self._answered("capture", user, {"hold_id": held.hold.id})

    async def _answered(self, kind: str, user: str, fields: dict[str, object]) -> object:
        client, key = self._client, next(self._keys)
        method = {
            "spend": client.spend_credits,
            "hold": client.hold_credits,
            "capture": client.capture_hold,
        }[kind]
        asked = " ".join(f"{name}={value}" for name, value in fields.items())
        print("asks", key, kind, user, asked, flush=True)
        try:
            response = await method(user, idempotency_key=key, **fields)
        except CreditError as error:
            print("failed", key, error.reason, flush=True)
            return None
        print("done", key, response.transaction.id, flush=True)
        return response


async def main() -> None:
    """Runs the callers."""
    target, name, *users = sys.argv[1:]
    over = asyncio.Event()
    async with CreditClient(target, coalesce=True, deadline_seconds=DEADLINE_SECONDS) as client:
        callers = Callers(client, name, users)
        asyncio.get_running_loop().add_reader(sys.stdin, over.set)
        await asyncio.gather(*(callers.call(over) for _ in range(CALLERS)))


if __name__ == "__main__":
    asyncio.run(main())

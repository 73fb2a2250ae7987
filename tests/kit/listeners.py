"""Watchers of an account, which keep the states that they receive."""

import asyncio
import re
from contextlib import asynccontextmanager

from kit.waiting import eventually

from credit_service.ledger import store

POLL = "^" + re.escape(store.SQL["changed_accounts"].splitlines()[0])


class Listener:
    """Reads a stream and keeps the states that it receives."""

    def __init__(self, stream):
        self.received = []
        self._task = asyncio.create_task(self._listen(stream))

    async def _listen(self, stream):
        async for credit in stream:
            self.received.append(credit)

    @property
    def seqs(self):
        return [credit.seq for credit in self.received]

    @property
    def last(self):
        return self.received[-1] if self.received else None

    async def hears(self, claim):
        """Waits until the claim holds for the newest state."""
        await eventually(lambda: self.received and claim(self.received[-1]))

    async def stop(self):
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def listening(client, user_id, **options):
    listener = Listener(client.watch_user_credit(user_id, **options))
    try:
        yield listener
    finally:
        await listener.stop()

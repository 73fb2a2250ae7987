"""Helpers for the tests of the bridge's HTTP: requests in bytes, answers, a locked account."""

import asyncio
import json

from kit.bridges import event_of
from kit.waiting import patience


def status_and_outcome(response):
    """The status of an answer, and its outcome or reason."""
    said = response.json()
    return response.status_code, said.get("error", {}).get("reason") or said.get("outcome")


async def balance(client, user_id):
    return (await client.get_user_credit(user_id)).balance


class Raw:
    """A connection that sends bytes that no HTTP library would send."""

    @classmethod
    async def to(cls, bridge, sent=b""):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", bridge.port)
        await self.send(sent)
        return self

    async def send(self, sent):
        self.writer.write(sent)
        await self.writer.drain()

    async def head(self):
        """Waits for the head of an answer; returns its status."""
        async with asyncio.timeout(patience(10)):
            lines = await self.reader.readuntil(b"\r\n\r\n")
        return int(lines.split()[1])

    async def end(self):
        """Waits until the other side closes; returns everything that it sent."""
        async with asyncio.timeout(patience(10)):
            sent = await self.reader.read()
        self.close()
        return sent

    def close(self):
        self.writer.transport.abort()


def head(length, *lines, path="/stripe/webhooks"):
    """The head of a request whose body is announced and still to come."""
    written = [f"POST {path} HTTP/1.1", "Host: a", f"Content-Length: {length}", *lines]
    return "\r\n".join([*written, "", ""]).encode()


BODY = json.dumps(event_of({"id": "cs_1"}, "checkout.session.async_payment_failed")).encode()


async def locked(database, user_id):
    """Locks the account, so that every write to it waits; returns the lock's connection."""
    await database.wait_longer_for_locks()
    holder = await database.connect()
    await holder.execute("BEGIN")
    await holder.execute("SELECT FROM user_credits WHERE user_id = $1 FOR UPDATE", user_id)
    return holder

"""A reader of the stream in a process of its own, which notes each batch, then stores its cursor.

It can be killed at any moment. Arguments: the service, the file of the cursor, the file of notes.
"""

import asyncio
import sys

import orjson

from credit_service.client import CreditClient, CursorFile


async def main(target: str, cursor_file: str, notes: str) -> None:
    """Reads until it is killed."""
    cursor = CursorFile(cursor_file)
    with open(notes, "ab") as file:  # noqa: ASYNC230, PTH123  # a reader does nothing else
        async with CreditClient(target) as client:
            print("reads", flush=True)
            async for batch in client.stream_transactions(cursor=cursor.load()):
                for item in batch.items:
                    entry = item.transaction
                    line = [entry.user_id, entry.seq, entry.idempotency_key, entry.balance_after]
                    file.write(orjson.dumps(line) + b"\n")
                file.flush()
                cursor.save(batch.cursor)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

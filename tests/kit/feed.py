"""Reading the feed as a reader does, page by page."""

from contextlib import asynccontextmanager

from kit.waiting import eventually

from credit_service.database.postgres import Address
from credit_service.ledger.feed import Feed
from credit_service.ledger.read_connections import ReadPool
from credit_service.rules.feed_values import BEGINNING
from credit_service.rules.model import Entry


@asynccontextmanager
async def reading(url):
    pool = ReadPool(Address(url), 2)
    await pool.open()
    try:
        yield Feed(pool)
    finally:
        await pool.close()


async def read(feed, after=BEGINNING, limit=1000, **filters):
    """Everything that can be read after a cursor, and the cursor to go on from."""
    items = []
    while True:
        page = await feed.page(after, limit, **filters)
        items += page.items
        after = page.place
        if page.caught_up:
            return items, after


def entries(items):
    return [(item.value.user_id, item.value.seq) for item in items if type(item.value) is Entry]


async def reads_so_many(feed, count, after=BEGINNING):
    """The `count` events after a cursor; waits, because transactions of other tests may be open."""
    found = []

    async def all_there():
        found[:], _ = await read(feed, after)
        return len(found) >= count

    await eventually(all_there)
    return found


async def all_readable(database):
    """Waits until readers can see every write, because transactions of other tests may be open."""

    async def is_so():
        [(readable,)] = await database.fetch(
            "SELECT coalesce(max(tx), 0) < (SELECT base FROM credit_feed_numbers)"
            " + pg_snapshot_xmin(pg_current_snapshot())::text::bigint FROM user_credits"
        )
        return readable

    await eventually(is_so)

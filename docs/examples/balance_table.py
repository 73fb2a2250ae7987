"""Keeps a table of all balances in SQLite, from the stream of all entries.

python docs/examples/balance_table.py balances.db

The table and the cursor change in one transaction, so a killed process continues where it was.
"""

import argparse
import sqlite3
import sys

from credit_service.client import BlockingCreditClient
from credit_service.errors import CreditError
from credit_service.v1 import credit_service_pb2 as pb

SCHEMA = """
    CREATE TABLE IF NOT EXISTS balances (
        user_id TEXT PRIMARY KEY, balance INTEGER, held INTEGER, seq INTEGER, changed_at TEXT
    );
    CREATE TABLE IF NOT EXISTS progress (
        id INTEGER PRIMARY KEY CHECK (id = 1), cursor TEXT NOT NULL, advanced INTEGER NOT NULL
    );
    INSERT OR IGNORE INTO progress VALUES (1, '', 0);
"""

# An entry says what the balance is after it. So a row is overwritten and never added to, and a
# batch that comes twice does no harm.
WRITE = "INSERT OR REPLACE INTO balances VALUES (?, ?, ?, ?, ?)"


def follow(client: BlockingCreditClient, table: sqlite3.Connection, *, once: bool) -> None:
    """Brings the table up to date and, unless `once`, keeps it up to date."""
    while True:
        (cursor,) = table.execute("SELECT cursor FROM progress").fetchone()
        for batch in client.stream_transactions(cursor=cursor):
            if not keep(table, batch):
                break
            if once and batch.caught_up:
                return


def keep(table: sqlite3.Connection, batch: pb.StreamTransactionsResponse) -> bool:
    """Writes a batch with its cursor; False: the table was emptied and must start over."""
    with table:
        for item in batch.items:
            if item.HasField("advanced") and is_new(table, item.advanced):
                # The database was restored: entries that this table has may be gone.
                table.execute("DELETE FROM balances")
                at = item.advanced.timestamp.ToMicroseconds()
                table.execute("UPDATE progress SET cursor = '', advanced = ?", (at,))
                return False
            if item.HasField("transaction"):
                entry = item.transaction
                written = entry.timestamp.ToJsonString()
                row = (entry.user_id, entry.balance_after, entry.held_after, entry.seq, written)
                table.execute(WRITE, row)
        table.execute("UPDATE progress SET cursor = ?", (batch.cursor,))
    return True


def is_new(table: sqlite3.Connection, advanced: pb.FeedAdvanced) -> bool:
    """Whether the table has yet to start over for this item, which the stream then repeats."""
    (last,) = table.execute("SELECT advanced FROM progress").fetchone()
    return bool(advanced.timestamp.ToMicroseconds() > last)


def main() -> int:
    """Follows the stream until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--target", default="127.0.0.1:50051")
    parser.add_argument("--token", help="of a caller with the role consumer")
    parser.add_argument("--once", action="store_true", help="end when the table is up to date")
    arguments = parser.parse_args()
    table = sqlite3.connect(arguments.file)
    table.executescript(SCHEMA)
    try:
        with BlockingCreditClient(arguments.target, token=arguments.token) as client:
            follow(client, table, once=arguments.once)
    except CreditError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    finally:
        table.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())

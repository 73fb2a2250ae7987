"""Receives webhooks of the credit service: verifies each, and handles it once.

WEBHOOK_SECRET=whsec_... python docs/examples/webhook_receiver.py --listen 127.0.0.1:8090

It needs `pip install standardwebhooks`. During a change of secrets, WEBHOOK_SECRET holds the one
that this receiver knows; the service signs with the old and the new one.
"""

import argparse
import os
import sqlite3
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

BODY_BYTES_MAX = 1 << 20


class Receiver:
    """Keeps the balance of each user from the newest event."""

    def __init__(self, secret: str, file: str) -> None:
        self._webhook = Webhook(secret)
        self._file = file
        with closing(self._database()) as database, database:
            database.execute("CREATE TABLE IF NOT EXISTS handled (id TEXT PRIMARY KEY)")
            database.execute(
                "CREATE TABLE IF NOT EXISTS balances (user_id TEXT PRIMARY KEY, seq INTEGER,"
                " balance INTEGER)"
            )

    def receive(self, headers: dict[str, str], body: bytes) -> None:
        """Handles an event, unless it was handled before.

        The id is written in the same transaction as the effect of the event, so that a crash in
        between loses nothing and a repeat changes nothing.

        Raises:
            WebhookVerificationError: it is not signed with the secret, or is too old.
        """
        event = self._webhook.verify(body, headers)
        with closing(self._database()) as database, database:
            name = {key.lower(): value for key, value in headers.items()}["webhook-id"]
            new = database.execute("INSERT OR IGNORE INTO handled VALUES (?)", (name,)).rowcount
            if new and event["type"].startswith("entry."):
                entry = event["data"]
                # Events of a user come in order, but a repeat of an earlier one may come later.
                database.execute(
                    "INSERT INTO balances VALUES (?, ?, ?) ON CONFLICT (user_id) DO UPDATE"
                    " SET seq = excluded.seq, balance = excluded.balance"
                    " WHERE excluded.seq > seq",
                    (entry["user_id"], entry["seq"], entry["balance_after"]),
                )
        print(f"{event['type']} {name}{'' if new else ', again'}", flush=True)

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=5)


class Handler(BaseHTTPRequestHandler):
    """Answers 204 once an event is handled, 400 if it is not from the service."""

    receiver: Receiver
    timeout = 10
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # as the library calls it
        """Handles one request."""
        size = int(self.headers.get("content-length", "0"))
        status = 413
        if size <= BODY_BYTES_MAX:
            try:
                self.receiver.receive(dict(self.headers.items()), self.rfile.read(size))
                status = 204
            except WebhookVerificationError:
                status = 400
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Leaves the log to the receiver."""


def main() -> None:
    """Receives until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:8090")
    parser.add_argument("--database", default="received.db")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    Handler.receiver = Receiver(os.environ["WEBHOOK_SECRET"], arguments.database)
    with ThreadingHTTPServer((host, int(port)), Handler) as server:
        print(f"listens on {host}:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()

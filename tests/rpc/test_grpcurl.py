"""Operators at a command line: clients that know only what reflection offers."""

import asyncio
import base64
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.rpc import error_details_pb2
from kit.services import running, server_settings
from kit.waiting import patience

from credit_service.rpc.access import Authenticator

SERVICE = "credit_service.v1.CreditService"
METHODS = (
    "GetTransaction",
    "GetTransactionHistory",
    "GetUserCredit",
    "ListPrices",
    "PurchaseCredits",
    "QuoteCost",
    "RefundCredits",
    "SpendCredits",
)


@dataclass
class Printed:
    """The output of a command, and whether the command succeeded."""

    ok: bool
    output: str

    @property
    def message(self) -> dict:
        assert self.ok, self.output
        return json.loads(self.output)


async def run(*command: str) -> Printed:
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, timeout=patience(60)
    )
    return Printed(done.returncode == 0, done.stdout + done.stderr)


class Grpcurl:
    """grpcurl, as README.md shows it."""

    unauthenticated = "Unauthenticated"

    def __init__(self, target: str, token: str | None) -> None:
        self._program = shutil.which("grpcurl")
        if self._program is None:
            pytest.skip("grpcurl is not installed")
        header = ("-H", f"authorization: Bearer {token}") if token else ()
        self._options = ("-plaintext", *header)
        self._target = target

    async def methods(self) -> Printed:
        return await run(self._program, *self._options, self._target, "list", SERVICE)

    async def describe(self, symbol: str) -> Printed:
        return await run(self._program, *self._options, self._target, "describe", symbol)

    async def call(self, method: str, **request: object) -> Printed:
        data = ("-d", json.dumps(request))
        where = (self._target, f"{SERVICE}/{method}")
        return await run(self._program, *self._options, *data, *where)


class BufCurl:
    """buf curl, which comes with the development tools."""

    # buf reads the status code as one of its own registry.
    unauthenticated = "not authenticated"

    def __init__(self, target: str, token: str | None) -> None:
        header = ("--header", f"authorization: Bearer {token}") if token else ()
        self._target = f"http://{target}"
        self._command = (
            str(Path(sys.executable).with_name("buf")),
            *("curl", "--protocol", "grpc", "--http2-prior-knowledge", *header),
            *(("--reflect-header", header[1]) if header else ()),
        )

    async def methods(self) -> Printed:
        return await run(*self._command, "--list-methods", self._target)

    async def call(self, method: str, **request: object) -> Printed:
        data = ("--data", json.dumps(request))
        return await run(*self._command, *data, f"{self._target}/{SERVICE}/{method}")


CLIENTS = pytest.mark.parametrize("program", [Grpcurl, BufCurl], ids=["grpcurl", "buf"])


@pytest.fixture
async def guarded(database, tmp_path):
    """A service that knows an operator and a worker by their tokens."""
    file = tmp_path / "identities.toml"
    file.write_text(
        "\n".join(
            f'[[identity]]\nname = "{role}"\nrole = "{role}"\n'
            f'token_sha256 = "{hashlib.sha256(f"{role}-token".encode()).hexdigest()}"'
            for role in ("operator", "worker")
        )
    )
    settings = server_settings(database.service_url, authenticator=Authenticator(file))
    async with running(settings) as service:
        yield service


@CLIENTS
async def test_reflection_lists_every_call(service, program):
    done = await program(service.target, None).methods()
    assert done.ok, done.output
    for method in METHODS:
        assert method in done.output


async def test_reflection_describes_the_messages(service):
    done = await Grpcurl(service.target, None).describe("credit_service.v1.SpendCreditsRequest")
    assert done.ok, done.output
    for field in ("oneof price", "optional int64 expected_cost", "map<string, string> metadata"):
        assert field in done.output
    health = await Grpcurl(service.target, None).describe("grpc.health.v1.Health")
    assert "rpc Check" in health.output


@CLIENTS
async def test_an_operator_buys_spends_refunds_and_reads(service, database, program):
    user_id = str(await database.user())
    caller = program(service.target, None)
    bought = await caller.call(
        "PurchaseCredits",
        user_id=user_id,
        amount=100,
        payment={"ref": "pi_1", "amount_minor": 999, "currency": "eur"},
        idempotency_key="buy:1",
    )
    assert bought.message["credit"]["balance"] == "100"
    assert bought.message["transaction"]["type"] == "TRANSACTION_TYPE_PURCHASE"
    spend = {"user_id": user_id, "charge": {"operation": "render"}, "idempotency_key": "spend:1"}
    spent = await caller.call("SpendCredits", **spend)
    assert spent.message["credit"]["balance"] == "95"
    assert (await caller.call("SpendCredits", **spend)).message["replayed"] is True
    refunded = await caller.call(
        "RefundCredits",
        user_id=user_id,
        transaction_id=spent.message["transaction"]["id"],
        idempotency_key="refund:1",
    )
    assert refunded.message["credit"]["balance"] == "100"
    history = await caller.call("GetTransactionHistory", user_id=user_id)
    assert [entry["seq"] for entry in history.message["transactions"]] == ["3", "2", "1"]
    assert not await database.faults()


async def refused_spend(program, service, database) -> Printed:
    done = await program(service.target, None).call(
        "SpendCredits",
        user_id=str(await database.user(3)),
        charge={"operation": "stem_separation"},
        idempotency_key="spend:1",
    )
    assert not done.ok
    assert "10 credits are needed and 3 are available" in done.output
    return done


async def test_grpcurl_shows_reason_and_figures_of_a_refusal(service, database):
    done = await refused_spend(Grpcurl, service, database)
    assert "Code: FailedPrecondition" in done.output
    assert '"reason": "INSUFFICIENT_CREDITS"' in done.output
    assert '"shortfall": "7"' in done.output
    wrong = await Grpcurl(service.target, None).call("GetUserCredit", user_id="42")
    assert not wrong.ok
    assert "must be a UUID such as" in wrong.output
    assert "google.rpc.BadRequest" in wrong.output


async def test_buf_shows_the_details_of_a_refusal(service, database):
    done = json.loads((await refused_spend(BufCurl, service, database)).output)
    assert done["code"] == "failed_precondition"
    (detail,) = done["details"]
    assert detail["type"] == "google.rpc.ErrorInfo"
    packed = base64.b64decode(detail["value"] + "=" * (-len(detail["value"]) % 4))
    info = error_details_pb2.ErrorInfo.FromString(packed)
    assert (info.reason, info.metadata["shortfall"]) == ("INSUFFICIENT_CREDITS", "7")


@CLIENTS
async def test_a_token_is_accepted_and_a_call_without_one_is_unauthenticated(
    guarded, database, program
):
    user_id = str(await database.user(5))
    read = await program(guarded.target, "operator-token").call("GetUserCredit", user_id=user_id)
    assert read.message["credit"]["balance"] == "5"
    for token in (None, "wrong"):
        done = await program(guarded.target, token).methods()
        assert not done.ok
        assert program.unauthenticated in done.output


@CLIENTS
async def test_reflection_is_for_operators(guarded, program):
    assert (await program(guarded.target, "operator-token").methods()).ok
    done = await program(guarded.target, "worker-token").methods()
    assert not done.ok
    assert "permission" in done.output.lower()
    assert "a caller with the role worker may not call" in done.output.lower()
    assert "SpendCredits" not in done.output

"""The log: a line per call with its facts, and never a text that callers wrote."""

import asyncio
import hashlib
import json
import re
import select
import signal
import traceback
import unicodedata

import asyncpg
import grpc
import pytest
from kit.http2 import silent_reader
from kit.programs import process
from kit.refusals import refused
from kit.requests import payment
from kit.waiting import eventually, patience

from credit_service.client import CreditClient
from credit_service.errors import (
    IdempotencyKeyReused,
    InsufficientCredits,
    InternalError,
    InvalidRequest,
    OutcomeUnknown,
    PaymentReused,
    PermissionDenied,
    Unauthenticated,
)
from credit_service.rpc import call_log
from credit_service.runtime import logs
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

WORDS = {
    "description": "word-of-a-description",
    "reference": "word-of-a-reference",
    "metadata": {"label": "word-of-metadata"},
}
PAID = payment(ref="word-of-a-payment")
WORKER, OPERATOR, STRANGER = "word-of-a-worker", "word-of-an-operator", "word-of-a-stranger"


@pytest.fixture
def serving(database, tmp_path):
    """Starts a service that knows a worker and an operator, and logs in a format."""
    callers = tmp_path / "callers.toml"
    callers.write_text(
        "".join(
            f'[[identity]]\nname = "the-{role}"\nrole = "{role}"\n'
            f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n'
            for role, token in (("worker", WORKER), ("operator", OPERATOR))
        )
    )

    def serving(log_format, **variables):
        return process(
            CREDIT_DATABASE_URL=database.service_url,
            CREDIT_IDENTITIES=str(callers),
            CREDIT_LOG_FORMAT=log_format,
            **variables,
        )

    return serving


def calls(running):
    """The lines of calls, as objects."""
    lines = [json.loads(line) for line in running.lines if line.startswith("{")]
    return [line for line in lines if line["event"] == "call"]


async def logged(running, count):
    return await eventually(lambda: len(calls(running)) >= count and calls(running))


async def test_each_call_has_a_line_with_caller_method_and_outcome(serving, database):
    user_id = str(await database.user())
    with serving("json") as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        async with (
            CreditClient(target, token=OPERATOR) as operator,
            CreditClient(target, token=WORKER) as worker,
            CreditClient(target, token=STRANGER) as stranger,
        ):
            await operator.purchase_credits(user_id, 10, payment=PAID, idempotency_key="1")
            await worker.spend_credits(user_id, amount=4, idempotency_key="spend:1:1")
            await worker.spend_credits(user_id, amount=4, idempotency_key="spend:1:1")
            with pytest.raises(InsufficientCredits):
                await worker.spend_credits(user_id, amount=7, idempotency_key="spend:2:1")
            await worker.list_prices()
            with pytest.raises(PermissionDenied):
                await worker.purchase_credits(user_id, 1, payment=PAID, idempotency_key="2")
            with pytest.raises(Unauthenticated):
                await stranger.get_user_credit(user_id)
        lines = await logged(running, 7)
        facts = [
            {key: line[key] for key in line if key not in {"timestamp", "level", "event", "ms"}}
            for line in lines
        ]
        user = {"user": user_id}
        as_worker = {"caller": "the-worker", "method": "SpendCredits", **user}
        assert facts == [
            {
                "method": "PurchaseCredits",
                "caller": "the-operator",
                "outcome": "OK",
                "key": "1",
                **user,
            },
            {**as_worker, "key": "spend:1:1", "outcome": "OK"},
            {**as_worker, "key": "spend:1:1", "outcome": "OK", "replayed": True},
            {
                **as_worker,
                "key": "spend:2:1",
                "outcome": "FAILED_PRECONDITION",
                "reason": "INSUFFICIENT_CREDITS",
            },
            {"method": "ListPrices", "caller": "the-worker", "outcome": "OK"},
            {
                "method": "PurchaseCredits",
                "caller": "the-worker",
                "outcome": "PERMISSION_DENIED",
                "reason": "PERMISSION_DENIED",
            },
            {
                "method": "GetUserCredit",
                "outcome": "UNAUTHENTICATED",
                "reason": "UNAUTHENTICATED",
            },
        ]
        assert all(line["level"] == "info" and line["timestamp"].endswith("Z") for line in lines)
        assert all(0 <= line["ms"] < 60_000 for line in lines)


async def test_the_text_format_has_the_same_facts_in_a_line(serving, database):
    user_id = str(await database.user())
    with serving("console") as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        async with CreditClient(target, token=WORKER) as worker:
            with pytest.raises(InsufficientCredits):
                await worker.spend_credits(user_id, amount=7, idempotency_key="spend:2:1")
        line = running.wait_for("SpendCredits").string
    for fact in (
        "caller=the-worker",
        f"user={user_id}",
        "key=spend:2:1",
        "outcome=FAILED_PRECONDITION",
        "reason=INSUFFICIENT_CREDITS",
        "ms=",
    ):
        assert fact in line


async def test_a_call_whose_caller_is_gone_is_logged_as_cancelled(serving, database):
    user_id = await database.user(10)
    await database.wait_longer_for_locks()
    with serving("json") as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        async with CreditClient(target, token=WORKER) as worker, database.locked(user_id):
            spend = asyncio.create_task(worker.spend_credits(user_id, amount=1))
            await eventually(database.waits_for_a_lock, every=0.01)
            spend.cancel()
            await asyncio.wait({spend})
            (line,) = await logged(running, 1)
        assert (line["method"], line["outcome"]) == ("SpendCredits", "CANCELLED")
        assert line["user"] == str(user_id)


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_no_failure_logs_a_token_or_a_text_that_a_caller_wrote(log_format, serving, database):
    user_id = str(await database.user())
    # Real failures that quote the row to be written, in the message and in the DETAIL.
    await database.execute("""
        CREATE FUNCTION quote_the_row() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.idempotency_key = 'poison' THEN
                RAISE EXCEPTION 'not this row: %', NEW USING DETAIL = NEW::text, HINT = 'Try less';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER quote_the_row BEFORE INSERT ON credit_transactions
        FOR EACH ROW EXECUTE FUNCTION quote_the_row();
        ALTER TABLE credit_transactions
        ADD CONSTRAINT not_this_key CHECK (idempotency_key <> 'also poison');
    """)
    with serving(log_format) as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        async with (
            CreditClient(target, token=OPERATOR) as operator,
            CreditClient(target, token=STRANGER) as stranger,
        ):
            buy = {"payment": PAID, **WORDS}
            await operator.purchase_credits(user_id, 10, idempotency_key="1", **buy)
            await operator.purchase_credits(user_id, 10, idempotency_key="1", **buy)
            with pytest.raises(PaymentReused):
                await operator.purchase_credits(user_id, 11, idempotency_key="2", **buy)
            with pytest.raises(IdempotencyKeyReused):
                await operator.spend_credits(user_id, amount=1, idempotency_key="1", **WORDS)
            long = WORDS | {"description": "word-of-a-description" * 100}
            with pytest.raises(InvalidRequest):
                await operator.spend_credits(user_id, amount=1, **long)
            with pytest.raises(Unauthenticated):
                await stranger.spend_credits(user_id, amount=1, **WORDS)
            for key in ("poison", "also poison"):
                with pytest.raises(OutcomeUnknown) as failure:
                    await operator.spend_credits(user_id, amount=1, idempotency_key=key, **WORDS)
                answer = refused(failure.value)
                assert answer.code is grpc.StatusCode.INTERNAL
                assert answer.message == "The service failed on this call; the failure is logged."
                assert (answer.reason, answer.facts) == ("INTERNAL", {})
            await database.execute("REVOKE SELECT ON credit_transactions FROM credit_service")
            with pytest.raises(InternalError) as failure:
                await operator.get_transaction(user_id, idempotency_key="1")
            answer = refused(failure.value)
            assert answer.message == "The service failed on this call; the failure is logged."
            assert (answer.reason, answer.facts) == ("INTERNAL", {})
        running.wait_for("GetTransaction.*INTERNAL|INTERNAL.*GetTransaction")
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    for detail in (
        "RaiseError",
        "not this row",
        "CheckViolationError",
        "not_this_key",
        "InsufficientPrivilegeError",
        "permission denied for table credit_transactions",
        "batches.py",
        "servicer.py",
    ):
        assert detail in running.output, "the log is where the operator learns what happened"
    assert "word-of" not in running.output
    assert "Try less" in running.output


FORGED = (
    'x\n{"event": "call", "outcome": "OK", "method": "SpendCredits", "caller": "forged"}',
    "x\r2026-01-01 00:00:00 [info     ] call  caller=forged",
    "x\x1b[2J\x1b[31mcaller=forged",
    "x\x00\x07\x08\x0b\x0c\x7f",
    "x\u2028y\u2029z\u0085w",
    "x\u202egnp.exe",
    "x caller=forged",
)


@pytest.mark.parametrize("log_format", ["json", "console"])
async def test_a_callers_text_can_neither_forge_a_line_nor_control_a_terminal(log_format, serving):
    with serving(log_format) as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        running.wait_for("prices in credits")
        before = len(running.lines)
        async with grpc.aio.insecure_channel(target) as channel:
            stub = pb_grpc.CreditServiceStub(channel)
            for text in FORGED:
                request = pb.SpendCreditsRequest(user_id=text, amount=1, idempotency_key=text)
                with pytest.raises(grpc.aio.AioRpcError) as failure:
                    await stub.SpendCredits(
                        request,
                        metadata=(("authorization", f"Bearer {WORKER}"),),
                        timeout=patience(10),
                    )
                assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: len(running.lines) >= before + len(FORGED))
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
        lines = running.lines[before:]
        mentioned = [line for line in lines if "SpendCredits" in line]
        assert len(mentioned) == len(FORGED)
        assert len(lines) == len(FORGED) + 2, "and two for the stop"
        for line in mentioned:
            assert not [c for c in line if unicodedata.category(c) in {"Cc", "Cf", "Zl", "Zp"}]
            if log_format == "json":
                assert json.loads(line)["caller"] == "the-worker"
            else:
                # A value with a space in it is in quotes.
                assert re.findall("caller=[^ ]*", re.sub("'[^']*'", "", line)) == [
                    "caller=the-worker"
                ]


async def test_a_field_is_cut_before_it_fills_the_log(serving):
    with serving("json") as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        async with grpc.aio.insecure_channel(target) as channel:
            request = pb.SpendCreditsRequest(user_id="u" * 20_000, idempotency_key="k" * 20_000)
            with pytest.raises(grpc.aio.AioRpcError):
                await pb_grpc.CreditServiceStub(channel).SpendCredits(
                    request, metadata=(("authorization", f"Bearer {WORKER}"),), timeout=patience(10)
                )
        (line,) = await logged(running, 1)
        assert (line["user"], line["key"]) == ("u" * 128, "k" * 128)


async def test_the_level_decides_what_is_logged(serving, database):
    with serving("json", CREDIT_LOG_LEVEL="warning") as running:
        target = f"127.0.0.1:{running.wait_until_listening()}"
        async with CreditClient(target, token=WORKER) as worker:
            await worker.list_prices()
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert not [line for line in running.lines if line.startswith("{")]


@pytest.mark.parametrize("how", ["cause", "context"])
def test_a_database_error_behind_another_error_quotes_nothing_either(how):
    quoting = asyncpg.CheckViolationError("not this row: word-of-a-description")
    quoting.detail = "Failing row contains (word-of-a-description)."
    failure = ValueError("the outer error")
    setattr(failure, f"__{how}__", quoting)
    call_log.without_values(None, "error", {"exc_info": failure})
    assert "word-of" not in "".join(traceback.format_exception(failure))
    assert "not this row" in "".join(traceback.format_exception(failure))


class Pipe:
    """Takes what is written, and fails a given number of times."""

    def __init__(self, failures=0):
        self.written, self.failures, self.attempts = [], failures, 0

    def write(self, piece):
        self.attempts += 1
        if self.failures:
            self.failures -= 1
            raise BlockingIOError
        self.written.append(piece)

    def flush(self):
        pass


async def test_a_log_goes_on_after_a_failed_write():
    pipe = Pipe(failures=1)
    gathered = logs._Gathered(pipe)
    for number, line in enumerate((b"lost\n", b"first\n", b"second\n"), start=1):
        gathered.write(line)
        gathered.flush()
        await eventually(lambda number=number: pipe.attempts == number)
    assert pipe.written == [b"first\n", b"second\n"]


async def test_each_write_is_whole_lines_and_fits_into_a_pipe():
    pipe = Pipe()
    gathered = logs._Gathered(pipe)
    lines = [bytes([65 + n % 26]) * (n * 7 % 300) + b"\n" for n in range(200)]
    for line in lines:
        gathered.write(line)
        gathered.flush()
    assert not pipe.written
    await eventually(lambda: b"".join(pipe.written) == b"".join(lines))
    assert 1 < len(pipe.written) < 20
    assert all(len(piece) <= select.PIPE_BUF and piece.endswith(b"\n") for piece in pipe.written)


async def test_lines_of_many_turns_of_the_loop_are_written_together():
    pipe = Pipe()
    gathered = logs._Gathered(pipe)
    for _ in range(200):
        gathered.write(b"line\n")
        gathered.flush()
        await asyncio.sleep(0)
    await eventually(lambda: b"".join(pipe.written) == b"line\n" * 200)
    assert pipe.attempts < 100


async def test_a_warning_is_written_at_once_after_the_lines_that_waited():
    pipe = Pipe()
    gathered = logs._Gathered(pipe)
    gathered.write(b"call\n")
    gathered.flush()
    assert not pipe.written
    gathered.hurry(None, "warning", {})
    gathered.write(b"warning\n")
    gathered.flush()
    assert b"".join(pipe.written) == b"call\nwarning\n"


@pytest.mark.parametrize("verbosity", [None, "INFO"])
async def test_grpc_adds_no_lines_of_its_own_unless_it_is_asked_to(serving, verbosity):
    chosen = {} if verbosity is None else {"GRPC_VERBOSITY": verbosity}
    with serving("json", **chosen) as running:
        port = await asyncio.to_thread(running.wait_until_listening)
        async with silent_reader(port) as caller:
            await caller.call("/credit_service.v1.CreditService/ListPrices", b"")
            await caller.go_away()
            await logged(running, 1)
            if verbosity is not None:
                await asyncio.to_thread(running.wait_for, "Got goaway")
        running.signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.wait) == 0
    of_grpc = [line for line in running.lines if re.match(r"[A-Z]\d{4} ", line)]
    assert bool(of_grpc) is (verbosity is not None)


async def test_a_request_that_grpc_refuses_as_too_long_has_a_line(serving):
    with serving("json") as running:
        port = await asyncio.to_thread(running.wait_until_listening)
        item = pb.BatchSpendItem(description="d" * 500)
        request = pb.BatchSpendCreditsRequest(items=[item] * 2_100)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = pb_grpc.CreditServiceStub(channel)
            metadata = (("authorization", f"Bearer {WORKER}"),)
            with pytest.raises(grpc.aio.AioRpcError, match="larger than max") as failure:
                await stub.BatchSpendCredits(request, metadata=metadata, timeout=patience(10))
        assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "1048576" in failure.value.details()
        (line,) = await logged(running, 1)
    assert (line["method"], line["caller"]) == ("BatchSpendCredits", "the-worker")
    assert line["reason"] == "INVALID_REQUEST"

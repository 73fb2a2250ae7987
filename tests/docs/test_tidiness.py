"""The parts that a new call, refusal or statement needs, so that nothing is left unfinished."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from kit.checkouts import tracked_files
from kit.paths import ROOT
from kit.services import server_settings

from credit_service import errors, status
from credit_service.client import CreditClient
from credit_service.ledger import (
    account_listing,
    batch_loading,
    due_loading,
    export,
    fault_store,
    feed,
    feed_lag,
    grant_listing,
    grant_loading,
    grant_reads,
    grant_store,
    present_accounts,
    reads,
    shared_account_reads,
    store,
    top_up_loading,
    top_up_reads,
    top_up_store,
    transactions,
    verify,
)
from credit_service.relay import alert_store, parked_store
from credit_service.relay import store as relay_store
from credit_service.rpc import access, interceptor
from credit_service.rpc.servicer import CreditServicer
from credit_service.v1 import credit_service_pb2 as pb
from credit_service.v1 import credit_service_pb2_grpc as pb_grpc

SERVICE = pb.DESCRIPTOR.services_by_name["CreditService"]
METHODS = sorted(SERVICE.methods_by_name)
PROTO = (ROOT / "protos/credit_service/v1/credit_service.proto").read_text()
LINES_MAX = 450

# The modules with one function per statement.
STORES = (account_listing, store, fault_store, grant_store, grant_listing, top_up_store)
RELAY_STORES = (relay_store, alert_store, parked_store)


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def concrete_errors() -> list[type[errors.CreditError]]:
    def below(kind):
        for child in kind.__subclasses__():
            yield child
            yield from below(child)

    return [kind for kind in below(errors.CreditError) if "reason" in vars(kind)]


@pytest.mark.parametrize("method", METHODS)
def test_every_call_has_rights_a_servicer_a_client_and_a_test(method):
    assert method in access.CALLS
    unanswered = getattr(pb_grpc.CreditServiceServicer, method)
    assert getattr(CreditServicer, method) is not unanswered
    if method == "CallMany":
        return  # the client makes it from single calls, without a method of its own
    name = snake_case(method)
    call = inspect.getattr_static(CreditClient, name)
    assert inspect.isfunction(call)
    assert inspect.getdoc(call)
    tests = "\n".join(path.read_text() for path in tracked_files("tests/*.py"))
    assert re.search(rf"\.{name}\b", tests), f"no test calls {name} through the client"


def test_the_table_of_rights_names_only_calls_that_exist():
    assert set(access.CALLS) - {"ServerReflectionInfo"} == set(METHODS)
    assert set(access.RIGHTS) == set(access.Right)


def test_the_table_of_long_requests_names_only_calls_that_exist():
    assert set(interceptor.REQUEST_BYTES_MAX) <= set(METHODS)


def test_every_error_has_a_status_and_every_reason_is_unique():
    # The client makes these; they never cross the wire.
    made_by_the_client = {errors.OutcomeUnknown, errors.AlreadyPaid}
    assert set(status.CODES) == set(concrete_errors()) - made_by_the_client
    reasons = [kind.reason for kind in concrete_errors()]
    assert len(set(reasons)) == len(reasons)
    for kind in concrete_errors():
        assert re.fullmatch(r"[A-Z][A-Z_]{2,62}", kind.reason)
        assert inspect.getdoc(kind)


def contract() -> dict[str, tuple[str, set[str], bool]]:
    """The table at the top of the contract: code, metadata and RetryInfo of each reason."""
    rows = re.findall(
        r"^//   ([A-Z_]+) +([A-Z_]+)((?: .*)?(?:\n//  {20,}.*)*)$", PROTO, re.MULTILINE
    )
    return {
        reason: (
            code,
            set(re.findall(r"\b[a-z_]+\b", re.sub(r"\(.*?\)|//", "", rest, flags=re.DOTALL))),
            "google.rpc.RetryInfo" in rest,
        )
        for code, reason, rest in rows
    }


@pytest.mark.parametrize("kind", status.CODES, ids=lambda kind: kind.__name__)
def test_the_contract_lists_code_and_metadata_of_every_reason(kind):
    code, metadata, retry = contract()[kind.reason]
    assert code == status.CODES[kind].name
    assert metadata == set(inspect.signature(kind).parameters)
    assert retry == (kind in status.RETRY_DELAY_MS or "retry_ms" in metadata)


def test_the_contract_lists_no_reason_that_does_not_exist():
    assert contract().keys() == {kind.reason for kind in status.CODES}


def comment_of(method: str) -> str:
    """The comment above a call in the contract, as one line."""
    comment = re.search(rf"((?:^ *//.*\n)+) *rpc {method}\(", PROTO, re.MULTILINE).group(1)
    return re.sub(r"\s*//\s*", " ", comment)


@pytest.mark.parametrize("method", METHODS)
def test_the_contract_names_the_roles_that_may_make_a_call(method):
    comment = comment_of(method)
    if "Every role may call it" in comment:
        named = set(access.Role)
    else:
        (listed,) = re.findall(rf"\bFor (?=(?:{'|'.join(access.Role)})\b)([^.;]*)", comment)
        named = set(re.findall(r"\w+", listed)) & set(access.Role)
    assert named == access.CALLS[method]


@pytest.mark.parametrize("method", METHODS)
def test_the_contract_names_the_refusals_of_a_call_and_they_exist(method):
    comment = comment_of(method)
    named = set(re.findall(r"\b[A-Z]+_[A-Z_]+\b", comment))
    assert named <= contract().keys()
    takes_fields = bool(SERVICE.methods_by_name[method].input_type.fields)
    assert ("INVALID_REQUEST" in named) == takes_fields


def test_every_statement_is_used_by_the_store_and_has_a_comment():
    for statements, modules in (
        (store.SQL, (*STORES, feed, feed_lag)),
        (relay_store.SQL, RELAY_STORES),
    ):
        used = re.findall(
            r'(?:SQL\[|texts\[|text\(\s*connection, )"(\w+)"',
            "".join(map(inspect.getsource, modules)),
        )
        assert set(used) == statements.keys()
        for name, text in statements.items():
            assert text.startswith("-- "), name


def test_every_function_of_the_store_has_a_caller():
    modules = (
        *(transactions, batch_loading, due_loading, grant_loading, present_accounts),
        *(shared_account_reads, account_listing, reads, grant_reads, verify, export),
        *(top_up_loading, top_up_reads),
    )
    callers = "".join(map(inspect.getsource, modules))
    for module in STORES:
        place = module.__name__.rpartition(".")[2]
        names = [
            name
            for name, value in vars(module).items()
            if inspect.iscoroutinefunction(value) and value.__module__ == module.__name__
        ]
        assert names
        for name in names:
            assert re.search(rf"{place}\.{name}\b", callers), name


async def test_every_statement_prepares_for_the_service_on_a_migrated_database(database):
    connection = await server_settings(database.service_url).writers.address.connect()
    try:
        for name, text in (*store.SQL.items(), *relay_store.SQL.items()):
            prepared = await connection.prepare(text)
            kinds = {kind.name for kind in prepared.get_parameters()}
            # The types that a distributed engine also takes.
            allowed = {"uuid", "int8", "text", "bytea", "bool", "timestamptz"}
            assert kinds <= allowed | {f"{kind}[]" for kind in allowed}, name
    finally:
        await connection.close()


def python_files() -> list[Path]:
    found = tracked_files("credit_service/*.py", "stripe_bridge/*.py")
    return [path for path in found if path.parent.name != "v1"]


@pytest.mark.parametrize("path", python_files(), ids=lambda path: f"{path.relative_to(ROOT)}")
def test_a_module_is_short_and_has_a_docstring(path):
    text = path.read_text()
    assert len(text.splitlines()) < LINES_MAX
    assert ast.get_docstring(ast.parse(text))
    assert path.stem not in {"utils", "helpers", "common", "base", "manager", "core"}


def test_no_lock_file_holds_an_address():
    locks = tracked_files("*.lock")
    assert ROOT / "requirements.lock" in locks
    for path in locks:
        assert "://" not in path.read_text(), path


def test_generated_code_is_not_tracked():
    assert tracked_files("credit_service/v1") == [ROOT / "credit_service/v1/__init__.py"]


def test_the_suites_for_a_citus_cluster_are_there():
    named = (ROOT / "tests/citus-suites").read_text().split()
    assert [name for name in named if not (ROOT / name).is_file()] == []

"""The documents: the things that they name exist, and their lists are complete and true."""

import importlib
import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cyclopts import App
from kit.documents import (
    DECISIONS,
    DEPLOY,
    DESIGN,
    DOCUMENTS,
    GLOSSARY,
    README,
    headings,
    prose,
    section,
    snippets,
    tables,
)
from kit.paths import ROOT
from kit.waiting import eventually

from credit_service import config, status
from credit_service.cli import app
from credit_service.errors import Refusal
from credit_service.gateway import config as gateway_config
from credit_service.gateway.cli import app as gateway_app
from credit_service.ledger import metrics as ledger_metrics
from credit_service.relay import metrics as relay_metrics
from credit_service.rpc import access, call_metrics
from credit_service.runtime import metrics_port
from credit_service.v1 import credit_service_pb2 as pb
from stripe_bridge import config as bridge_config
from stripe_bridge.cli import app as bridge_app

CONFIGS = (config, gateway_config, bridge_config)

# Names that documents quote and that are not ours: names of PostgreSQL, Linux, gRPC, Supabase,
# Stripe and Benthos.
NAMES_OF_OTHERS = {
    "PGPASSFILE",
    "SCHED_BATCH",
    "SO_REUSEPORT",
    "expired_card",
    "kafka_franz",
    "max_connections",
    "minimal_stack",
    "nats_jetstream",
    "optimization_target",
    "pg_stat_statements",
    "service_role",
    "subscription_data",
    "subscription_update",
    "synchronous_commit",
    "wal_compression",
    "synchronous_standby_names",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_of_a_document_leads_somewhere(document):
    for text, target in re.findall(r"\[([^\]]*)\]\(([^)]*)\)", prose(document)):
        file, _, anchor = target.partition("#")
        place = document.parent / file if file else document
        assert place.exists(), f"{text} leads to {target}"
        if anchor:
            kept = (re.sub(r"[^\w -]", "", heading) for heading in headings(place))
            anchors = [heading.lower().replace(" ", "-") for heading in kept]
            assert anchor in anchors, f"{text} leads to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_table_of_contents_lists_every_section_in_order(document):
    listed = re.findall(r"^- \[(.*)\]\(#.*\)$", document.read_text(), re.MULTILINE)
    assert listed in ([], re.findall(r"^## (.+)$", prose(document), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_a_document_names_exists(document):
    folders = [path.name for path in ROOT.iterdir() if path.is_dir()]
    named = rf"(?<![\w/.-])((?:{'|'.join(map(re.escape, folders))}|\.ci)/[\w./-]*\w)"
    text = prose(document) + "".join(snippets(document, None, "sh"))
    text = text.replace(".venv/", "")
    missing = [name for name in re.findall(named, text) if not (ROOT / name).exists()]
    assert not missing


# The sections whose snippets are run by a file that does not read them from the document.
RUN_BY = {
    "A table of balances": "tests/docs/test_balance_table.py",
    "In a browser": "tests/browser/test_demo_web.py",
    "Payments, with Stripe": "tests/docs/test_stripe_demo.py",
    "Proxies and security": "tests/gateway/test_nginx.py",
    "Set up, check, test": ".ci/run",
    "Topping up automatically": "tests/bridge/top_ups/test_commands.py",
    "Trying it out": "tests/docs/test_stripe_demo.py",
    "Two commands": ".ci/run",
    "What the limits are": "tests/docs/test_bench.py",
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_printed_snippet_is_run_by_a_test(document):
    tests = [path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    text = "".join(path.read_text() for path in tests)
    parts = re.split(r"^##+ (.+)$", document.read_text(), flags=re.MULTILINE)
    # A block without a language is a diagram.
    printed = {
        heading
        for heading, part in zip(parts[1::2], parts[2::2], strict=True)
        if re.search(r"^```\w+$", part, re.MULTILINE)
    }
    not_run = {heading for heading in printed - RUN_BY.keys() if f'"{heading}"' not in text}
    assert not not_run
    assert all((ROOT / RUN_BY[heading]).exists() for heading in printed & RUN_BY.keys())


def fields_of(settings):
    return settings.Settings.model_fields


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_setting_and_command_a_document_names_exists(document):
    text = document.read_text()
    known = {settings.variable(name) for settings in CONFIGS for name in fields_of(settings)}
    assert set(re.findall(r"\bCREDIT_[A-Z_]*[A-Z]\b", text)) <= known
    assert set(re.findall(r"(?:`|^|/)credit-service ([a-z]+)", text, re.MULTILINE)) <= set(app)


def commands(program: App) -> set[str]:
    """The names of all commands, those of a group with the name of the group before them."""
    found = set()
    for name in program:
        if not name.startswith("-"):
            below = commands(program[name])
            found |= {name} if program[name].default_command else set()
            found |= {f"{name} {one}" for one in below}
    return found


@pytest.mark.parametrize(
    "program", [app, bridge_app, gateway_app], ids=lambda program: program.name[0]
)
def test_the_operators_table_has_every_command_of_every_program(program):
    text = section(ROOT / "scripts" / "README.md", "An operator's day")
    words = re.findall(rf"`{program.name[0]} ([^`]+)`", text)
    known = commands(program)
    named = {" ".join(re.findall(r"^[a-z-]+(?: [a-z-]+)*", word)) for word in words}
    # An argument may be a word in lower case too, such as what to export.
    named = {name if name in known else name.rpartition(" ")[0] for name in named}
    assert named == known


def test_the_readme_gives_the_right_defaults():
    rows = re.findall(r"^\| `CREDIT_(\w+)` \| `([^`]+)` \|", README.read_text(), re.MULTILINE)
    assert rows
    for name, default in rows:
        if not default.startswith("CREDIT_"):
            assert str(config.Settings.model_fields[name.lower()].default) == default


def test_the_table_of_rights_is_the_one_in_force():
    narrower = {
        "GetTransactionHistory, history in GetUserCredit": access.Right.READ_HISTORY,
        "RefundCredits of a spend or capture": "RefundCredits",
        "RefundCredits without a spend": access.Right.REFUND_WITHOUT_SPEND,
        "PurchaseCredits with a payment": "PurchaseCredits",
        "PurchaseCredits without a payment": access.Right.PURCHASE_WITHOUT_PAYMENT,
        "RevokeGrant of a grant that the caller purchased": "RevokeGrant",
        "RevokeGrant of any other grant": access.Right.REVOKE_ANY_GRANT,
        "GetUsageReport of one user": "GetUsageReport",
        "GetUsageReport of all users": access.Right.REPORT_ON_ALL_USERS,
        "reflection": "ServerReflectionInfo",
    }
    rights: dict[object, frozenset[access.Role]] = {**access.CALLS, **access.RIGHTS}
    table = [
        [cell.strip() for cell in row.strip("|").split("|")]
        for row in section(DEPLOY, "Callers and their rights").splitlines()
        if row.startswith("|") and "---" not in row
    ]
    (_, *roles), *rows = table
    named = set()
    for call, *cells in rows:
        may = {role for role, cell in zip(roles, cells, strict=True) if cell == "yes"}
        right = narrower.get(call, call)
        assert may == rights[right], call
        named.add(right)
    assert named | {"GetTransactionHistory"} == set(rights)
    assert rights["GetTransactionHistory"] == rights[access.Right.READ_HISTORY]


def test_every_metric_is_documented_and_every_documented_metric_exists():
    families = [
        family
        for module in (ledger_metrics, call_metrics, metrics_port, relay_metrics)
        for metric in vars(module).values()
        if hasattr(metric, "describe") and not isinstance(metric, type)
        for family in metric.describe()
    ]
    made = {f"{f.name}_total" if f.type == "counter" else f.name for f in families}
    made.add("credit_build_info")
    named = set(re.findall(r"`(credit_[a-z_]+)`", section(DEPLOY, "Health, metrics, logs")))
    assert named == made


def test_the_changelog_and_the_contract_name_the_same_calls():
    calls = {method.name for method in pb.DESCRIPTOR.services_by_name["CreditService"].methods}
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert {call for call in calls if f"`{call}`" not in changelog} == set()


def sources() -> set[str]:
    """Every word of the programs, the contract and the schema."""
    places = (
        "credit_service",
        "stripe_bridge",
        "protos",
        "scripts",
        "pyproject.toml",
        "tests/kit/*.py",
    )
    listing = ("git", "ls-files", "-z", "--", *places, ":!:*.md", ":!:*.lock")
    listed = subprocess.run(listing, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = (ROOT / name for name in listed.split("\0") if name)
    return set(re.findall(r"\w+", " ".join(file.read_text() for file in files if file.is_file())))


SOURCES = sources()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_name_a_document_quotes_exists(document):
    """Fields, reasons, codes, classes, calls, metrics: words with an underscore or capitals."""
    quoted = re.findall(r"`([A-Za-z][\w.]*)`", prose(document))
    names = {part for name in quoted for part in name.split(".")}
    names = {name for name in names if re.search(r"_|[a-z][A-Z]|^[A-Z]+$", name)}
    known = SOURCES | {f"{word}_total" for word in SOURCES} | NAMES_OF_OTHERS
    known |= {settings.variable(name) for settings in CONFIGS for name in fields_of(settings)}
    # The bridge counts a refusal of the service by its reason in lower case.
    known |= {kind.reason.lower() for kind in status.CODES}
    assert names <= known, f"unknown: {sorted(names - known)}"


def test_every_import_path_that_is_promised_exists():
    paths = re.findall(r"`(credit_service\.\w+)`", section(README, "Compatibility"))
    assert len(paths) >= 4
    for path in paths:
        assert importlib.import_module(path)


def test_the_glossary_defines_a_term_once_and_in_order():
    lists = [[term for term, _meaning in rows] for _head, *rows in tables(GLOSSARY)]
    assert lists
    for terms in lists:
        assert terms == sorted(terms, key=str.lower)
    every = [term for terms in lists for term in terms]
    assert len(set(every)) == len(every)


def test_every_decision_is_listed():
    listed = re.findall(r"\]\((.*?)\)", DECISIONS.read_text())
    made = {path.name for path in DECISIONS.parent.glob("0*.md")}
    assert {name for name in listed if re.match(r"\d", name)} == made


async def answer(call):
    """The answer to a call, in the words of the table of a hold's states."""
    try:
        response = await call
    except Refusal as refusal:
        return f"`{refusal.reason}`"
    if getattr(response, "late", False):
        return "`OK` and late"
    return "`OK`, replayed" if getattr(response, "replayed", False) else "`OK`"


async def test_the_table_of_a_holds_states_shows_the_service_s_answers(client, database):
    (_, *rows) = next(table for table in tables(DESIGN) if table[0][0] == "state")
    rich, poor = await database.user(1000), await database.user(10)

    async def hold(user_id, **options):
        return (await client.hold_credits(user_id, amount=10, **options)).hold.id

    async def until_expired(user_id, hold_id):
        async def is_expired():
            state = (await client.get_hold(user_id, hold_id)).state
            return state == pb.HOLD_STATE_EXPIRED

        await eventually(is_expired)

    short = timedelta(seconds=1)
    expired = [await hold(rich, ttl=short) for _ in range(6)]
    of_poor = await hold(poor, ttl=short)
    for hold_id in expired:
        await until_expired(rich, hold_id)
    await until_expired(poor, of_poor)
    await client.spend_credits(poor, amount=10)

    calls = (client.capture_hold, client.release_hold, client.extend_hold)
    for state, *cells in rows:
        for cell, call in zip(cells, calls, strict=True):
            hold_id = expired.pop() if state.startswith("EXPIRED") else await hold(rich)
            if state in {"CAPTURED", "EXPIRED, captured late"}:
                await client.capture_hold(rich, hold_id)
            elif state == "RELEASED":
                await client.release_hold(rich, hold_id)
            answers = [await answer(call(rich, hold_id))]
            if (state, call) == ("EXPIRED", client.capture_hold):
                answers.append(await answer(call(poor, of_poor)))
            assert cell == ", or ".join(answers), (state, call.__name__)

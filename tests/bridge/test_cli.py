"""The bridge's command line: the output and the exit code of each command."""

import asyncio
import logging
import signal

import pytest
import structlog
from kit.bridge_commands import ran
from kit.stripe_fakes import KEY, bridge_process, bridge_url, fake_stripe

from credit_service.runtime.build_info import VERSION
from stripe_bridge import cli
from stripe_bridge.settle import EVENT_TYPES
from stripe_bridge.stripe_api import STRIPE_VERSION

pytestmark = pytest.mark.shared

URL = "https://credits.example.com/stripe/webhooks"


@pytest.fixture
def said(monkeypatch, capsys):
    """Runs a command in this process; returns its exit code, output and errors."""

    def said(*arguments, **settings):
        for name, value in settings.items():
            monkeypatch.setenv(f"STRIPE_BRIDGE_{name.upper()}", value)
        try:
            cli.main(list(arguments))
        except SystemExit as end:
            code = end.code
        else:
            code = 0
        printed = capsys.readouterr()
        assert "hunter2" not in printed.out + printed.err
        return code, printed.out, printed.err

    # A command sends this process's logs to a standard error that is closed after the test.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield said
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("serve", "settings", "check-config", "endpoint", "reconcile", "replay", "top-ups")),
        (("serve",), ("SIGTERM", "stripe-bridge settings")),
        (("check-config",), ("Writes nothing", "exit code 1")),
        (("endpoint",), ("--url", "--again", "signing secret")),
        (("reconcile",), ("--since", "35d", "--disputes-since", "180d", "--dry-run")),
        (("replay",), ("evt_", "pi_")),
        (("top-ups",), ("--charge", "exit code 1")),
    ],
)
def test_help_says_what_a_command_is_for(said, command, words):
    code, out, _ = said(*command, "--help")
    assert code == 0
    assert all(word in out for word in words)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("sell",), "sell"),
        (("endpoint",), "--url"),
        (("replay",), "ID"),
        (("serve", "--fast"), "--fast"),
        (("reconcile", "--since", "soon"), "--since must be a time such as 35d"),
        (("reconcile", "--since", "1.5d"), "--since must be a time such as 35d"),
        (("reconcile", "--disputes-since", "9"), "--disputes-since must be a time such as 35d"),
        (("endpoint", "--url", "http://example.com/"), "--url must be https"),
        (("endpoint", "--url", "example.com"), "--url must be https"),
    ],
)
def test_a_wrong_command_line_ends_with_exit_code_2(said, arguments, problem):
    code, out, err = said(*arguments, stripe_key="rk_live_hunter2")
    assert code == 2
    assert problem.upper() in (out + err).upper()


@pytest.mark.parametrize(
    ("arguments", "settings", "problem"),
    [
        (("serve",), {"stripe_key": "rk_live_a"}, "set STRIPE_BRIDGE_WEBHOOK_SECRETS"),
        (("serve",), {"webhook_secrets": "live:whsec_a"}, "set STRIPE_BRIDGE_STRIPE_KEY"),
        (("reconcile",), {}, "set STRIPE_BRIDGE_STRIPE_KEY"),
        (("replay", "evt_1"), {}, "set STRIPE_BRIDGE_STRIPE_KEY"),
        (("endpoint", "--url", URL), {}, "set STRIPE_BRIDGE_STRIPE_KEY"),
        (("check-config",), {}, "set STRIPE_BRIDGE_STRIPE_KEY"),
        (("serve",), {"stripe_key": "rk_live_a", "webhook_secrets": "live:whsec_a",
                      "catalog": "/nowhere/packs.toml"}, "/nowhere/packs.toml: No such file"),
        (("serve",), {"stripe_key": "rk_live_a", "webhook_secrets": "live:whsec_a",
                      "credit_tls_ca": "/nowhere/ca.pem"}, "CREDIT_TLS_CA: /nowhere/ca.pem: No"),
        (("replay", "price_1"), {"stripe_key": "rk_live_a"}, "'price_1' is not the id of an event"),
    ],
)  # fmt: skip
def test_a_missing_or_wrong_setting_of_a_command_is_named_in_one_line(
    said, arguments, settings, problem
):
    code, out, err = said(*arguments, **settings)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("stripe-bridge: ")
    assert problem in line


async def test_an_endpoint_is_made_with_exactly_our_events_and_its_secret_printed_once(said, fake):
    async def make(*options):
        arguments = ("endpoint", "--url", URL, *options)
        return await asyncio.to_thread(said, *arguments, stripe_key=KEY, stripe_address=fake.url)

    await fake.settings(api_version="2024-06-20")
    code, out, err = await make()
    assert code == 0
    listed = (await fake.sdk().v1.webhook_endpoints.list_async()).data
    (made,) = [each for each in listed if each.url == URL]
    assert set(made.enabled_events) == set(EVENT_TYPES)
    assert len(EVENT_TYPES) == 15
    assert made.api_version == STRIPE_VERSION
    name, _, value = out.strip().partition("=")
    assert name == "STRIPE_BRIDGE_WEBHOOK_SECRETS"
    assert value.startswith("test:whsec_")
    assert value not in err
    assert "add the line above to the bridge's settings" in err
    code, out, err = await make()
    assert (code, out) == (2, "")
    assert f"{made.id} has this URL already" in err
    assert (await make("--again"))[0] == 0


async def test_a_key_that_may_not_make_endpoints_is_reported_without_the_key(said, fake):
    code, out, err = await asyncio.to_thread(
        said,
        *("endpoint", "--url", URL),
        stripe_key="rk_nobodys_hunter2",
        stripe_address=fake.url,
    )
    assert (code, out) == (1, "")
    assert "webhook endpoints: Stripe answered 401" in err


async def test_reconcile_repairs_payments_without_events_and_then_finds_them_there(
    fake, service, client, database
):
    user_id = await database.user()
    paid = await fake.purchase(user_id)
    access = {"stripe_key": KEY, "stripe_address": fake.url, "credit_target": service.target}
    dry = await ran("reconcile", "--since", "1h", "--dry-run", **access)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "1 to repair" in dry.stdout
    assert not await database.fetch("SELECT FROM credit_transactions")
    first = await ran("reconcile", "--since", "1h", **access)
    assert (first.returncode, first.stderr) == (0, "")
    assert ", 0 already there, 1 repaired, " in first.stdout
    assert (await client.get_user_credit(user_id)).balance == 100
    again = await ran("reconcile", "--since", "1h", **access)
    assert ", 1 already there, 0 repaired, " in again.stdout
    replayed = await ran("replay", paid, **access)
    assert (replayed.returncode, replayed.stdout) == (0, f"replayed purchase stripe:{paid}\n")


async def test_reconcile_names_unresolved_objects_with_exit_code_1(service, database):
    async with fake_stripe() as fake:
        await fake.purchase("nobody")
        (session,) = (await fake.sdk().v1.checkout.sessions.list_async()).data
        access = {"stripe_key": KEY, "stripe_address": fake.url, "credit_target": service.target}
        done = await ran("reconcile", **access)
        assert done.returncode == 1
        assert f"unresolved: {session.id}: user_malformed: " in done.stdout
        assert done.stdout.splitlines()[-1].endswith("1 unresolved")
        one = await ran("replay", session.id, **access)
        assert (one.returncode, one.stdout) == (1, "")
        assert one.stderr.startswith("stripe-bridge: user_malformed: ")
        none = await ran("replay", "re_unheard", **access)
        assert (none.returncode, none.stdout) == (1, "")
        assert none.stderr.startswith("stripe-bridge: stripe_object_missing: ")


async def test_reconcile_ends_with_exit_code_1_while_a_conflict_stays(service, database):
    async with fake_stripe() as fake:
        user = await database.user()
        paid = await fake.purchase(user, credits_=100)
        access = {"stripe_key": KEY, "stripe_address": fake.url, "credit_target": service.target}
        assert (await ran("reconcile", **access)).returncode == 0
        metadata = {"credit_user_id": str(user), "credits": "101", "credits_v": "1"}
        (session,) = (await fake.sdk().v1.checkout.sessions.list_async()).data
        await fake.do("edit", id=session.id, fields={"metadata": metadata})
        for options in ((), ("--dry-run",)):
            done = await ran("reconcile", *options, **access)
            assert done.returncode == 1
            conflict = f"conflict: {session.id}: idempotency_key_reused: stripe:{paid}"
            assert done.stdout.splitlines()[0] == conflict
            assert done.stdout.splitlines()[-1].endswith("1 conflicts, 0 unresolved")


async def test_serve_prints_its_version_its_address_and_its_credit_service(service):
    with bridge_process("http://127.0.0.1:9", service.target) as process:
        bridge_url(process)
        process.wait_for(f"^stripe-bridge {VERSION} listens on ")
        process.wait_for(f"credits go to {service.target}")
        process.signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait) == 0


async def test_a_port_in_use_is_refused_with_exit_code_2(service):
    port = str(service.port)
    with bridge_process("http://127.0.0.1:9", service.target, port=int(port)) as process:
        assert await asyncio.to_thread(process.wait) == 2
        assert f"stripe-bridge: cannot listen on 127.0.0.1:{port}" in process.output
        assert "Traceback" not in process.output

"""The bridge's command line: what each command prints, and the exit code it ends with."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import structlog
import trustme
from kit.callers import EVERY_ROLE, identity
from kit.services import running, server_settings
from kit.stripe_fakes import KEY, SECRET, bridge_process, bridge_url, fake_stripe
from kit.waiting import patience

from credit_service.client import CreditClient
from credit_service.rpc.access import Authenticator
from credit_service.rpc.tls import ServerCertificate
from credit_service.runtime.build_info import VERSION
from stripe_bridge import cli, config_check
from stripe_bridge.catalog import Catalog, Policy
from stripe_bridge.settle import EVENT_TYPES
from stripe_bridge.stripe_api import STRIPE_VERSION, stripe_client

URL = "https://credits.example.com/stripe/webhooks"

PACKS = """
[[pack]]
id = "starter"
name = "100 credits"
credits = 100
price = "price_starter"
amount_minor = 900
currency = "eur"

[[price]]
lookup_key = "monthly"
credits = 500
"""


@pytest.fixture(scope="module")
async def fake():
    async with fake_stripe() as running_one:
        await running_one.price(900, id="price_starter", currency="eur")
        await running_one.price(
            500, lookup_key="monthly", currency="eur", recurring={"interval": "month"}
        )
        yield running_one


async def ran(*arguments, **settings):
    """Runs a command with these settings and no others; it may refuse, but never fail."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("STRIPE_BRIDGE_")}
    given = {f"STRIPE_BRIDGE_{name.upper()}": value for name, value in settings.items()}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "stripe_bridge", *arguments],
        env={**clean, **given},
        capture_output=True,
        text=True,
        timeout=patience(60),
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    return done


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

    # A command sends this process's logs to a standard error that ends with the test.
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield said
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ("serve", "settings", "check-config", "endpoint", "reconcile", "replay")),
        (("serve",), ("SIGTERM", "stripe-bridge settings")),
        (("check-config",), ("Writes nothing", "exit code 1")),
        (("endpoint",), ("--url", "--again", "signing secret")),
        (("reconcile",), ("--since", "35d", "--disputes-since", "180d", "--dry-run")),
        (("replay",), ("evt_", "pi_")),
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
        (("replay", "price_1"), {"stripe_key": "rk_live_a"}, "'price_1' is no id of an event"),
    ],
)  # fmt: skip
def test_what_a_command_lacks_is_named_in_one_line(said, arguments, settings, problem):
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


@pytest.fixture
def packs(tmp_path):
    file = tmp_path / "packs.toml"
    file.write_text(PACKS)
    return file


@pytest.fixture
async def guarded(database, tmp_path):
    """A service that knows its callers by their tokens."""
    callers = tmp_path / "callers.toml"
    callers.write_text(EVERY_ROLE)
    settings = server_settings(database.service_url, authenticator=Authenticator(callers))
    async with running(settings) as service:
        yield service


def checking(fake, packs, target, **changes):
    return ran(
        "check-config",
        **{
            "stripe_key": KEY,
            "stripe_address": fake.url,
            "webhook_secrets": f"test:{SECRET}",
            "catalog": str(packs),
            "credit_target": target,
            **changes,
        },
    )


async def test_settings_without_a_problem_are_reported_so_and_nothing_is_written(
    fake, packs, service, database
):
    before = await database.book()
    done = await checking(fake, packs, service.target)
    assert (done.returncode, done.stdout, done.stderr) == (0, "everything fits\n", "")
    assert await database.book() == before


async def test_what_differs_between_catalogue_and_stripe_is_a_line(fake, client):
    await fake.price(900, lookup_key="weekly", currency="eur", recurring={"interval": "week"})
    differs = "pack starter: price price_starter is 900 eur, and the catalogue shows"
    for old, new, line in (
        ("900", "950", f"{differs} 950 eur"),
        ("eur", "usd", f"{differs} 900 usd"),
        ("price_starter", "price_gone", "pack starter: stripe_object_missing"),
        ('price = "price_starter"', 'lookup_key = "none"', "no active price has the lookup key"),
        ('"monthly"', '"yearly"', "no active price has the lookup key yearly"),
        ('price = "price_starter"', 'lookup_key = "weekly"', "is recurring, and a pack is sold"),
    ):
        policy = Policy(catalog=Catalog.parse(PACKS.replace(old, new)))
        (found,) = [each async for each in config_check.problems(fake.sdk(), client, policy)]
        assert line in found


async def test_a_life_by_the_period_that_a_price_cannot_have_is_a_line(fake, client):
    await fake.price(900, lookup_key="yearly", currency="eur", recurring={"interval": "year"})
    await fake.price(900, id="price_once", currency="eur")
    for price, life, line in (
        ('lookup_key = "monthly"', "carry_over = 118", ""),
        ('lookup_key = "monthly"', "carry_over = 120", "a carry_over of 120, so its credits would"),
        ('lookup_key = "yearly"', "carry_over = 9", ""),
        ('lookup_key = "yearly"', "carry_over = 10", "longer than 3653 days, the maximum"),
        ('price = "price_once"', "", 'is sold once, so its credits cannot have expires = "period"'),
    ):
        plan = f'[[price]]\n{price}\ncredits = 5\nexpires = "period"\n{life}\n'
        policy = Policy(catalog=Catalog.parse(plan))
        found = [each async for each in config_check.problems(fake.sdk(), client, policy)]
        assert len(found) == bool(line)
        assert line in "".join(found)


async def test_every_problem_is_a_line_of_its_own(fake, packs, service):
    await fake.price(1, id="price_old", currency="eur", active=False)
    more = "".join(
        f'[[price]]\nprice = "{price}"\ncredits = 1\n'
        for price in ("price_gone", "price_gone_too", "price_old")
    )
    packs.write_text(PACKS + more)
    done = await checking(
        fake,
        packs,
        service.target,
        allowed_currencies="usd",
        max_credits_per_purchase="99",
    )
    assert done.returncode == 1
    assert "price price_old is not active" in done.stdout
    assert "Stripe does not know price_gone;" in done.stdout
    assert "Stripe does not know price_gone_too;" in done.stdout
    assert "more credits than STRIPE_BRIDGE_MAX_CREDITS_PER_PURCHASE allows" in done.stdout
    assert "sold in eur, which STRIPE_BRIDGE_ALLOWED_CURRENCIES lacks" in done.stdout


async def test_a_key_that_stripe_refuses_is_reported_for_every_right(fake, packs, service):
    done = await checking(fake, packs, service.target, stripe_key="rk_nobodys_hunter2")
    assert done.returncode == 1
    for right in ("Checkout Sessions", "Refunds", "Disputes", "Invoices", "Events"):
        assert f"Stripe's key may not read {right}: " in done.stdout


async def test_a_bridge_that_the_service_does_not_accept_is_reported(fake, packs, guarded):
    for credit_token in ({}, {"credit_token": "unheard-of"}):
        done = await checking(fake, packs, guarded.target, **credit_token)
        assert done.returncode == 1
        assert "the credit service does not accept the bridge: " in done.stdout


async def test_the_bridge_is_accepted_by_its_certificate_or_its_token_over_tls(
    fake, database, tmp_path
):
    authority = trustme.CA()
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "server", "key", "ours", "our_key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    for name, chain, key in (
        ("127.0.0.1", files["server"], files["key"]),
        ("bridge.credits.example", files["ours"], files["our_key"]),
    ):
        made = authority.issue_cert(name)
        made.cert_chain_pems[0].write_to_path(str(chain))
        made.private_key_pem.write_to_path(str(key))
    callers = tmp_path / "callers.toml"
    callers.write_text(
        identity("by-token", "bridge", "a-token")
        + '[[identity]]\nname = "by-certificate"\nrole = "bridge"\n'
        + 'certificate = "bridge.credits.example"\n'
    )
    access = {"stripe_key": KEY, "stripe_address": fake.url, "webhook_secrets": f"test:{SECRET}"}
    for client_ca, known in (
        (None, {"credit_token": "a-token"}),
        (
            files["ca"],
            {
                "credit_tls_certificate": str(files["ours"]),
                "credit_tls_key": str(files["our_key"]),
            },
        ),
    ):
        settings = server_settings(
            database.service_url,
            authenticator=Authenticator(callers),
            certificate=ServerCertificate(files["server"], files["key"], client_ca),
        )
        async with running(settings) as service:
            done = await ran(
                "check-config",
                credit_target=service.target,
                credit_tls_ca=str(files["ca"]),
                **access,
                **known,
            )
        assert (done.returncode, done.stdout) == (0, "everything fits\n")


async def problems(stripe, credit_service):
    policy = Policy(catalog=Catalog())
    return [each async for each in config_check.problems(stripe, credit_service, policy)]


async def test_what_gives_no_answer_is_reported():
    async with (
        stripe_client(KEY, address="http://127.0.0.1:9", retries=0) as stripe,
        CreditClient("127.0.0.1:9", deadline_seconds=0.2) as credit_service,
    ):
        stripe_away, credits_away = await problems(stripe, credit_service)
    assert "no usable answer from Stripe" in stripe_away
    assert "the credit service gives no answer" in credits_away


async def test_a_bridge_without_a_secret_is_reported(fake, service):
    access = {"stripe_key": KEY, "stripe_address": fake.url, "credit_target": service.target}
    done = await ran("check-config", **access)
    line = "STRIPE_BRIDGE_WEBHOOK_SECRETS is not set, so no event is taken\n"
    assert (done.returncode, done.stdout) == (1, line)


@pytest.mark.parametrize(("seconds", "way"), [(1000, "ahead of"), (-1000, "behind"), (5, None)])
async def test_a_clock_that_differs_from_stripes_is_reported(
    fake, client, monkeypatch, seconds, way
):
    monkeypatch.setattr(config_check, "time", SimpleNamespace(time=lambda: time.time() + seconds))
    found = await problems(fake.sdk(), client)
    assert [way in each for each in found] == ([True] if way else [])
    assert all("set it by NTP" in each for each in found)


async def test_reconcile_repairs_what_no_event_brought_and_then_finds_it_there(
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


async def test_reconcile_names_what_stays_unresolved_with_exit_code_1(service, database):
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


async def test_serve_says_its_version_where_it_listens_and_where_credits_go(service):
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
